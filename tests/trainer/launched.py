"""What each process of a launch runs: trainings as a JSON file says, and what came out of them.

``python launched.py WORK.json``: from names to arguments of ``conftest.train``, in order. Each
training writes, for each rank, NAME.RANK.json and NAME.RANK.safetensors beside that file.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from conftest import TASKS, accuracy, train


class Rows(torch.utils.data.Dataset):
    """The task's rows; writes down which were asked for. With ``jitter``, drawn anew each time."""

    def __init__(self, rows: list[dict[str, Any]], jitter: bool) -> None:
        self.rows, self.jitter, self.asked = rows, jitter, []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.asked.append(index)
        row = self.rows[index]
        if not self.jitter:
            return row
        shift = int(torch.randint(1, 20, ()))
        return row | {"input_ids": [3 + (i + shift) % 50 for i in row["input_ids"]]}


class Stream(torch.utils.data.IterableDataset):
    """Rows that come one after another."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.asked = rows, []

    def __iter__(self) -> Any:
        for index, row in enumerate(self.rows):
            self.asked.append(index)
            yield row


def one(here: Path, name: str, given: dict[str, Any]) -> None:
    """Words of this file's own: task, jitter, stream, evaluates, save_model (a folder), shared (one
    output folder for all ranks; else each has its own, to see who writes)."""
    task = TASKS[given.pop("task", "classification")]
    rows: Any = Rows(task.rows, given.pop("jitter", False))
    if given.pop("stream", False):
        rows = Stream(task.rows)
    words: dict[str, Any] = {"train_dataset": rows}
    if given.pop("evaluates", False):
        words |= {"eval_dataset": task.rows[:7], "compute_metrics": accuracy}
        given.setdefault("eval_strategy", "epoch")
    saved, shared = given.pop("save_model", None), given.pop("shared", False)
    rank = int(os.environ.get("RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")))
    done = train(task, here / (name if shared else f"{name}-of-{rank}"), words=words, **given)
    trainer = done.trainer
    if saved:
        trainer.save_model(str(here / saved))
    report = {
        "log": done.log,
        "asked": rows.asked,
        "processes": trainer.args.world_size,
        "rank": trainer.args.process_index,
        "wrapped": type(trainer.model_wrapped).__name__,
        "best": trainer.state.best_global_step,
    }
    weights = done.weights
    if trainer.is_deepspeed_enabled:
        report |= _of_the_engine(trainer)
        weights = _whole(trainer)
    save_file({n: w.contiguous() for n, w in weights.items()}, here / f"{name}.{rank}.safetensors")
    (here / f"{name}.{rank}.json").write_text(json.dumps(report))


def _of_the_engine(trainer: Any) -> dict[str, Any]:
    """How many weights this process holds, and how many numbers its optimizer keeps of them."""
    engine, parameters = trainer.model_wrapped, list(trainer.model.parameters())
    base = getattr(engine.optimizer, "optimizer", engine.optimizer)
    moments = [v for state in base.state.values() for k, v in state.items() if k == "exp_avg"]
    return {
        "stage": engine.zero_optimization_stage(),
        "clipping": engine.gradient_clipping(),
        "held": sum(getattr(p, "ds_tensor", p).numel() for p in parameters),
        "all": sum(getattr(p, "ds_numel", p.numel()) for p in parameters),
        "moments": sum(v.numel() for v in moments),
        "base": f"{type(base).__module__}.{type(base).__name__}",
    }


def _whole(trainer: Any) -> dict[str, torch.Tensor]:
    from deepspeed.utils import safe_get_full_fp32_param

    named = dict(trainer.model.named_parameters())
    if not trainer.model_wrapped.zero_optimization_stage():
        return {n: p.detach().clone() for n, p in named.items()}
    return {n: safe_get_full_fp32_param(p).clone() for n, p in named.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    work = Path(sys.argv[1])
    for name, given in json.loads(work.read_text()).items():
        one(work.parent, name, given)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
