"""Payloads of malicious inputs, and the description of a case."""

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
"""Source of a module on Python's path, as in a malicious package."""


class Touch:
    """Object whose unpickling writes the marker file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return (open, (str(self.mark), "w"))


Attempt = Callable[[Path, Path], int | None]


@dataclass(frozen=True)
class Case:
    """Malicious input.

    Args:
        name: description.
        attempt: passes the input to the code; called with an empty folder and the path of the marker file.
        codes: expected exit codes.
        heavy: the refusal requires torch.
        says: text that the refusal must contain.
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
