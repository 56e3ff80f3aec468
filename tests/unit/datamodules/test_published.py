"""Published data sets: checksums are torchvision's, and small files are read as by torchvision."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Compose
from torchvision import datasets

from project.config.validation import find_problems
from project.datamodules import downloads
from project.datamodules.cifar100 import CIFAR100
from project.datamodules.emnist import CLASSES as EMNIST_CLASSES
from project.datamodules.emnist import EMNIST
from project.datamodules.fashion_mnist import FashionMNIST
from project.datamodules.kmnist import KMNIST
from project.datamodules.published import PublishedDataModule
from project.datamodules.stl10 import STL10
from project.datamodules.svhn import SVHN
from project.errors import DataError, InputError

SETS = (FashionMNIST, KMNIST, EMNIST, CIFAR100, SVHN, STL10)
COUNTS = {"train": 24, "test": 12}
DRAWS = np.random.default_rng(0)


def idx(values: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(np.uint8).tobytes()


def pixels(*shape: int) -> np.ndarray:
    return DRAWS.integers(0, 256, shape, dtype=np.uint8)


def labels_of(split: str, classes: int, first: int = 0) -> np.ndarray:
    return (np.arange(COUNTS[split]) % classes + first).astype(np.uint8)


def archive_of(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def mnist_files() -> dict[str, bytes]:
    return {
        f"{prefix}-{kind}-ubyte.gz": gzip.compress(idx(values))
        for prefix, split in (("train", "train"), ("t10k", "test"))
        for kind, values in (
            ("images-idx3", pixels(COUNTS[split], 28, 28)),
            ("labels-idx1", labels_of(split, 10)),
        )
    }


def emnist_files() -> dict[str, bytes]:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for subset, names in EMNIST_CLASSES.items():
            for split, count in COUNTS.items():
                first = 1 if subset == "letters" else 0
                for kind, values in (
                    ("images-idx3", pixels(count, 28, 28)),
                    ("labels-idx1", labels_of(split, len(names), first)),
                ):
                    content = gzip.compress(idx(values))
                    archive.writestr(f"gzip/emnist-{subset}-{split}-{kind}-ubyte.gz", content)
    return {"gzip.zip": stream.getvalue()}


def cifar100_files() -> dict[str, bytes]:
    files = {"cifar-100-python/meta": pickle.dumps({"fine_label_names": list(CIFAR100.CLASSES)})}
    for split, count in COUNTS.items():
        batch = {"data": pixels(count, 3072), "fine_labels": labels_of(split, 100).tolist()}
        files[f"cifar-100-python/{split}"] = pickle.dumps(batch)
    return {"cifar-100-python.tar.gz": archive_of(files)}


def svhn_files() -> dict[str, bytes]:
    from scipy.io import savemat

    files = {}
    for split, count in COUNTS.items():
        savemat(
            stream := io.BytesIO(),
            {"X": pixels(32, 32, 3, count), "y": labels_of(split, 10, 1)[:, None]},
            do_compression=True,
        )
        files[f"{split}_32x32.mat"] = stream.getvalue()
    return files


def stl10_files() -> dict[str, bytes]:
    files = {"stl10_binary/unlabeled_X.bin": b"unused"}
    for split, count in COUNTS.items():
        files[f"stl10_binary/{split}_X.bin"] = pixels(count, 3, 96, 96).tobytes()
        files[f"stl10_binary/{split}_y.bin"] = labels_of(split, 10, 1).tobytes()
    return {"stl10_binary.tar.gz": archive_of(files)}


FILES = {
    FashionMNIST: mnist_files, KMNIST: mnist_files, EMNIST: emnist_files, CIFAR100: cifar100_files,
    SVHN: svhn_files, STL10: stl10_files,
}  # fmt: skip


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve small files under the published names on 127.0.0.1; return the folder to download to."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    (site := tmp_path / "site").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(downloads, "RETRY_PAUSE_S", 0)
    for cls in SETS:
        if cls is SVHN:
            pytest.importorskip("scipy")
        (site / cls.NAME).mkdir()
        files, checksums = FILES[cls](), {}
        for name, content in files.items():
            (site / cls.NAME / name).write_bytes(content)
            if not name.endswith(".tar.gz"):
                checksums[name] = md5(content)
                continue
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                for entry in tar:
                    if (member := Path(entry.name).name) in cls.CHECKSUMS:
                        checksums[member] = md5(tar.extractfile(entry).read())
        url = f"http://127.0.0.1:{server.server_port}/{cls.NAME}"
        archives = [
            replace(one, mirrors=[url], md5=md5(files[one.name]), size=len(files[one.name]))
            for one in cls.ARCHIVES
        ]
        assert set(checksums) == set(cls.CHECKSUMS)
        monkeypatch.setattr(cls, "CHECKSUMS", checksums)
        monkeypatch.setattr(cls, "ARCHIVES", archives)
    yield tmp_path / "data"
    server.shutdown()
    server.server_close()


def by_torchvision(
    cls: type[PublishedDataModule], root: Path, split: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the downloaded files with torchvision, as images (N, C, H, W) and labels (N,)."""
    for module in (datasets.mnist, datasets.cifar, datasets.svhn, datasets.stl10):
        monkeypatch.setattr(module, "check_integrity", lambda *_: True)
    is_train = split == "train"
    if cls in (FashionMNIST, KMNIST):
        folder = root / cls.FOLDER
        for file in folder.glob("*.gz"):
            file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        read = getattr(datasets, cls.__name__)(root, train=is_train)
        return read.data[:, None], read.targets
    if cls is EMNIST:
        with zipfile.ZipFile(root / cls.FOLDER / "gzip.zip") as archive:
            for name in archive.namelist():
                (root / cls.FOLDER / Path(name).stem).write_bytes(gzip.decompress(archive.read(name)))
        read = datasets.EMNIST(root, split="balanced", train=is_train)
        return read.data.transpose(1, 2)[:, None], read.targets  # torchvision leaves them transposed
    if cls is CIFAR100:
        read = datasets.CIFAR100(root, train=is_train)
        return torch.from_numpy(read.data).permute(0, 3, 1, 2), torch.tensor(read.targets)
    read = datasets.SVHN(root / "SVHN", split=split) if cls is SVHN else datasets.STL10(root, split=split)
    return torch.from_numpy(np.ascontiguousarray(read.data)), torch.from_numpy(read.labels).long()


