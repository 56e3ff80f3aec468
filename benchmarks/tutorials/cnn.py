"""Two 3×3 convolutions on MNIST in the style of tutorials, with the recipe of experiment=mnist_cnn.

python benchmarks/tutorials/cnn.py --data DIR

The last line is JSON: training time (wall and CPU) and test time per epoch [s], and the last
test accuracy.
"""

import argparse
import json
import os
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


class CNN(nn.Module):
    """Two convolutions, dropout and two fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        features = F.relu(self.conv1(images))
        features = F.relu(self.conv2(features))
        features = self.dropout1(F.max_pool2d(features, 2))
        features = F.relu(self.fc1(torch.flatten(features, 1)))
        return self.fc2(self.dropout2(features))


def main() -> None:
    """Train and test."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batches", type=int, help="limit of each epoch, for a trial")
    arguments = parser.parse_args()

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    train_data = datasets.MNIST(arguments.data, train=True, transform=transform)
    test_data = datasets.MNIST(arguments.data, train=False, transform=transform)
    train_loader = DataLoader(train_data, batch_size=100, shuffle=True, num_workers=arguments.workers)
    test_loader = DataLoader(test_data, batch_size=100, num_workers=arguments.workers)

    model = CNN()
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)

    train_s, train_cpu_s, test_s, accuracy = [], [], [], 0.0
    for epoch in range(arguments.epochs):
        began, cpu_began = time.perf_counter(), sum(os.times()[:4])  # including the loader's processes
        model.train()
        for step, (images, labels) in enumerate(train_loader):
            if step == arguments.batches:
                break
            logits = model(images)
            loss = loss_fn(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if (step + 1) % 100 == 0:
                print(f"epoch {epoch + 1}, step {step + 1}: loss {loss.item():.4f}")
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
