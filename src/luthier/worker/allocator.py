"""The allocator of a process that trains: freed memory is kept for the next step.

glibc gives tensors beyond a limit pages of their own, returns them when they are freed, and asks
for them again in the next step, each page by a fault. The limits are raised as far as mallopt(3)
allows. What it is worth: docs/speed.md, by benchmarks/threads.py.
"""

from __future__ import annotations

import ctypes
import os

#: Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: The most that glibc takes; larger tensors have pages of their own as before.
_LARGEST = 32 << 20
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Set it for this process and those it forks; whether that was possible. What a user has
    said by the environment stands, and other C libraries are left alone."""
    said = any(name.startswith("MALLOC_") for name in os.environ)
    if said or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    # Either one also ends that glibc moves both limits by what it sees freed.
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
