"""Checkpoints: whole or not there, without pickles, and resumed bit for bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from conftest import TASKS, accuracy, train
from luthier.errors import CorruptBundle
from luthier.trainer.checkpoints import NoCheckpoint
from luthier.trainer.trainer import Trainer

TASK = TASKS["classification"]
SETTINGS = {
    "num_train_epochs": 3,
    "gradient_accumulation_steps": 2,
    "eval_strategy": "epoch",
    "save_strategy": "steps",
    "save_steps": 2,
    "logging_steps": 3,
    "warmup_steps": 2,
}


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from TASK.rows


class Jittered(torch.utils.data.Dataset):
    """Rows that are drawn anew each time they are read."""

    def __len__(self) -> int:
        return len(TASK.rows)

    def __getitem__(self, index):
        row = TASK.rows[index]
        shift = int(torch.randint(1, 20, ()))
        return row | {"input_ids": [3 + (i + shift) % 50 for i in row["input_ids"]]}


class Shuffled(Trainer):
    """A sampler of the user's own, which draws from torch's global generator."""

    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.RandomSampler(TASK.rows, replacement=True)


CASES = {
    "plain": ({}, {}, None),
    "the last of an epoch": ({"save_steps": 3}, {}, None),
    "by length": ({"group_by_length": True}, {}, None),
    "workers": ({"dataloader_num_workers": 2}, {"train_dataset": Jittered()}, None),
    "jittered": ({}, {"train_dataset": Jittered()}, None),
    "a stream": ({"max_steps": 9}, {"train_dataset": Stream()}, None),
    "a sampler of one's own": ({}, {}, Shuffled),
    "sgd and cosine": ({"optim": "sgd", "lr_scheduler_type": "cosine"}, {}, None),
    "adafactor": ({"optim": "adafactor"}, {}, None),
    "plateau": (
        {
            "lr_scheduler_type": "reduce_lr_on_plateau",
            "lr_scheduler_kwargs": {"patience": 0},
            "warmup_steps": 0,
        },
        {},
        None,
    ),
    "packed": ({"execution": "packed"}, {}, None),
    "neftune": ({"neftune_noise_alpha": 5.0}, {}, None),
    "best": ({"load_best_model_at_end": True, "save_steps": 3, "eval_steps": 3,
              "eval_strategy": "steps"}, {}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_resumed_is_the_uninterrupted(name, tmp_path) -> None:
    settings, words, kind = CASES[name]
    given = {"eval_dataset": TASK.rows[:6], "compute_metrics": accuracy} | words
    whole = train(TASK, tmp_path, words=given, trainer=kind, **(SETTINGS | settings))
    steps = sorted(int(p.name.split("-")[1]) for p in tmp_path.glob("checkpoint-*"))
    assert len(steps) >= 2
    for step in steps[:-1]:
        again = train(
            TASK,
            tmp_path / "again",
            words=given,
            trainer=kind,
            resume=str(tmp_path / f"checkpoint-{step}"),
            **(SETTINGS | settings),
        )
        assert again.log[:-1] == whole.log[:-1]  # the last is of this call alone
        for key, weight in whole.weights.items():
            assert torch.equal(again.weights[key], weight), (step, key)


def test_true_takes_the_newest_whole_one(tmp_path) -> None:
    whole = train(TASK, tmp_path, **SETTINGS | {"eval_strategy": "no"})
    newest = max(tmp_path.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    again = train(TASK, tmp_path, resume=True, **SETTINGS | {"eval_strategy": "no"})
    for key, weight in whole.weights.items():
        assert torch.equal(again.weights[key], weight)
    weights.write_bytes(weights.read_bytes()[:-1] + b"y")
    with pytest.raises(CorruptBundle, match="not those that were written"):
        train(TASK, tmp_path, resume=str(newest), **SETTINGS | {"eval_strategy": "no"})


@pytest.mark.parametrize("resume", [True, "nowhere"])
def test_nothing_to_resume_from(resume, tmp_path) -> None:
    with pytest.raises(NoCheckpoint, match="there is no"):
        train(TASK, tmp_path, resume=resume)
    with pytest.raises(ValueError, match="there is no"):  # as transformers' callers expect
        train(TASK, tmp_path, resume=resume)


def test_a_checkpoint_holds_no_pickle_and_opens_elsewhere(tmp_path) -> None:
    ours = train(TASK, tmp_path, **SETTINGS | {"eval_strategy": "no"})
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".safetensors"}
    newest = tmp_path / f"checkpoint-{ours.trainer.state.global_step}"
    model = transformers.BertForSequenceClassification.from_pretrained(newest)
    for key, weight in ours.weights.items():
        assert torch.equal(dict(model.named_parameters())[key], weight)
    ours.trainer.save_model(str(tmp_path / "saved"))
    assert json.loads((tmp_path / "saved" / "training_args.json").read_text())["optim"]


def test_goes_on_from_theirs(tmp_path) -> None:
    """A checkpoint that transformers wrote: same losses from there on."""
    settings = SETTINGS | {"eval_strategy": "no", "save_steps": 3, "logging_steps": 1}
    peer = train(TASK, tmp_path, theirs=True, **settings)
    for step in (6, 9):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    peer_again = train(TASK, tmp_path, theirs=True, resume=True, **settings)
    for step in (6, 9):
        shutil.rmtree(tmp_path / f"checkpoint-{step}", ignore_errors=True)
    ours = train(TASK, tmp_path, resume=True, **settings)
    assert ours.log[-5:-1] == peer_again.log[-5:-1]
    assert peer.log[-1] != {}


def test_limits_and_the_best(tmp_path) -> None:
    words = {"eval_dataset": TASK.rows[:6], "compute_metrics": accuracy}
    settings = SETTINGS | {"eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 2,
                           "load_best_model_at_end": True, "logging_steps": 1}  # fmt: skip
    runs = [
        train(TASK, tmp_path / str(theirs), theirs=theirs, words=words, **settings)
        for theirs in (True, False)
    ]
    left = [{p.name for p in Path(tmp_path / str(t)).glob("checkpoint-*")} for t in (True, False)]
    assert left[0] == left[1]
    assert len(left[1]) == 2
    best = [Path(r.trainer.state.best_model_checkpoint).name for r in runs]
    assert best[0] == best[1]
    for key, weight in runs[0].weights.items():
        assert torch.equal(runs[1].weights[key], weight)


def test_ignore_data_skip(tmp_path) -> None:
    settings = SETTINGS | {"eval_strategy": "no", "logging_steps": 1}
    for theirs in (True, False):
        train(TASK, tmp_path / str(theirs), theirs=theirs, **settings)
    runs = [
        train(
            TASK,
            tmp_path / str(theirs),
            theirs=theirs,
            resume=str(tmp_path / str(theirs) / "checkpoint-4"),
            ignore_data_skip=True,
            **settings,
        )
        for theirs in (True, False)
    ]
    assert [r.trainer.state.global_step for r in runs] == [9, 9]
    assert [len(r.losses) for r in runs] == [9, 9]
