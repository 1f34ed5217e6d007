"""What a search's trials have in common, measured once: they start from the same model.

What a model does before training, and how texts go through it fastest and right, depend on the
model, the data and how it is run, and not on the learning rate. The engine keeps both beside the
run (``before.json``, ``resolved.json``) and measures nothing where it finds them; a trial is
handed those of an earlier one that started from the same.
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
RESOLVED = "resolved.json"
#: Decisions that other trials would take alike.
_SHARED = ("execution",)
#: Fields of training that the untrained model's measurement can depend on.
_OF_TRAINING = ("seed", "device", "precision", "execution", "per_device_eval_batch_size")


def recall_baseline(home: Home, run: RunRecord) -> None:
    """Put what an earlier trial has measured into a trial's folder, where there is something."""
    known, folder = _known(home, run), home.run_folder(run)
    if known is None or not known.is_dir():
        return
    for name in (BEFORE, RESOLVED):
        if (known / name).is_file() and not (folder / name).exists():
            write_bytes(folder / name, (known / name).read_bytes())


def keep_baseline(home: Home, run: RunRecord) -> None:
    """Keep what a trial has measured for the others."""
    known, folder = _known(home, run), home.run_folder(run)
    if known is None:
        return
    if (folder / BEFORE).is_file() and not (known / BEFORE).exists():
        write_bytes(known / BEFORE, (folder / BEFORE).read_bytes())
    if (folder / RESOLVED).is_file() and not (known / RESOLVED).exists():
        decided = json.loads((folder / RESOLVED).read_bytes())
        shared = {name: decided[name] for name in _SHARED if name in decided}
        write_bytes(known / RESOLVED, json.dumps(shared).encode())


def _known(home: Home, run: RunRecord) -> Path | None:
    """The folder named by all that decides its content, of one search; None for no trial."""
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
    return home.cache / "baselines" / run.parent_id / digest
