"""The example of continual learning, as it is."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import luthier

FOLDER = Path(__file__).parents[2] / "examples" / "continual"


def test_plain_training_forgets_and_replay_does_not(tmp_path) -> None:
    shutil.copytree(FOLDER, tmp_path / "here", ignore=shutil.ignore_patterns("__pycache__"))
    home = tmp_path / "home"
    done = subprocess.run(
        [sys.executable, "-W", "error", "here/start_training.py"],
        cwd=tmp_path,
        env={**os.environ, "LUTHIER_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    luthier.connect(home).close()
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"(\S+): mean accuracy ([\d.]+)", done.stdout))
    assert float(found["FineTuning"]) < 0.4
    assert float(found["Robust-DER"]) > 0.85
