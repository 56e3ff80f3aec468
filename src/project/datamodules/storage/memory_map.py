"""Files as tensors without reading them: their pages are loaded when touched, and shared by processes."""

from pathlib import Path

import torch
from torch import Tensor


def map_bytes(file: Path, first: int, count: int) -> Tensor:
    """Return bytes of a file as a tensor (count,) uint8 that takes no memory of this process.

    The mapping is private: writing to the tensor copies the page and leaves the file as it is. The file may
    be replaced or deleted meanwhile, but must not be cut short.

    Raises:
        OSError: the file is not there, or shorter, or cannot be mapped, as on some file systems and under
            some limits of memory.
    """
    size = file.stat().st_size
    if size < first + count:
        raise OSError(f"{file} has {size:,} bytes, not {first + count:,}")
    try:
        return torch.from_file(str(file), shared=False, size=first + count, dtype=torch.uint8)[first:]
    except RuntimeError as error:
        raise OSError(f"{file} cannot be mapped ({error})") from error
