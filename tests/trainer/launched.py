"""What each process of a launch runs: trainings as a JSON file says, and what came out of them.

``python launched.py WORK.json``. Each training of ``trainings`` writes, for each rank, NAME.RANK.json
(log, rows seen, sizes) and NAME.RANK.safetensors (the weights).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

torch.set_num_threads(1)

from conftest import TASKS, Watcher, accuracy, collate, train  # noqa: E402


class Rows(torch.utils.data.Dataset):
    """The task's rows; writes down which were asked for."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.asked = rows, []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.asked.append(index)
        return self.rows[index]


def one(folder: Path, name: str, given: dict[str, Any]) -> None:
    task = TASKS[given.pop("task", "classification")]
    rows = Rows(task.rows)
    words: dict[str, Any] = {"train_dataset": rows}
    if given.pop("evaluates", False):
        words |= {"eval_dataset": task.rows[:7], "compute_metrics": accuracy}
    saved = given.pop("save_model", None)
    done = train(task, folder / given.pop("folder", name), words=words, **given)
    trainer = done.trainer
    rank = trainer.args.process_index
    if saved:
        trainer.save_model(str(folder / saved))
    report = {
        "log": done.log,
        "asked": rows.asked,
        "processes": trainer.args.world_size,
        "local": sum(p.numel() for p in trainer.model.parameters()),
        "rank": rank,
    }
    engine = trainer.model_wrapped
    weights = done.weights
    if trainer.is_deepspeed_enabled:
        from deepspeed.utils import safe_get_full_fp32_param

        report["held"] = sum(
            getattr(p, "ds_tensor", p).numel() for p in trainer.model.parameters()
        )
        report["whole"] = sum(
            getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters()
        )
        report["optimizer"] = type(engine.optimizer).__name__
        weights = {
            n: safe_get_full_fp32_param(p).clone() for n, p in trainer.model.named_parameters()
        } if engine.zero_optimization_stage() else weights
    save_file({n: w.contiguous() for n, w in weights.items()}, folder / f"{name}.{rank}.safetensors")
    (folder / f"{name}.{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    work = Path(sys.argv[1])
    for name, given in json.loads(work.read_text()).items():
        one(work.parent, name, given)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
