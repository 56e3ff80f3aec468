"""Downloads at the same instant, some of them killed; the full trial is `downloads.full`."""

import hashlib
import io
import ssl
import tarfile
from pathlib import Path

import pytest
from downloads import SET, serving, trial

from project.datamodules import cifar10, mnist
from project.datamodules.downloads import archives
from project.datamodules.downloads.archives import Archive, ArchiveError
from project.errors import DataError


def test_killed_downloads_harm_nobody() -> None:
    total = trial(3, seconds=0.2, seed=1)
    assert total["killed"]
    assert total["lived"]


def test_a_server_that_hangs_up_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "PAUSE_S", 0)
    with serving(0.01, cut=True) as served:
        served.fetch(tmp_path)
    assert len(list((tmp_path / SET).iterdir())) == 4


def test_no_server_and_no_file_is_an_error_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "PAUSE_S", 0)
    with serving(0.01) as served:
        pass
    with pytest.raises(DataError, match=r"data=toy is not there .*one\.gz.*data=digits"):
        served.fetch(tmp_path)
    assert [file for file in tmp_path.iterdir() if file.name != ".toy.lock"] == []


def test_what_is_larger_than_it_should_be_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "PAUSE_S", 0)
    with serving(0.01) as served:
        first = served.archives[0]
        served.archives[0] = Archive(first.name, first.mirrors, first.md5, 1000, first.members, 100_000)
        with pytest.raises(DataError, match="larger than 1,000 bytes"):
            served.fetch(tmp_path)


def test_the_real_sets_come_from_mirrors_in_their_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MNIST's and CIFAR-10's own downloads, of made-up files."""
    monkeypatch.setattr(archives, "PAUSE_S", 0)
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
                import gzip

                file.write_bytes(gzip.compress(b"abc"))

        monkeypatch.setattr(archives, "_download", hand_over)
        root = tmp_path / module.__name__
        module.download(str(root))
        assert sorted(file.name for file in (root / module.FOLDER).iterdir()) == sorted(members)
        assert all(mirror.startswith("https://") for archive in asked for mirror in archive.mirrors)


def test_an_archive_without_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.tar.gz"
    with tarfile.open(file, "w:gz"):
        pass
    with pytest.raises(ArchiveError, match="wanted is not in it"):
        archives.unpack(Archive("a.tar.gz", [], "", 0, ["wanted"], 9), file, tmp_path)


@pytest.mark.parametrize(
    "error", [TimeoutError(110, "timed out"), ssl.SSLError(1, "bad record"), OSError(101, "unreachable")]
)
def test_an_error_of_the_network_has_the_next_mirror_asked(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise error

    def ask(address: str, timeout: float) -> io.BytesIO:
        return Breaking() if address.startswith("http://first") else io.BytesIO(b"content")

    monkeypatch.setattr(archives.urllib.request, "urlopen", ask)
    mirrors = ["http://first", "http://second"]
    archive = Archive(
        "a.gz", mirrors, hashlib.md5(b"content", usedforsecurity=False).hexdigest(), 100, ["a"], 100
    )
    archives._download(archive, tmp_path / "a.gz")
    assert (tmp_path / "a.gz").read_bytes() == b"content"


def test_an_error_of_the_own_disk_ends_a_download_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        archives.urllib.request, "urlopen", lambda address, timeout: asked.append(address) or io.BytesIO(b"c")
    )
    archive = Archive("a.gz", ["http://first", "http://second"], "", 100, ["a"], 100)
    with pytest.raises(FileNotFoundError, match="gone"):
        archives._download(archive, tmp_path / "gone" / "a.gz")
    assert len(asked) == 1
