"""The examples run as they are, but for a tiny model in the place of the real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A home of their own, with a worker that serves it."""
    home = str(tmp_path_factory.mktemp("examples") / "home")
    found = {**os.environ, "LUTHIER_HOME": home, "LUTHIER_WORKER": "none", "OMP_NUM_THREADS": "1"}
    worker = subprocess.Popen(
        [sys.executable, "-m", "luthier", "worker"],
        env=found,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield found
    worker.send_signal(signal.SIGTERM)
    worker.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example, environment, tiny_model, tmp_path):
    source = example.read_text(encoding="utf-8")
    assert source.count('"all-minilm-l6-v2"') in (1, 2)
    script = tmp_path / example.name
    script.write_text(source.replace('"all-minilm-l6-v2"', repr(str(tiny_model))))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ndcg" in done.stdout or "better" in done.stdout or "difference" in done.stdout
