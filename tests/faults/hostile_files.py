"""Malicious data files, archives and checkpoints, passed to the functions that read them."""

import gzip
import io
import pickle
import struct
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from hostile_payload import Attempt, Case, Touch, write_torch


def files() -> Iterator[Case]:
    """Return the attacks by data files and archives."""
    for name, content in _pickles().items():
        yield Case(f"a batch of CIFAR-10: {name}", _batch(content))
    for name in entries():
        yield Case(f"an archive: {name}", _archive(name))
    yield Case("an archive that grows without end", _bomb)
    yield Case("a checkpoint, read by the function", _read_checkpoint, heavy=True)


def _pickles() -> Mapping[str, Callable[[Path], bytes]]:
    def assembled(mark: Path, protocol: int) -> bytes:
        return pickle.dumps({"data": Touch(mark), "labels": []}, protocol)

    def opcodes(text: str) -> Callable[[Path], bytes]:
        return lambda mark: text.replace("MARK", str(mark)).encode()

    def object_array(mark: Path) -> bytes:
        import numpy as np

        entries = np.empty(1, object)
        entries[0] = Touch(mark)
        return pickle.dumps({"data": entries, "labels": []})

    def scalar(mark: Path) -> bytes:
        inner = pickle.dumps(Touch(mark), 2)
        return (
            b"\x80\x02cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(U\x01OI0\nI1\ntR"
            + b"T" + struct.pack("<i", len(inner)) + inner + b"tR."
        )  # fmt: skip

    return {
        "a call": lambda mark: assembled(mark, 2),
        "a call in a newer protocol": lambda mark: assembled(mark, 5),
        "a word that is evaluated": opcodes('c__builtin__\neval\n(S\'open("MARK","w")\'\ntR.'),
        "a command": opcodes("cos\nsystem\n(S'touch MARK'\ntR."),
        "an instance": opcodes("(S'MARK'\nS'w'\nibuiltins\nopen\n."),
        "a name below NumPy": opcodes("cnumpy\nload\n(S'MARK'\ntR."),
        "an array of objects": object_array,
        "a scalar with a pickle inside": scalar,
        "something kept elsewhere": opcodes("Pevil\n."),
    }


def _batch(content: Callable[[Path], bytes]) -> Attempt:
    """Attack by a data file; its checksum counts as right."""

    def attempt(here: Path, mark: Path) -> int:
        from project.datamodules.cifar10 import load_array_pickle
        from project.errors import DataError

        file = here / "data_batch_1"
        file.write_bytes(content(mark))
        try:
            load_array_pickle(file)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            return 3
        return 0

    return attempt


def entries() -> Mapping[str, Callable[[tarfile.TarFile, Path], None]]:
    def named(name: Callable[[Path], str]) -> Callable[[tarfile.TarFile, Path], None]:
        def add(tar: tarfile.TarFile, mark: Path) -> None:
            _add(tar, name(mark), b"x")

        return add

    def linked(kind: bytes) -> Callable[[tarfile.TarFile, Path], None]:
        def add(tar: tarfile.TarFile, mark: Path) -> None:
            entry = tarfile.TarInfo("set/wanted")
            entry.type, entry.linkname = kind, str(mark.parent / "secret")
            tar.addfile(entry)

        return add

    def through_link(tar: tarfile.TarFile, mark: Path) -> None:
        entry = tarfile.TarInfo("set")
        entry.type, entry.linkname = tarfile.SYMTYPE, str(mark.parent)
        tar.addfile(entry)
        _add(tar, f"set/{mark.name}", b"x")

    def device(tar: tarfile.TarFile, mark: Path) -> None:
        entry = tarfile.TarInfo("set/wanted")
        entry.type, entry.devmajor, entry.devminor = tarfile.CHRTYPE, 1, 3
        tar.addfile(entry)

    return {
        "a path upwards": named(lambda mark: f"../{mark.name}"),
        "a path upwards below its folder": named(lambda mark: f"set/../../{mark.name}"),
        "an absolute path": named(str),
        "a file behind a link": through_link,
        "a symbolic link": linked(tarfile.SYMTYPE),
        "a hard link": linked(tarfile.LNKTYPE),
        "a device": device,
    }


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _archive(name: str) -> Attempt:
    """Attack by a tar archive; its checksum counts as right."""

    def attempt(here: Path, mark: Path) -> int:
        (here / "secret").write_text("of the user")
        with tarfile.open(here / "set.tar.gz", "w:gz") as tar:
            entries()[name](tar, mark)
        return _unpack(here, "set.tar.gz", ["set/wanted"])

    return attempt


def _bomb(here: Path, mark: Path) -> int:
    with gzip.open(here / "wanted.gz", "wb") as stream:
        for _ in range(50):
            stream.write(bytes(2**20))
    code = _unpack(here, "wanted.gz", ["wanted"])
    written = sum(file.stat().st_size for file in (here / "into" / "below").iterdir())
    if written > 2**20 + 1:
        mark.touch()
    return code


def _unpack(here: Path, name: str, members: list[str]) -> int:
    from project.datamodules.downloads import Archive, ArchiveError, unpack

    into = here / "into" / "below"
    into.mkdir(parents=True)
    try:
        unpack(Archive(name, [], "", 0, members, 2**20), here / name, into)
    except ArchiveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


def _read_checkpoint(here: Path, mark: Path) -> int:
    from project.errors import InputError
    from project.runs import checkpoint_files

    write_torch(here / "evil.ckpt", mark)
    try:
        checkpoint_files.read(here / "evil.ckpt", {})
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
