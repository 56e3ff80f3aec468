"""How the C library's allocator treats the memory of tensors on a CPU."""

import ctypes
import os

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of <malloc.h>
LARGEST_MMAP_THRESHOLD = 32 * 2**20
"""What glibc takes at most on 64 bits."""


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for the next step, instead of giving it back to the system.

    A step frees its activations and gradients, and the next one allocates as many: where glibc gives them
    back, each page is cleared and mapped anew. That is a sixth of a small CNN's training time on a CPU core.
    Larger blocks than `LARGEST_MMAP_THRESHOLD` are given back as ever. Another allocator (`LD_PRELOAD`), or
    settings of glibc's in the environment (`MALLOC_…`, `GLIBC_TUNABLES`), are left as they are.

    Returns:
        Whether that was done.
    """
    if any(name in ("LD_PRELOAD", "GLIBC_TUNABLES") or name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD) and mallopt(TRIM_THRESHOLD, 2**31 - 1))
