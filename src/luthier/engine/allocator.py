"""Memory that a training has freed is kept for its next step.

glibc gives a block of more than some megabytes back to the system when it is freed, and asks for
it anew, page by page and zeroed, at the next step: on long texts that took a third of a step
(``docs/speed.md``). For a process that does nothing but train, so it is told to keep them.
"""

from __future__ import annotations

import ctypes
import os
import sys

#: The parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
#: Bytes that stay at the end of the heap, and of blocks that come from the heap: the most that
#: its argument holds, and what no tensor of a step on a CPU exceeds by much.
_KEPT, _FROM_THE_HEAP = (1 << 31) - 1, 1 << 30
#: Whoever has set one of these has decided otherwise.
_DECIDED = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; False where there is no glibc, or the environment
    says what its allocator shall do."""
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _DECIDED):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    # Older ones take no threshold above 32 MB, and can be told to map nothing at all.
    from_the_heap = mallopt(_MMAP_THRESHOLD, _FROM_THE_HEAP) or mallopt(_MMAP_MAX, 0)
    return bool(from_the_heap and mallopt(_TRIM_THRESHOLD, _KEPT))
