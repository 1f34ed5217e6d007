"""Rows and their order: loaders, samplers, streams, columns, smoothed labels, accelerate."""

import json
import random

import numpy as np
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from datasets import Dataset
from lines import Stream, both, fit, line, log, points, trainer
from torch import nn
from transformers.trainer_pt_utils import AcceleratorConfig, LengthGroupedSampler

from conftest import TASKS, collate, texts, train
from luthier.trainer.arguments import ArgumentsError
from luthier.trainer.trainer import Trainer, TrainingArguments

TASK = TASKS["classification"]
LONG = texts(96, lambda rng, length: int(rng.integers(3)), seed=1)


@pytest.mark.parametrize("dropped", [False, True])
def test_sizes_of_loaders(dropped, tmp_path) -> None:
    words = {"train_dataset": points(66), "eval_dataset": points(74)}
    made = trainer(tmp_path, words=words, per_device_eval_batch_size=32,
                   dataloader_drop_last=dropped)  # fmt: skip
    assert made.get_train_dataloader().total_batch_size == 16
    assert len(made.get_train_dataloader()) == 4 + (not dropped)
    assert len(made.get_eval_dataloader()) == 2 + (not dropped)
    assert len(made.get_eval_dataloader(points(128))) == 4
    assert len(made.get_test_dataloader(points(128))) == 4


class Loaders:
    """Two loaders one after the other: not a DataLoader, without a data set."""

    def __init__(self, *loaders) -> None:
        self.loaders = loaders

    def __len__(self) -> int:
        return sum(map(len, self.loaders))

    def __iter__(self):
        for loader in self.loaders:
            yield from loader


def test_loaders_of_ones_own(tmp_path) -> None:
    def own(base):
        class Twice(base):
            def get_train_dataloader(self):
                return Loaders(super().get_train_dataloader(), super().get_train_dataloader())

            def get_eval_dataloader(self, eval_dataset=None):
                return Loaders(super().get_eval_dataloader(eval_dataset))

        return Twice

    theirs, ours = (
        fit(trainer(tmp_path, theirs=base is not Trainer, kind=own(base), eval_strategy="epoch"))
        for base in (transformers.Trainer, Trainer)
    )
    assert ours.state.global_step == 16
    assert log(ours) == log(theirs)


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_of_evaluation(persistent, tmp_path) -> None:
    sets = {"first": points(8), "second": points(12)}
    made = trainer(tmp_path, words={"eval_dataset": sets}, dataloader_num_workers=1,
                   dataloader_persistent_workers=persistent)  # fmt: skip
    loaders = [made.get_eval_dataloader(name) for name in ("first", "second", "first")]
    assert [len(loader.dataset) for loader in loaders] == [8, 12, 8]
    assert (loaders[0] is loaders[2]) == persistent


# --- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("once", [False, True])
def test_streams_are_trained_on(once, tmp_path) -> None:
    """Again and again; one that cannot be read again ends the training."""
    rows = [row | {"remark": 1.0} for row in points(40)]
    settings = {"max_steps": 7, "per_device_train_batch_size": 8,
                "accelerator_config": {"dispatch_batches": False}}  # fmt: skip
    theirs, ours = both(tmp_path, lambda: {"train_dataset": Stream(rows, once)}, **settings)
    assert log(ours) == log(theirs)
    assert ours.state.global_step == theirs.state.global_step == (5 if once else 7)


def test_streams_need_a_number_of_steps(tmp_path) -> None:
    with pytest.raises(ValueError, match="max_steps"):
        trainer(tmp_path, words={"train_dataset": Stream(points(8))})


def test_a_stream_from_datasets(tmp_path) -> None:
    def words():
        stream = Dataset.from_list(points(40)).to_iterable_dataset()
        return {"train_dataset": stream.shuffle(seed=3, buffer_size=16)}

    settings = {"max_steps": 7, "per_device_train_batch_size": 8, "save_strategy": "steps",
                "save_steps": 3}  # fmt: skip
    theirs, ours = both(tmp_path, words, **settings)
    assert log(ours) == log(theirs)
    again = trainer(tmp_path / "again", words=words(), **settings)
    fit(again, resume=str(tmp_path / "theirs-False" / "checkpoint-6"))
    assert line(again) == line(ours)


