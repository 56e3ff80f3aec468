"""Simultaneous downloads, some of them killed (short form of `downloads.py`), and errors of servers."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from downloads import SET, serving, trial

from project.datamodules import cifar10, downloads, mnist
from project.datamodules.downloads import Archive, ArchiveError
from project.errors import DataError


def test_killed_downloads_harm_nobody() -> None:
    total = trial(3, seconds=0.2, seed=1)
    assert total["killed"]
    assert total["lived"]


def test_a_broken_download_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "RETRY_PAUSE_S", 0)
    with serving(0.01, cut=True) as served:
        served.fetch(tmp_path)
    assert len(list((tmp_path / SET).iterdir())) == 4


def test_a_missing_server_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "RETRY_PAUSE_S", 0)
    with serving(0.01) as served:
        pass
    with pytest.raises(DataError, match=r"data=toy is missing or damaged .*one\.gz.*data=digits"):
        served.fetch(tmp_path)
    assert [file for file in tmp_path.iterdir() if file.name != ".toy.lock"] == []


def test_files_that_are_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "RETRY_PAUSE_S", 0)
    with serving(0.01) as served:
        first = served.archives[0]
        served.archives[0] = Archive(first.name, first.mirrors, first.md5, 1000, first.members, 100_000)
        with pytest.raises(DataError, match="larger than 1,000 bytes"):
            served.fetch(tmp_path)


def test_the_real_sets_come_from_mirrors_in_their_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the downloads of MNIST and CIFAR-10 with made-up files."""
    monkeypatch.setattr(downloads, "RETRY_PAUSE_S", 0)
    for module, members in ((mnist, mnist.CHECKSUMS), (cifar10, cifar10.CHECKSUMS)):
        asked: list[Archive] = []

        def hand_over(archive: Archive, file: Path, seen: list[Archive] = asked) -> None:
            seen.append(archive)
            if archive.name.endswith(".tar.gz"):
                with tarfile.open(file, "w:gz") as tar:
                    for name in archive.members:
                        entry = tarfile.TarInfo(name)
                        entry.size = 3
                        tar.addfile(entry, io.BytesIO(b"abc"))
            else:
                file.write_bytes(gzip.compress(b"abc"))

        monkeypatch.setattr(downloads, "download_archive", hand_over)
        folder = tmp_path / module.__name__
        folder.mkdir()
        downloads.download_archives(module.ARCHIVES, folder)
        assert sorted(file.name for file in folder.iterdir()) == sorted(members)
        assert all(mirror.startswith("https://") for archive in asked for mirror in archive.mirrors)


def test_an_archive_without_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.tar.gz"
    with tarfile.open(file, "w:gz"):
        pass
    with pytest.raises(ArchiveError, match="wanted is missing"):
        downloads.unpack(Archive("a.tar.gz", [], "", 0, ["wanted"], 9), file, tmp_path)


class Answer:
    """Response of a server that fails after the first bytes."""

    def __init__(self, content: bytes, error: Exception | None = None) -> None:
        self.content = content
        self.error = error
        self.headers: dict[str, str] = {}

    def raise_for_status(self) -> None:
        pass

    def iter_content(self, chunk_size: int) -> Iterator[bytes]:
        yield self.content
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    "error",
    [requests.Timeout("timed out"), requests.exceptions.SSLError("bad record"), requests.ConnectionError()],
)
def test_a_network_error_tries_the_next_mirror(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(url: str, **options: object) -> Answer:
        assert options["timeout"] == downloads.TIMEOUT_S
        return Answer(b"con", error) if url.startswith("http://first") else Answer(b"content")

    monkeypatch.setattr(requests, "get", ask)
    mirrors = ["http://first", "http://second"]
    md5 = hashlib.md5(b"content", usedforsecurity=False).hexdigest()
    downloads.download_archive(Archive("a.gz", mirrors, md5, 100, ["a"], 100), tmp_path / "a.gz")
    assert (tmp_path / "a.gz").read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.gz"]


def test_a_full_local_disk_ends_a_download_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(requests, "get", lambda url, **_: asked.append(url) or Answer(b"c"))

    def full(file: object, block: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads._BoundedFile, "write", full)
    archive = Archive("a.gz", ["http://first", "http://second"], "", 100, ["a"], 100)
    with pytest.raises(OSError, match="No space left"):
        downloads.download_archive(archive, tmp_path / "a.gz")
    assert len(asked) == 1
