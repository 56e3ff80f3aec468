"""LeNet on CIFAR-10 in the style of tutorials, with the recipe of experiment=cifar10_lenet.

python benchmarks/tutorials/lenet.py --data DIR

The last line is JSON: training time (wall and CPU) and test time per epoch [s], and the last
test accuracy.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms


class CIFAR10Arrays(Dataset[tuple[Any, int]]):
    """Decoded CIFAR-10 with the same work per image as torchvision's CIFAR10, without its official files."""

    def __init__(self, root: str, train: bool, transform: Callable[[Image.Image], Any]) -> None:
        split = "train" if train else "test"
        self.data = np.load(f"{root}/cifar10_arrays/{split}_images.npy")
        self.targets = np.load(f"{root}/cifar10_arrays/{split}_labels.npy").tolist()
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]

    def __len__(self) -> int:
        return len(self.data)


class Net(nn.Module):
    """Two convolutions and three fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        features = self.pool(F.relu(self.conv1(images)))
        features = self.pool(F.relu(self.conv2(features)))
        features = torch.flatten(features, 1)
        features = F.relu(self.fc1(features))
        features = F.relu(self.fc2(features))
        return self.fc3(features)


def main() -> None:
    """Train and test."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, help="limit of each epoch, for a trial")
    arguments = parser.parse_args()

    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]
    )
    official = (Path(arguments.data) / "cifar-10-batches-py").is_dir()
    cifar10: Any = datasets.CIFAR10 if official else CIFAR10Arrays
    train_data = cifar10(arguments.data, train=True, transform=transform)
    test_data = cifar10(arguments.data, train=False, transform=transform)
    train_loader = DataLoader(train_data, batch_size=4, shuffle=True, num_workers=arguments.workers)
    test_loader = DataLoader(test_data, batch_size=4, num_workers=arguments.workers)

    model = Net()
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)

    train_s, train_cpu_s, test_s, accuracy = [], [], [], 0.0
    for epoch in range(arguments.epochs):
        began, cpu_began = time.perf_counter(), sum(os.times()[:4])  # including the loader's processes
        model.train()
        running_loss = 0.0
        for step, (images, labels) in enumerate(train_loader):
            if step == arguments.batches:
                break
            logits = model(images)
            loss = loss_fn(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            if (step + 1) % 2000 == 0:
                print(f"epoch {epoch + 1}, step {step + 1}: loss {running_loss / 2000:.4f}")
                running_loss = 0.0
        train_s.append(time.perf_counter() - began)
        train_cpu_s.append(sum(os.times()[:4]) - cpu_began)

        began = time.perf_counter()
        model.eval()
        correct, total = 0, 0
        with torch.no_grad():
            for step, (images, labels) in enumerate(test_loader):
                if step == arguments.batches:
                    break
                predicted = model(images).argmax(dim=1)
                correct += (predicted == labels).sum().item()
                total += len(labels)
        accuracy = correct / total
        test_s.append(time.perf_counter() - began)
        print(f"test accuracy {100 * accuracy:.2f} %")
    result = {"train_s": train_s, "train_cpu_s": train_cpu_s, "test_s": test_s, "test_acc": accuracy}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
