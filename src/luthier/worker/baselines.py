"""The baseline of a search's trials, measured once: they start from the same model.

What a model does before training depends on the model, the data and how it is run, and not on the
learning rate. The engine keeps its measurement beside the run (``before.json``) and measures
nothing where it finds one; a trial is handed that of an earlier one that started from the same.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from luthier.runs.connection import Home
from luthier.runs.records import RunRecord
from luthier.spec import EvaluationCallback
from luthier.store.atomic import write_bytes

BEFORE = "before.json"
#: Fields of training that the untrained model's measurement can depend on.
_OF_TRAINING = ("seed", "device", "precision", "execution", "per_device_eval_batch_size")


def recall_baseline(home: Home, run: RunRecord) -> None:
    """Put an earlier trial's baseline into a trial's folder, where there is one."""
    file, target = _file(home, run), home.run_folder(run) / BEFORE
    if file is None:
        return
    if file.is_file() and not target.exists():
        write_bytes(target, file.read_bytes())


def keep_baseline(home: Home, run: RunRecord) -> None:
    """Keep what a trial has measured for the others."""
    file, found = _file(home, run), home.run_folder(run) / BEFORE
    if file is not None and found.is_file() and not file.exists():
        write_bytes(file, found.read_bytes())


def _file(home: Home, run: RunRecord) -> Path | None:
    """Named by all that decides its content, among those of one search; None for no trial."""
    if run.parent_id is None:
        return None
    data = run.spec.model_dump(mode="json")
    kept = {name: data[name] for name in ("task", "model", "adapter", "data", "processing",
                                          "update", "program")}  # fmt: skip
    kept["training"] = {name: data["training"][name] for name in _OF_TRAINING}
    kept["callbacks"] = [
        c.model_dump(mode="json") for c in run.spec.callbacks if isinstance(c, EvaluationCallback)
    ]
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    return home.cache / "baselines" / run.parent_id / f"{digest}.json"
