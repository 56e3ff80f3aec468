"""What hostile inputs carry, and how one of them is described."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "PAYLOAD_RAN"

PAYLOAD = """
import logging, os, pathlib

MARKED = pathlib.Path(os.environ["MARKED"])
if not MARKED.exists() and os.environ.get("ON_IMPORT"):
    MARKED.touch()

def run(*args, **kwargs):
    MARKED.touch()
    return logging.NullHandler()

class Handler(logging.StreamHandler):
    def __init__(self, *args, **kwargs):
        run()
        super().__init__()

class Launcher:
    def __init__(self, *args, **kwargs):
        run()
"""
"""A module that is on Python's path, as a package of a hostile author might be."""


class Touch:
    """Unpickling it leaves the mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return (open, (str(self.mark), "w"))


Attempt = Callable[[Path, Path], int | None]


@dataclass(frozen=True)
class Case:
    """A hostile input.

    Args:
        name: of it.
        attempt: gives it to the code; called with a folder of its own, and the payload's mark.
        codes: exit codes of a refusal.
        heavy: torch does the refusing.
        says: what the refusal must hold, so that it is no other one.
    """

    name: str
    attempt: Callable[[Path, Path], int | None]
    codes: Sequence[int] = (2, 3)
    heavy: bool = False
    says: str = "error: "


def write_pickle(file: Path, mark: Path) -> None:
    file.write_bytes(pickle.dumps({"state_dict": {}, "epoch": 0, "evil": Touch(mark)}))


def write_torch(file: Path, mark: Path) -> None:
    import torch

    torch.save({"state_dict": {}, "epoch": 0, "evil": Touch(mark)}, file)
