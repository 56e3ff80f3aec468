"""What several tests need: composed configurations and small data sets in the real ones' formats."""

import csv
import hashlib
import pickle
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromium
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict
from PIL import Image

from project.config.resolvers import register_resolvers
from project.runtime import signals
from project.sweeps.compose import Composer

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
Compose = Callable[..., DictConfig]
EXTRA_MODELS = {"huggingface", "timm"}
"""Networks of optional packages, which have tests of their own."""
DENSE_MODELS = {"autoencoder", "unet", "vae"}
"""Networks that do not output the logits of one class per image."""
PUBLISHED = {"cifar100", "emnist", "fashion_mnist", "huggingface", "kmnist", "stl10", "svhn"}
"""Data sets whose files only their own tests write."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's job in the background ignores it
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # before anything is computed: forks that take more threads would wait for lost ones
if not torch.cuda.is_available():
    # Tracing (`torch.export`, `compile`) registers eight GPUs that are not there. A later backward starts
    # a thread for each, and what is forked afterward cannot train: every later test would have to know.
    torch._C._ensureCUDADeviceGuardSet = lambda: None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of commands and faults as slow: `-m "not slow"` leaves the tests of single packages."""
    for item in items:
        if ROOT / "tests" / "unit" not in item.path.parents:
            item.add_marker(pytest.mark.slow)


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


@pytest.fixture(scope="session")
def composer() -> Any:
    """Compose as a job of a sweep does, Hydra's own node included: each choice of groups is read once."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="train"):
        jobs = Composer(GlobalHydra.instance().config_loader(), compose("train", return_hydra_config=True))

        def composed(*overrides: str, run: str | Path = "outputs/run") -> DictConfig:
            config = jobs.compose(overrides)
            config.hydra.runtime.output_dir = str(run)
            HydraConfig.instance().set_config(config)
            return config

        yield composed
    HydraConfig.instance().cfg = None


@pytest.fixture
def composed(composer: Compose) -> Compose:
    """Compose the configuration of a run, as the job gets it."""

    def without_hydra(*overrides: str, run: str | Path = "outputs/run") -> DictConfig:
        config = composer(*overrides, run=run)
        with open_dict(config):
            del config["hydra"]
        return config

    return without_hydra


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 12×10 color JPEGs: 20 training and 5 test images each, of the class's own hue."""
    root = tmp_path_factory.mktemp("image_folder")
    draws = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 60, (12, 10, 3), dtype=np.uint8)
                pixels[:, :, label] += 180
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return root


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST's four files with 200 training and 40 test images."""
    from project.datamodules import mnist

    root = tmp_path_factory.mktemp("mnist")
    folder = root / mnist.FOLDER
    folder.mkdir(parents=True)
    draws = np.random.default_rng(1)
    for prefix, count in (("train", 200), ("t10k", 40)):
        images = draws.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 0x803, count, 28, 28) + images.tobytes()
        )
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 0x801, count) + labels.tobytes()
        )
    return root


@pytest.fixture(scope="session")
def cifar10_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10's files with 40 images in each of the six batches."""
    from project.datamodules import cifar10

    root = tmp_path_factory.mktemp("cifar10")
    folder = root / cifar10.FOLDER
    folder.mkdir(parents=True)
    draws = np.random.default_rng(2)
    for file in cifar10.CHECKSUMS:
        batch: dict[str, Any] = {
            "data": draws.integers(0, 256, (40, 3072), dtype=np.uint8),
            "labels": [number % 10 for number in range(40)],
        }
        if file == "batches.meta":
            batch = {"label_names": cifar10.CLASSES}
        (folder / file).write_bytes(pickle.dumps(batch))
    return root


def read_table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def slurm(rank: int, **more: str) -> dict[str, str]:
    """What srun sets in each task, of two on one machine."""
    return {
        "SLURM_JOB_ID": "4321",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "localhost",
        "MASTER_ADDR": "127.0.0.1",
    } | more


def md5_of(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        for file in folder.iterdir()
    }


@pytest.fixture
def data_overrides(
    image_folder: Path, mnist_root: Path, cifar10_root: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[str]]:
    """For each data set, the overrides by which it is found here; its small files pass as the real ones."""
    from project.datamodules import cifar10, mnist

    monkeypatch.setattr(mnist, "CHECKSUMS", md5_of(mnist_root / mnist.FOLDER))
    monkeypatch.setattr(cifar10, "CHECKSUMS", md5_of(cifar10_root / cifar10.FOLDER))
    return {
        "digits": [],
        "mnist": [f"paths.data={mnist_root}", "data.val_size=20"],
        "cifar10": [f"paths.data={cifar10_root}", "data.val_size=20"],
        "image_folder": [f"data.path={image_folder}", "data.resize=28"],
        "synthetic": ["data.train_size=64", "data.test_size=32"],
    }


@pytest.fixture(autouse=True)
def _not_told_to_stop() -> Iterator[None]:
    """What a test was told holds for no other."""
    yield
    signals._state.__init__()  # type: ignore[misc]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors are slower with more, and the tests share the machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium."""
    yield from chromium.launch()