def test_downloaded_images_are_those_that_torchvision_reads(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cls in SETS:
        for _ in range(2):  # the second time from the cache of decoded images
            data = cls(str(served), val_size=4, batch_size=4, image_cache=str(tmp_path / "cache"))
            data.prepare_data()
            data.setup("fit")
            data.setup("test")
            assert [data.count(split) for split in ("train", "val", "test")] == [20, 4, 12], cls
            for split in ("train", "test"):
                images, labels = by_torchvision(cls, served, split, monkeypatch)
                assert torch.equal(data._subsets[split].images.images, images), (cls, split)
                assert torch.equal(data._subsets[split].images.labels, labels), (cls, split)
        assert len(data.class_names) == data.num_classes == len(set(data.class_names))
        images, _ = next(iter(data.train_dataloader()))
        assert images.shape == (4, *data.input_shape)


def test_checksums_names_and_addresses_are_those_of_torchvision() -> None:
    for cls in (FashionMNIST, KMNIST):
        own = getattr(datasets, cls.__name__)
        assert list(cls.CHECKSUMS.items()) == own.resources
        assert {mirror.rstrip("/") for mirror in own.mirrors} <= set(cls.ARCHIVES[0].mirrors)
        assert {one.name: one.md5 for one in cls.ARCHIVES} == cls.CHECKSUMS
        assert list(cls.CLASSES) == own.classes
    assert datasets.EMNIST.md5 == EMNIST.CHECKSUMS["gzip.zip"] == EMNIST.ARCHIVES[0].md5
    assert datasets.EMNIST.url == f"{EMNIST.ARCHIVES[0].mirrors[0]}/{EMNIST.ARCHIVES[0].name}"
    for subset, names in EMNIST_CLASSES.items():
        expected = [name for name in datasets.EMNIST.classes_split_dict[subset] if name != "N/A"]
        assert list(names) == expected
    for cls in (CIFAR100, STL10):
        own = getattr(datasets, cls.__name__)
        listed = dict(own.train_list + own.test_list)
        assert all(listed[name] == md5 for name, md5 in cls.CHECKSUMS.items() if name != "meta")
        assert cls.ARCHIVES[0].md5 == own.tgz_md5
        assert own.url == f"{cls.ARCHIVES[0].mirrors[0]}/{cls.ARCHIVES[0].name}"
    assert CIFAR100.CHECKSUMS["meta"] == datasets.CIFAR100.meta["md5"]
    for archive in SVHN.ARCHIVES:
        split = archive.name.partition("_")[0]
        assert datasets.SVHN.split_list[split] == [
            f"{archive.mirrors[0]}/{archive.name}", archive.name, archive.md5,
        ]  # fmt: skip


@pytest.mark.parametrize("name", [cls.NAME for cls in SETS])
def test_configurations_pass_the_checks(name: str, composer: Compose) -> None:
    assert list(find_problems(composer(f"data={name}"))) == []
    assert list(find_problems(composer(f"data={name}", "data.resize=16"))) == []


def test_other_subsets_of_emnist_need_their_number_of_classes(served: Path) -> None:
    data = EMNIST(str(served), "letters", num_classes=26, val_size=4)
    data.prepare_data()
    data.setup("fit")
    assert data._subsets["train"].images.labels.min() == 0
    assert data.class_names[0] == "a"
    with pytest.raises(InputError, match=r"data\.num_classes=47: data\.subset=letters has 26 classes; set"):
        EMNIST("data", "letters")


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    for cls, file in (
        (KMNIST, "train-images-idx3-ubyte.gz"),
        (EMNIST, "gzip.zip"),
        (STL10, "train_y.bin"),
        (SVHN, "train_32x32.mat"),
        (CIFAR100, "train"),
    ):
        data = cls(str(tmp_path))
        data.folder.mkdir(parents=True)
        (data.folder / file).write_bytes(b"no data")
        with pytest.raises(DataError, match=r"damaged|missing") as raised:
            data.load_split("train")
        assert "\n" not in str(raised.value)
