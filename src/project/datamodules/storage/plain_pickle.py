"""Reading pickle files that hold plain values and arrays, and nothing that could run."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from project.errors import DataError, summarize

NUMBERS = "biuf"
"""Kinds of NumPy types that an array may hold."""


class PlainUnpickler(pickle.Unpickler):
    """Makes dicts, lists, tuples, words, numbers and NumPy arrays of them; refuses to look up anything else.

    Pickle runs whatever a file names; it names nothing for plain values (Python's documentation, "Restricting
    Globals").
    """

    def find_class(self, module: str, name: str) -> Any:
        """Look up what an array is made by.

        Raises:
            pickle.UnpicklingError: it is something else.
        """
        if (found := MAKERS.get((module, name))) is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no array needs")
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Refuse what is kept elsewhere."""
        raise pickle.UnpicklingError("it refers to something outside")


def load_plain(file: Path) -> Any:
    """Read a pickle file, its words as Latin-1, as the files of Python 2 want it.

    Raises:
        DataError: it is damaged, or holds something else than plain values and arrays.
    """
    try:
        with file.open("rb") as stream:
            return PlainUnpickler(stream, encoding="latin1").load()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # a file that is none may raise anything
        raise DataError(
            f"{file} is no file of arrays ({summarize(error)}); remove it and get it anew"
        ) from error


def _empty_array(subtype: object, shape: object, kind: object) -> np.ndarray:
    """What NumPy's own function makes: an array that is filled afterwards."""
    return np.empty(0, np.int8)


def _dtype(code: str, *options: object) -> np.dtype[Any]:
    made = np.dtype(code)
    if made.kind not in NUMBERS:
        raise pickle.UnpicklingError(f"it holds values of type {code}")
    return np.dtype(code, copy=True)  # its state follows in the file


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes words as {encoding}")
    return text.encode(encoding)


MAKERS: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,  # since NumPy 2
    ("numpy", "ndarray"): object,  # only handed to the former
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,  # by which Python 2's protocols write bytes
}
"""What a file may name, and what is called in its place."""
