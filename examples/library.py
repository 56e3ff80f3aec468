"""Train your own network without a configuration: `python examples/library.py`.

`ImageClassifier` takes any `nn.Module` from images to logits and any of torch's optimizers. Other data sets:
`MNIST("data")` and `CIFAR10("data")`, which are downloaded, and
`ImageFolder("photos", input_shape=(3, 64, 64), num_classes=2, resize=64)`.
"""

from functools import partial

import lightning as L
from torch import nn, optim

from project.datamodules.digits import Digits
from project.modules.classifier import ImageClassifier
from project.modules.optim.schedules import cosine


def main(epochs: int = 10) -> float:
    """Train on the digits in the package and return the test accuracy, about 0.96."""
    data = Digits(batch_size=32)
    network = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 128), nn.ReLU(), nn.Linear(128, 10))
    module = ImageClassifier(network, optimizer=partial(optim.AdamW, lr=3e-3), scheduler=cosine)
    trainer = L.Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False)
    trainer.fit(module, data)
    trainer.test(module, data)
    return trainer.callback_metrics["test/acc"].item()


if __name__ == "__main__":
    L.seed_everything(1)
    print(f"test accuracy {main():.4f}")
