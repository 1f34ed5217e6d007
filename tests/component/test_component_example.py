"""The example runs as it is, with the real encoder and without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "component" / "run.sh"


@pytest.mark.slow
@pytest.mark.real
def test_the_example_of_the_components(tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}

    def run():
        done = subprocess.run(
            ["sh", str(SCRIPT), "made"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    first = run()
    for step in ("import", "preprocess", "finetune", "evaluate"):
        assert f"{step}: done in" in first.stderr
    found = json.loads(
        (tmp_path / "made/job-work/evaluate/evaluation_output/metrics.json").read_text()
    )
    assert found["rows"] == 48
    assert found["metrics"]["accuracy"] > 0.6  # one in four would be luck
    assert run().stderr.count("nothing has changed") == 4