# --- columns -------------------------------------------------------------------------------------


def test_data_sets_with_and_without_more_columns(tmp_path) -> None:
    rows = points()
    plain = fit(trainer(tmp_path))
    for extra in ({}, {"remark": "text"}):
        named = [{"x": r["x"], "label": r["labels"]} | extra for r in rows]
        words = {"train_dataset": Dataset.from_list(named)}
        assert line(fit(trainer(tmp_path, words=words))) == line(plain)
    tensors = Dataset.from_list(rows).with_format("torch")
    assert line(fit(trainer(tmp_path, words={"train_dataset": tensors}))) == line(plain)


def test_columns_that_are_to_stay_do(tmp_path) -> None:
    seen = set()

    def collator(rows):
        seen.update(rows[0])
        return {name: torch.tensor([row[name] for row in rows]) for name in ("x", "labels")}

    rows = Dataset.from_list([row | {"remark": "a"} for row in points(16)])
    words = {"train_dataset": rows, "data_collator": collator}
    fit(trainer(tmp_path, words=words, remove_unused_columns=False, max_steps=1))
    assert "remark" in seen
    seen.clear()
    fit(trainer(tmp_path, words=words, max_steps=1))
    assert seen == {"x", "labels"}


def test_rows_of_which_nothing_is_left_are_refused(tmp_path) -> None:
    words = {"train_dataset": Dataset.from_list([{"other": 1.0}] * 4)}
    with pytest.raises(ValueError, match=r"(?i)columns"):
        fit(trainer(tmp_path, words=words))


# --- smoothed labels -----------------------------------------------------------------------------


def test_label_smoothing_is_the_one_worked_out(tmp_path) -> None:
    made = train(TASK, tmp_path, dropout=0.0, label_smoothing_factor=0.1, max_steps=1).trainer
    batch = collate(TASK.rows[:5])
    logits = made.model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    log_p = nn.functional.log_softmax(logits, -1)
    hit = -log_p.gather(1, batch["labels"][:, None]).mean()
    expected = 0.9 * hit + 0.1 * -log_p.mean()
    torch.testing.assert_close(made.compute_loss(made.model, dict(batch)), expected)


def test_labels_of_several_classes_are_not_smoothed(tmp_path) -> None:
    model = TASK.model(0.0)
    model.config.problem_type = "multi_label_classification"
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, label_smoothing_factor=0.1)
    with pytest.warns(UserWarning, match="multi-label"):
        made = Trainer(model=model, args=args)
    assert made.label_smoother is None


# --- the order -----------------------------------------------------------------------------------


def lengths_of_batches(tmp_path, **settings) -> list[list[int]]:
    batches = []

    def collator(rows):
        batches.append([len(row["input_ids"]) for row in rows])
        return collate(rows)

    words = {"data_collator": collator, "train_dataset": LONG}
    train(TASK, tmp_path, words=words, per_device_train_batch_size=8, **settings)
    return batches


def test_batches_of_like_length(tmp_path) -> None:
    grouped = lengths_of_batches(tmp_path, group_by_length=True, num_train_epochs=1)
    lengths = [length for batch in grouped for length in batch]
    assert sorted(lengths) == sorted(len(row["input_ids"]) for row in LONG)
    assert lengths[0] == max(lengths)  # so that what does not fit fails soon
    plain = lengths_of_batches(tmp_path, num_train_epochs=1)
    spread = [sum(max(batch) - min(batch) for batch in found) for found in (grouped, plain)]
    assert spread[0] < spread[1]


@pytest.mark.parametrize("kind", [dict, transformers.BatchEncoding])
def test_lengths_are_found_in_rows(kind) -> None:
    rng = random.Random(0)
    rows = [kind({"input_ids": [1] * rng.randrange(5, 25)}) for _ in range(9)]
    rows[4] = kind({"input_ids": [1] * 30})
    order = list(LengthGroupedSampler(3, dataset=rows))
    assert order[0] == 4
    assert sorted(order) == list(range(9))


