"""Memory between steps: a training keeps what it frees, encoding gives it back, and both keep few
of the programs that oneDNN makes.

glibc gives a block of more than some megabytes back to the system when it is freed, and asks for
it anew, page by page and zeroed, at the next step: on long texts that took a third of a step
(``docs/speed.md``). A process that does nothing but train, so it is told to keep them.

Blocks between those limits come from the heap, aligned, and glibc before 2.38 finds no room for an
aligned block in the hole that one of the same size has left: small blocks have been put into what
the alignment left beside it. Batches of growing sizes spread over several times what they need,
which ``give_back`` ends; of falling sizes each fits into what the one before has left.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys

#: The parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
#: Bytes that stay at the end of the heap, and of blocks that come from the heap: the most that
#: its argument holds, and what no tensor of a step on a CPU exceeds by much.
_KEPT, _FROM_THE_HEAP = (1 << 31) - 1, 1 << 30
#: Bytes in holes of the heap, and of growth, that are let be. Fewer are asked anew more often: with
#: so many an encoding stays below the peer's memory (``luthier bench peers encode``).
_HOLES = 64 << 20
#: oneDNN makes a program for each shape that it multiplies, and keeps the last 1,024: a quarter of
#: a megabyte each in bf16. Packed texts seldom have a shape twice, but in the layers of one step.
_PRIMITIVES = "256"
#: Whoever has set one of these has decided otherwise.
_DECIDED = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
_keeps = False
#: Bytes that the process held when holes were last given back; 0 before the first look.
_size = 0


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; False where there is no glibc, or the environment
    says what its allocator shall do."""
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _DECIDED):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    global _keeps  # noqa: PLW0603 - as mallopt, of the whole process
    # Older ones take no threshold above 32 MB, and can be told to map nothing at all.
    from_the_heap = mallopt(_MMAP_THRESHOLD, _FROM_THE_HEAP) or mallopt(_MMAP_MAX, 0)
    _keeps = bool(from_the_heap and mallopt(_TRIM_THRESHOLD, _KEPT))
    return _keeps


def bound_primitives() -> None:
    """Let oneDNN keep the programs of a step, not of many. It asks at its first product, and once;
    who has set the variable has decided otherwise."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _PRIMITIVES)


def give_back() -> bool:
    """Return holes of the heap to the system where the process has grown by them; True if it was
    done. Not in a process that keeps what it frees, nor where there is no glibc of 2.33 on."""
    global _size  # noqa: PLW0603 - as malloc_trim, of the whole process
    heap = None if _keeps else _heap()
    if heap is None:
        return False
    size = _resident()
    if size - (_size := min(_size or size, size)) <= _HOLES:
        return False
    # holes that were given back are counted as well, so growth alone says when
    done = heap.mallinfo2().fordblks > _HOLES and bool(heap.malloc_trim(0))
    _size = _resident()
    return done


def _resident() -> int:
    """Bytes of memory that the process holds."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Info(ctypes.Structure):
    """struct mallinfo2 of mallinfo(3); fordblks are the bytes in holes."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks",
                     "uordblks", "fordblks", "keepcost")
    )  # fmt: skip


@functools.cache
def _heap() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _DECIDED):
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return None
    library.mallinfo2.restype = _Info
    return library
