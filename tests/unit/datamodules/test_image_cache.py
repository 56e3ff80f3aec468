"""Memory-mapped data files, the cache of decoded images, and cached checksums."""

import json
import logging
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from project.datamodules import downloads, image_folder
from project.datamodules.cifar10 import CIFAR10
from project.datamodules.downloads import cached_digest
from project.datamodules.image_folder import ImageFolder
from project.datamodules.mnist import FOLDER, MNIST, map_bytes
from project.datamodules.storage import image_cache
from project.datamodules.storage.image_cache import ImageCache
from project.datamodules.storage.preprocessing import channel_statistics
from project.errors import InputError

MNIST_OPTIONS = {"input_shape": (1, 28, 28), "num_classes": 10, "val_size": 20, "mean": [0.1], "std": [0.3]}
FOLDER_OPTIONS = {"input_shape": (3, 12, 10), "num_classes": 3, "mean": [0.5], "std": [0.5]}


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear cached digests, as in a new process."""
    downloads._digest.cache_clear()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the decoded files, and cache even small folders."""
    files: list[str] = []
    decode = image_folder.decode_image

    def counting(file: str, *args, **options) -> torch.Tensor:
        files.append(file)
        return decode(file, *args, **options)

    monkeypatch.setattr(image_folder, "decode_image", counting)
    monkeypatch.setattr(image_folder, "MIN_CACHED_BYTES", 0)
    return files


def mnist_of(root: Path, **options) -> MNIST:
    return MNIST(str(root), **MNIST_OPTIONS | options)


def opened(folder: Path, kept: Path | None, **options) -> ImageFolder:
    data = ImageFolder(str(folder), **FOLDER_OPTIONS | options, image_cache=kept and str(kept))
    data.setup("fit")
    return data


def pixels_in(data: ImageFolder) -> torch.Tensor:
    return data._subsets["train"].images.images


def wait_until_settled(*files: Path) -> None:
    """Set modification times back: digests of recently changed files are not cached."""
    for file in files:
        os.utime(file, (time.time() - 60, time.time() - 60))


def test_mnist_is_memory_mapped(mnist_root: Path) -> None:
    data = mnist_of(mnist_root)
    data.setup("fit")
    data.setup("test")
    file = (mnist_root / FOLDER / "train-images-idx3-ubyte").read_bytes()
    images = data._subsets["train"].images
    assert images.is_mapped
    assert images.images.numpy().tobytes() == file[16:]
    assert data.memory_summary == "0.2 MB mapped"
    resident = [line for line in mappings_of(mnist_root) if "train-images" in line]
    assert len(resident) == 1, "one mapping of the file, and batches are made from it"
    scaled = mnist_of(mnist_root, input_shape=(1, 14, 14), resize=14)
    scaled.setup("fit")
    assert scaled.memory_summary == "0.0 MB in memory"


def mappings_of(folder: Path) -> list[str]:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs Linux")
    return [line for line in maps.read_text().splitlines() if str(folder) in line]


def private_kilobytes(file: Path) -> int:
    """Return the kilobytes of this process's mappings of `file` that are not shared with the page cache."""
    total, counting = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            counting = str(file) in line
        elif counting and line.startswith("Anonymous:"):
            total += int(line.split()[1])
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_a_mapped_file_is_shared_and_never_modified(tmp_path: Path) -> None:
    file = tmp_path / "bytes"
    file.write_bytes(bytes(range(256)) * 4096)
    mapped = map_bytes(file, 16, 2**20 - 16)
    assert mapped[:4].tolist() == [16, 17, 18, 19]
    assert mapped.long().sum() > 0  # every page was touched
    assert private_kilobytes(file) == 0
    mapped[0] = 255
    assert 0 < private_kilobytes(file) <= 16, "one page was copied"
    assert file.read_bytes()[16] == 16
    with pytest.raises(OSError, match=r"1,048,576 bytes \(expected at least 1,048,577\)"):
        map_bytes(file, 16, 2**20 - 15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], r"damaged \(156,815 bytes, expected 156,816 for 200×28×28 values\); remove"),
        (lambda data: data + b"0", "156,817 bytes"),
        (lambda data: b"\x1f\x8b\x08\x00" + data[4:], "magic number 1f8b0800"),
        (lambda data: data[:3], "requires a buffer"),
        (
            lambda data: data[:4] + b"\0\0\0\x01" + data[8:800],
            r"hold images \[1, 28, 28\] and labels \[200\] up to 9 .*; remove",
        ),
        (lambda data: data[:8] + b"\0\0\0\x38\0\0\0\x0e" + data[16:], r"images \[200, 56, 14\]"),
    ],
)
def test_damaged_mnist_files_are_reported_with_a_fix(
    mnist_root: Path, tmp_path: Path, change, message: str
) -> None:
    shutil.copytree(mnist_root, tmp_path / "data")
    victim = tmp_path / "data" / FOLDER / "train-images-idx3-ubyte"
    victim.write_bytes(change(victim.read_bytes()))
    with pytest.raises(InputError, match=rf"paths\.data.*{message}") as raised:
        mnist_of(tmp_path / "data").setup("fit")
    assert "\n" not in str(raised.value)
    victim.unlink()
    with pytest.raises(InputError, match=r"paths\.data.*train-images.*No such file"):
        mnist_of(tmp_path / "data").setup("fit")


