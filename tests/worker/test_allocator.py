"""Freed memory is kept, where nobody has said otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: Page faults of a second pass over buffers of 24 MB that were freed after the first.
PROBE = """
import resource, sys
from luthier.worker.allocator import keep_freed_memory
done = keep_freed_memory() if sys.argv[1] == "set" else None
import numpy as np
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    kept = [np.ones(24 << 20, np.uint8) for _ in range(4)]
    return len(kept)
step(); before = faults(); step(); print(done, faults() - before)
"""

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or "CS_GNU_LIBC_VERSION" not in os.confstr_names,
    reason="of glibc",
)


def probe(word: str, **environment: str) -> tuple[str, int]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    found = subprocess.run(
        [sys.executable, "-c", PROBE, word],
        env=clean | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    done, faults = found.stdout.split()
    return done, int(faults)


def test_a_second_step_faults_no_pages() -> None:
    pages = (4 * 24 << 20) // os.sysconf("SC_PAGE_SIZE")
    done, faults = probe("set")
    assert done == "True"
    assert faults < pages / 20
    _, plain = probe("plain")
    assert plain > 10 * max(faults, 1)  # else there is nothing to gain here any more


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_TRIM_THRESHOLD_": "1000000"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}],
)
def test_what_the_user_said_stands(environment: dict[str, str]) -> None:
    assert probe("set", **environment)[0] == "False"
