"""Starts ``finetunes.py`` in real processes, and reads what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from component_world import Steps
from safetensors.torch import load_file

from luthier.testing.models import tiny_text_model

HERE = Path(__file__).parent
_TIMEOUT_S = 200
#: What a launch of ours must find by itself.
_LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
           "DS_ACCELERATOR")  # fmt: skip
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")


class World:
    """A prepared text classification, and finetunes of it in folders beside each other."""

    def __init__(self, folder: Path, *, dropout: float = 0.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        model = tiny_text_model(folder / "model", pooling=None, dropout=dropout)
        self.steps = Steps(folder, lambda _: model)
        self.steps.select()
        self.steps.prepare(43)  # 35 rows: the last batch of an epoch is cut unevenly

    def flags(self, name: str, **given: Any) -> dict[str, str]:
        """Of a finetune into a folder of that name."""
        self.steps.tuned = self.folder / name
        self.steps.mlflow = self.folder / f"{name} mlflow"
        return self.steps.flags(**given)

    def here(self, name: str, **given: Any) -> dict[str, Any]:
        """In this process."""
        self.flags(name)
        return self.steps.tune(**given)

    def losses(self, name: str) -> list[float]:
        file = self.folder / name / ".luthier" / "result" / "luthier" / "history.json"
        return json.loads(file.read_text())["losses"]

    def weights(self, name: str) -> dict[str, Any]:
        return load_file(self.folder / name / "model.safetensors")


def environment() -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if k not in _LAUNCH}
    return clean | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def launch(
    folder: Path, processes: int, work: list[tuple[str, dict[str, str]]], *, deepspeed: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Reports by name and rank. processes 0: one, without a launcher."""
    file = folder / "work.json"
    file.write_text(json.dumps(work))
    launcher = [*TORCHRUN, str(processes)] if processes else []
    done = subprocess.run(
        [sys.executable, *launcher, str(HERE / "finetunes.py"), str(file)],
        env=environment() | ({"WATCH_DEEPSPEED": "1"} if deepspeed else {}),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_TIMEOUT_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:]
    ranks = range(max(1, processes))
    found = {
        n: [json.loads((folder / f"{n}.{r}.json").read_text()) for r in ranks] for n, _ in work
    }
    codes = {name: [report["code"] for report in reports] for name, reports in found.items()}
    assert {code for each in codes.values() for code in each} == {0}, (codes, done.stdout[-2500:])
    return found
