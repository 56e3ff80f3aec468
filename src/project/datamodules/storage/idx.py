"""The idx format of MNIST: a header of big-endian words, then the values."""

import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from project.datamodules.storage.memory_map import map_bytes
from project.errors import DataError

UNSIGNED_BYTES = 0x08


def map_idx(file: Path, name: str) -> Tensor:
    """Map an idx file of unsigned bytes.

    Args:
        file: two zero bytes, the type, the number of dimensions, a word of 32 bits for each of them, and the
            values (http://yann.lecun.com/exdb/mnist, "The IDX file format").
        name: as in `data=…`, for messages.

    Returns:
        Its values, uint8, with the file's dimensions; its memory is the file's.

    Raises:
        DataError: the file is missing, or not what its header says.
    """
    try:
        with file.open("rb") as stream:
            zeros, kind, dimensions = struct.unpack(">HBB", stream.read(4))
            shape = struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))
    except (OSError, struct.error) as error:
        raise _damaged(file, name, str(error)) from error
    if (zeros, kind) != (0, UNSIGNED_BYTES) or not 1 <= dimensions <= 3:
        raise _damaged(file, name, f"it begins with {zeros:04x}{kind:02x}{dimensions:02x}, not 0000080…")
    first, count = 4 + 4 * dimensions, math.prod(shape)
    size = file.stat().st_size
    if size != first + count or not count:
        sides = "×".join(map(str, shape))
        raise _damaged(file, name, f"{size:,} bytes, but {sides} values take {first + count:,}")
    try:
        return map_bytes(file, first, count).view(shape)
    except OSError:  # read it instead
        return torch.from_numpy(np.fromfile(file, dtype=np.uint8, offset=first)).view(shape)


def _damaged(file: Path, name: str, problem: str) -> DataError:
    return DataError(
        f"paths.data: {file} of data={name} is damaged ({problem}); remove it, and it is downloaded anew"
    )
