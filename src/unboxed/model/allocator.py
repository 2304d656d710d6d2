"""Memory of activations on a CPU: kept by the process between forward passes, not returned to the system after each."""

from __future__ import annotations

from functools import lru_cache

import torch

LARGEST_BLOCK_BYTES = 2**25 - 2**16  # a little below 32 MiB, the largest block from which glibc learns


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Once per process: let the C library keep up to 64 MiB of freed memory.

    By default glibc maps a large block anew each time, and returns what is free at the end of its heap: each activation
    of each forward pass is made of new pages, which takes up to half as long as computing it. After a large block was
    freed, glibc keeps blocks of that size, and twice as much at the end of its heap (mallopt(3), M_MMAP_THRESHOLD). The
    block is never written to, so it takes no memory itself; other C libraries ignore it.
    """
    torch.empty(LARGEST_BLOCK_BYTES, dtype=torch.uint8)
