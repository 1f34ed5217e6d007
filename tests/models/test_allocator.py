"""A process that trains keeps what it frees; one that encodes gives it back."""

import os
import subprocess
import sys

import pytest
import torch

PROGRAM = """
import resource, sys
import torch
from luthier.models.allocator import keep_freed_memory
torch.set_num_threads(1)
print(keep_freed_memory())
def work():
    torch.ones(20_000_000).sum()  # 80 MB, freed at once
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(40):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def told(**environment: str) -> tuple[str, int]:
    clean = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "LD_PRELOAD")}
    out = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=clean | environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    kept, faults = out.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_what_is_freed_is_there_for_the_next() -> None:
    kept, faults = told()
    left_alone, asked_anew = told(MALLOC_MMAP_THRESHOLD_="131072")
    assert (kept, left_alone) == ("True", "False")
    assert asked_anew > 100_000
    assert faults < asked_anew / 4  # a few until the heap has found its shape


HOLES = """
import os, sys
import torch
from luthier.models.allocator import give_back, keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    keep_freed_memory()
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
give_back()
blocks = [torch.ones(25_000) for _ in range(8_000)]  # 800 MB in blocks of the heap
del blocks[::2]
before = resident()
print(give_back(), before - resident(), give_back())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize("keep", [False, True])
def test_holes_of_the_heap_are_given_back_once_they_are_large(keep: bool) -> None:
    clean = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "LD_PRELOAD")}
    out = subprocess.run(
        [sys.executable, "-c", HOLES, "keep" if keep else "free"], env=clean,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    done, megabytes, again = out.stdout.split()
    assert again == "False"
    if keep:
        assert done == "False"
    else:
        assert (done, int(megabytes) > 200) == ("True", True)


PROGRAMS = """
import torch
from luthier.models.allocator import bound_primitives
torch.set_num_threads(1)
bound_primitives()
weight = torch.ones(16, 16, 3)
for length in [900, *range(1000, 1300), 900]:
    torch.conv1d(torch.ones(2, 16, length), weight)
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")
@pytest.mark.parametrize(("most", "last"), [(None, "cache_miss"), ("2048", "cache_hit")])
def test_programs_of_hundreds_of_shapes_are_not_kept(most: str | None, last: str) -> None:
    """After 300 other shapes the first is made anew, unless the environment says otherwise."""
    clean = {k: v for k, v in os.environ.items() if k != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    chosen = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": most} if most else {}
    out = subprocess.run(
        [sys.executable, "-c", PROGRAMS], env=clean | chosen | {"ONEDNN_VERBOSE": "2"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    made = [line for line in out.stdout.splitlines() if ",convolution," in line]
    made = [line.split("create:")[1].split(",")[0] for line in made if "create:" in line]
    assert len(made) == 302
    assert made[0] == "cache_miss"
    assert made[-1] == last