def test_lengths_of_a_column(tmp_path) -> None:
    rows = Dataset.from_list([r | {"size": len(r["input_ids"])} for r in TASK.rows])
    words = {"train_dataset": rows}
    settings = {"group_by_length": True, "num_train_epochs": 1}
    by_column = train(TASK, tmp_path, words=words, length_column_name="size", **settings)
    assert by_column.losses == train(TASK, tmp_path, words=words, **settings).losses


def test_the_order_follows_its_seed(tmp_path) -> None:
    found = {
        name: lengths_of_batches(tmp_path, num_train_epochs=1, **settings)
        for name, settings in {
            "plain": {}, "again": {}, "seed": {"seed": 7}, "data": {"data_seed": 7},
            "both": {"seed": 3, "data_seed": 7},
        }.items()
    }  # fmt: skip
    assert found["plain"] == found["again"] != found["seed"]
    assert found["seed"] == found["data"] == found["both"]


def test_each_epoch_has_an_order_of_its_own(tmp_path) -> None:
    found = lengths_of_batches(tmp_path, num_train_epochs=2)
    half = len(found) // 2
    assert found[:half] != found[half:]


# --- accelerate's words --------------------------------------------------------------------------

CONFIG = {"split_batches": True, "dispatch_batches": True, "even_batches": False,
          "use_seedable_sampler": False}  # fmt: skip


@pytest.mark.parametrize("given", ["dict", "file", "object"])
def test_accelerator_config(given, tmp_path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    config = {"dict": CONFIG, "file": str(path), "object": AcceleratorConfig(**CONFIG)}[given]
    found = trainer(tmp_path, accelerator_config=config).accelerator
    assert {name: getattr(found, name) for name in CONFIG} == CONFIG


def test_accelerator_config_by_default_and_in_part(tmp_path) -> None:
    for config in (None, {"split_batches": True}):
        found = trainer(tmp_path, accelerator_config=config).accelerator
        assert found.split_batches == bool(config)
        assert found.dispatch_batches is None
        assert found.even_batches
        assert found.use_seedable_sampler


def test_accumulation_by_accelerator_config(tmp_path) -> None:
    def settings():  # the config is emptied by who reads it
        words = {"num_steps": 2, "sync_each_batch": True}
        return {"accelerator_config": {"gradient_accumulation_kwargs": words}}

    theirs, ours = (fit(trainer(tmp_path, theirs=t, **settings())) for t in (True, False))
    assert ours.args.gradient_accumulation_steps == theirs.args.gradient_accumulation_steps == 2
    assert log(ours) == log(theirs)
    with pytest.raises(ValueError, match="num_steps"):
        trainer(tmp_path, gradient_accumulation_steps=4, **settings())
    accelerator = trainer(tmp_path, gradient_accumulation_steps=4).accelerator
    assert accelerator.gradient_accumulation_steps == 1  # the loop does it


def test_an_accelerator_config_must_be_one(tmp_path) -> None:
    with pytest.raises(NotImplementedError, match="callable"):
        trainer(tmp_path, accelerator_config=AcceleratorConfig)


def test_an_accelerator_that_is_there_already(tmp_path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with pytest.raises(ArgumentsError, match=r"(?i)accelerator"):
            trainer(tmp_path, accelerator_config={"use_configured_state": True})
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("config", [{"use_seedable_sampler": False}, {"dispatch_batches": True},
                                    {"split_batches": True}], ids=str)  # fmt: skip
def test_training_under_an_accelerator_config(config, tmp_path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 3, "accelerator_config": config}
    theirs, ours = both(tmp_path, **settings)
    assert log(ours) == log(theirs)
    again = trainer(tmp_path / "again", **settings)
    fit(again, resume=str(tmp_path / "theirs-False" / "checkpoint-6"))
    assert line(again) == line(ours)


def test_batches_rebalanced_by_length_are_those_of_theirs(tmp_path) -> None:
    settings = {"train_sampling_strategy": "batch_rebalance", "num_train_epochs": 2}
    theirs, ours = (
        train(TASK, tmp_path / str(t), theirs=t, words={"train_dataset": TASK.rows}, **settings)
        for t in (True, False)
    )
    assert ours.log == theirs.log
    assert np.isfinite(ours.losses).all()