def test_an_image_folder_is_decoded_once(
    image_folder: Path, tmp_path: Path, decoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    plain = pixels_in(opened(image_folder, None)).clone()
    decoded.clear()
    first = opened(image_folder, tmp_path / "kept")
    assert len(decoded) == 60
    with caplog.at_level(logging.INFO):
        second = opened(image_folder, tmp_path / "kept")
    assert len(decoded) == 60
    for data in (first, second):
        assert torch.equal(pixels_in(data), plain)
        assert data._subsets["train"].images.is_mapped
        assert torch.equal(data._subsets["train"].images.labels, first._subsets["train"].images.labels)
    assert caplog.messages == ["  images  0.0 MB mapped"]
    assert len(list((tmp_path / "kept").glob("*.images"))) == 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_cached_batches_equal_decoded_ones(
    image_folder: Path, tmp_path: Path, decoded: list[str], channels_last: bool
) -> None:
    plain = opened(image_folder, None)
    kept = [opened(image_folder, tmp_path, channels_last=channels_last) for _ in range(2)]
    for data in kept:
        for (images, labels), (same, same_labels) in zip(
            data.train_dataloader(), plain.train_dataloader(), strict=True
        ):
            assert torch.equal(images, same)
            assert torch.equal(labels, same_labels)
            memory = torch.channels_last if channels_last else torch.contiguous_format
            assert images.is_contiguous(memory_format=memory)
    assert [data._subsets["train"].images.is_mapped for data in kept] == [True, True]


def change_a_file(folder: Path) -> None:
    file = folder / "train" / "bee" / "3.jpg"
    shutil.copyfile(folder / "train" / "bee" / "4.jpg", file)


def remove_a_file(folder: Path) -> None:
    (folder / "train" / "bee" / "3.jpg").unlink()


def move_a_file(folder: Path) -> None:
    (folder / "train" / "bee" / "3.jpg").rename(folder / "train" / "cat" / "99.jpg")


@pytest.mark.parametrize("change", [change_a_file, remove_a_file, move_a_file])
def test_images_are_decoded_again_when_a_file_changes(
    image_folder: Path, tmp_path: Path, decoded: list[str], change, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(image_folder, tmp_path / "folder")
    before = opened(folder, tmp_path / "kept")
    change(folder)
    caplog.set_level(logging.INFO)
    after = opened(folder, tmp_path / "kept")
    assert "outdated; decoding its images again" in caplog.text
    expected = opened(folder, None)
    assert torch.equal(pixels_in(after), pixels_in(expected))
    assert torch.equal(after._subsets["train"].images.labels, expected._subsets["train"].images.labels)
    assert len(list((tmp_path / "kept").glob("*.images"))) == 1, "what is stale is replaced"
    assert len(pixels_in(before)) == 60, "who mapped the old file keeps it"
    assert pixels_in(before).sum() > 0


def flip_a_bit(file: Path, name: str) -> None:
    data, stored = bytearray(file.read_bytes()), torch.load(file, weights_only=True)[name].numpy().tobytes()
    data[data.index(stored) + len(stored) // 2] ^= 1
    file.write_bytes(data)


def flip_a_pixel(file: Path) -> None:
    flip_a_bit(file, "images")


def flip_a_label(file: Path) -> None:
    flip_a_bit(file, "labels")


def transpose_images(file: Path) -> None:
    data = file.read_bytes()
    shape, other = (bytes([40, 75, 60, 75, 3, 75, *sides, 116]) for sides in ((12, 75, 10), (10, 75, 12)))
    assert data.count(shape) == 1, "the pickled shape"
    file.write_bytes(data.replace(shape, other))


def truncate_file(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty_file(file: Path) -> None:
    file.write_bytes(b"")


def write_a_list(file: Path) -> None:
    file.write_bytes(b"[1, 2]" + file.read_bytes()[6:])


@pytest.mark.parametrize(
    "damage", [flip_a_pixel, flip_a_label, transpose_images, truncate_file, empty_file, write_a_list]
)
def test_a_damaged_cache_file_is_detected_and_replaced(
    image_folder: Path, tmp_path: Path, decoded: list[str], damage, caplog: pytest.LogCaptureFixture
) -> None:
    expected = pixels_in(opened(image_folder, tmp_path)).clone()
    (file,) = tmp_path.glob("*.images")
    wait_until_settled(file)
    opened(image_folder, tmp_path)  # now it is known to be good
    assert len(decoded) == 60
    damage(file)
    caplog.set_level(logging.INFO)
    assert torch.equal(pixels_in(opened(image_folder, tmp_path)), expected)
    assert len(decoded) == 120
    assert "decoding its images again" in caplog.text
    opened(image_folder, tmp_path)
    assert len(decoded) == 120


def test_one_of_several_processes_decodes(tmp_path: Path) -> None:
    made, start = [], threading.Barrier(4)

    def make() -> tuple[torch.Tensor, torch.Tensor]:
        made.append(1)
        time.sleep(0.1)
        return torch.arange(240, dtype=torch.uint8).view(5, 3, 4, 4), torch.arange(5)

    def one(_: int) -> torch.Tensor:
        start.wait()
        return ImageCache(tmp_path).load("toy", {"a": 1}, make, channels_last=False).images

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one, range(4)))
    assert len(made) == 1
    assert all(torch.equal(images.flatten(), torch.arange(240, dtype=torch.uint8)) for images in found)


def test_images_are_decoded_in_every_run_if_the_cache_cannot_be_written(
    image_folder: Path,
    tmp_path: Path,
    decoded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    expected = pixels_in(opened(image_folder, None)).clone()
    (tmp_path / "file").touch()
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    for kept in (tmp_path / "file" / "kept", tmp_path / "full"):
        caplog.clear()
        assert torch.equal(pixels_in(opened(image_folder, kept)), expected)
        logged = [message for message in caplog.messages if "decoded images cannot be cached" in message]
        assert len(logged) == 1
        assert f"paths.image_cache={kept}" in logged[0]
        monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda folder: full)
    assert "only 0.0 MB free" in logged[0]
    assert not list((tmp_path / "full").glob("*.images"))


def test_the_least_recently_used_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ImageCache(tmp_path)
    make = lambda: (torch.zeros(10, 1, 10, 10, dtype=torch.uint8), torch.zeros(10).long())  # noqa: E731
    for age, name in enumerate(("new", "older", "oldest")):
        folder.load(name, {}, make, channels_last=False)
        os.utime(tmp_path / f"{name}.images", (time.time() - 3600 * age, time.time()))
    monkeypatch.setattr(image_cache, "MAX_FOLDER_BYTES", 2.2 * (tmp_path / "new.images").stat().st_size)
    folder.load("another", {}, make, channels_last=False)
    assert {file.stem for file in tmp_path.glob("*.images")} == {"new", "another"}


def test_cifar10_is_unpickled_once_and_only_with_published_checksums(
    cifar10_root: Path, tmp_path: Path, data_overrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(cifar10_root, tmp_path / "data")
    options = {"input_shape": (3, 32, 32), "num_classes": 10, "image_cache": str(tmp_path / "kept")}
    files = np.concatenate(
        [np.load(file, allow_pickle=True)["data"] for file in sorted(root.glob("*/data_batch_*"))]
    )
    read = CIFAR10.load_split
    unpickled: list[str] = []
    monkeypatch.setattr(
        CIFAR10, "load_split", lambda data, split: (unpickled.append(split), read(data, split))[1]
    )
    for channels_last in (False, True, False, True):
        data = CIFAR10(str(root), **options, channels_last=channels_last)
        data.prepare_data()
        data.setup("fit")
        images = data._subsets["train"].images
        assert images.is_mapped
        assert images.images.flatten(1).numpy().tobytes() == files.tobytes()
    assert unpickled.count("train") == 2, "once for each memory order"
    victim = next(root.glob("*/data_batch_2"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"\0")
    with pytest.raises(InputError, match=r"data_batch_2 is damaged: MD5"):
        CIFAR10(str(root), input_shape=(3, 32, 32), num_classes=10).setup("fit")


def test_checksums_are_computed_once_for_each_state_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, memory, computed = tmp_path / "file", tmp_path / "kept" / "verified.json", []

    def compute(path: Path) -> str:
        computed.append(path.read_text())
        return path.read_text().upper()

    def next_process() -> str:
        downloads._digest.cache_clear()
        return cached_digest(file, compute, memory)

    file.write_text("one")
    assert next_process() == "ONE"
    assert not memory.exists(), "a change in the same instant would not show"
    wait_until_settled(file)
    assert [next_process() for _ in range(3)] == ["ONE"] * 3
    assert computed == ["one", "one"]
    file.write_text("two")
    assert next_process() == "TWO"
    memory.write_text("{damaged")
    wait_until_settled(file)
    assert [next_process() for _ in range(2)] == ["TWO"] * 2
    assert list(json.loads(memory.read_text())) == [str(file)]


def test_a_download_is_verified_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"one": "f97c5d29941bfb1b2fdab0874906ab82"}  # MD5 of its content, its name
    read = []
    md5 = downloads.md5_of
    monkeypatch.setattr(downloads, "md5_of", lambda file: (read.append(file), md5(file))[1])
    (tmp_path / "set").mkdir()
    file = tmp_path / "set" / "one"
    for content, problem in (("one", ""), ("0ne", "is damaged: MD5")):
        file.write_text(content)
        wait_until_settled(file)
        for _ in range(3):
            downloads._digest.cache_clear()
            assert problem in downloads.find_problem(tmp_path / "set", good, tmp_path / "verified.json")
            if not problem:
                downloads.require_undamaged("toy", tmp_path, Path("set"), good, tmp_path / "verified.json")
    assert len(read) == 2
    with pytest.raises(InputError, match=r"paths\.data=.*one is damaged: MD5 .* remove the file"):
        downloads.require_undamaged("toy", tmp_path, Path("set"), good)


def test_statistics_of_a_channel_are_those_of_its_pixels() -> None:
    channel = torch.randint(256, (50, 9, 7), dtype=torch.uint8).square() % 200
    values = channel.double() / 255
    assert channel_statistics(channel) == pytest.approx(
        (values.mean().item(), values.std().item()), rel=1e-12
    )


def test_an_old_digest_is_verified_again_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file, memory = tmp_path / "file", tmp_path / "verified.json"
    file.write_text("good")
    wait_until_settled(file)

    def next_process() -> str:
        downloads._digest.cache_clear()
        found = cached_digest(file, Path.read_text, memory)
        for thread in threading.enumerate():
            if thread.name == "checksum":
                thread.join()
        return found

    def remembered() -> list[object]:
        return json.loads(memory.read_text())[str(file)]

    def age() -> None:
        entry = remembered()
        memory.write_text(json.dumps({str(file): [*entry[:3], entry[3] - 8 * 86_400, entry[4]]}))

    next_process()
    age()
    assert next_process() == "good"
    assert abs(time.time() - remembered()[3]) < 60, "found good once more"
    facts = file.stat()
    with file.open("r+") as stream:
        stream.write("b")
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as a disk changes it, without a trace
    assert next_process() == "good"
    age()
    assert next_process() == "good"
    assert "file is damaged: its content changed without a write" in caplog.text
    assert next_process() == "bood"


def test_processes_write_the_digest_file_under_different_staging_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, names = tmp_path / "verified.json", []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: names.append(self.name) or replace(self, to))
    left = tmp_path / ".verified.json.other-1-ab.part"
    left.write_text("{")
    os.utime(left, (0, 0))
    young = tmp_path / ".verified.json.other-2-ab.part"
    young.write_text("{")
    for _ in range(2):  # of containers with the same name and the same process number
        downloads._write_digest(memory, str(tmp_path), (1, 2, 3, 4.0, "digest"))
    assert len(set(names)) == 2
    assert sorted(tmp_path.iterdir()) == sorted([young, memory])
