"""What users of transformers' trainer rely on: callbacks, subclasses, data of every kind."""

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from torch import nn

from conftest import TASKS, accuracy, bert, collate, train
from luthier.errors import OutOfMemory
from luthier.trainer.trainer import Trainer, TrainingArguments

TASK = TASKS["classification"]
EVALUATED = {"eval_dataset": TASK.rows[:6], "compute_metrics": accuracy}


class Small(nn.Module):
    """A model that needs more memory than there is for more than ``fits`` rows."""

    def __init__(self, fits: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = bert("SequenceClassification", 0.0, num_labels=3)
        self.fits, self.seen = fits, []

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        self.seen.append(len(input_ids))
        if self.training and len(input_ids) > self.fits:
            raise torch.OutOfMemoryError("the allocator says no")
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_out_of_memory_halves_and_goes_on(accumulation, tmp_path) -> None:
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": accumulation}
    runs = []
    for fits in (100, 3):
        model = Small(fits)
        task = type(TASK)(lambda _, model=model: model, TASK.rows)
        runs.append(train(task, tmp_path / str(fits), auto_find_batch_size=True, **settings))
    whole, pieces = runs
    assert pieces.trainer.state.global_step == whole.trainer.state.global_step
    np.testing.assert_allclose(pieces.losses, whole.losses, rtol=1e-5)
    seen = pieces.trainer.model.seen
    assert seen[: seen.index(2)] == {1: [8, 4], 2: [8, 8, 4]}[accumulation]
    assert max(seen[seen.index(2) :]) == 2  # never tried again
    assert pieces.events == whole.events


def test_not_even_one_row(tmp_path) -> None:
    task = type(TASK)(lambda _: Small(0), TASK.rows)
    with pytest.raises(OutOfMemory, match="one row at a time"):
        train(task, tmp_path, auto_find_batch_size=True)
    with pytest.raises(torch.OutOfMemoryError):
        train(task, tmp_path)


def test_early_stopping_stops_where_theirs_does(tmp_path) -> None:
    settings = {
        "num_train_epochs": 30, "eval_strategy": "epoch", "save_strategy": "epoch",
        "load_best_model_at_end": True, "metric_for_best_model": "loss", "save_total_limit": 1,
    }  # fmt: skip
    runs = [
        train(
            TASK, tmp_path / str(theirs), theirs=theirs, words=EVALUATED,
            callbacks=[transformers.EarlyStoppingCallback(2, 0.01)], **settings,
        )
        for theirs in (True, False)
    ]  # fmt: skip
    peer, ours = runs
    assert ours.log == peer.log
    assert ours.events == peer.events
    assert ours.trainer.state.epoch < 30


class Cut(transformers.TrainerCallback):
    """Ends the second epoch after its second step, and training in the fourth."""

    def on_step_end(self, args, state, control, **_):
        control.should_epoch_stop = state.global_step == 8
        control.should_training_stop = state.global_step == 17


def test_epochs_that_are_cut_short(tmp_path) -> None:
    settings = {"num_train_epochs": 5, "eval_strategy": "epoch"}
    peer, ours = (
        train(TASK, tmp_path / str(t), theirs=t, words=EVALUATED, callbacks=[Cut()], **settings)
        for t in (True, False)
    )
    assert ours.log == peer.log
    assert ours.events == peer.events


def test_a_subclass_computes_its_own_loss(tmp_path) -> None:
    def own(base):
        class Weighted(base):
            def compute_loss(self, model, inputs, return_outputs=False, **_):
                labels = inputs.pop("labels")
                outputs = model(**inputs)
                loss = nn.functional.cross_entropy(
                    outputs.logits, labels, torch.tensor([1.0, 2, 3])
                )
                return (loss, outputs) if return_outputs else loss

        return Weighted

    peer, ours = (
        train(TASK, tmp_path / str(base is Trainer), theirs=base is not Trainer, trainer=own(base))
        for base in (transformers.Trainer, Trainer)
    )
    assert ours.log == peer.log


def test_a_loss_function_of_ones_own(tmp_path) -> None:
    def loss(outputs, labels, num_items_in_batch=None):
        total = nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
        return total / num_items_in_batch

    settings = {"gradient_accumulation_steps": 2, "words": {"compute_loss_func": loss}}
    peer, ours = (train(TASK, tmp_path / str(t), theirs=t, **settings) for t in (True, False))
    assert ours.log == peer.log


def test_model_init_optimizers_and_two_trainings(tmp_path) -> None:
    words = {"model_init": lambda: bert("SequenceClassification", 0.1, num_labels=3)}
    peer, ours = (train(TASK, tmp_path / str(t), theirs=t, words=words) for t in (True, False))
    assert ours.log == peer.log
    ours.trainer.train()
    peer.trainer.train()
    assert ours.log == peer.log

    def with_optimizer(theirs):
        torch.manual_seed(1)
        model = TASK.model(0.1)
        optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
        words = {"model": model, "optimizers": (optimizer, schedule)}
        return train(TASK, tmp_path / f"own-{theirs}", theirs=theirs, words=words)

    assert with_optimizer(False).log == with_optimizer(True).log


def test_several_evaluation_sets(tmp_path) -> None:
    words = {"eval_dataset": {"a": TASK.rows[:6], "b": TASK.rows[6:9]}, "compute_metrics": accuracy}
    settings = {"eval_strategy": "epoch", "words": words}
    peer, ours = (train(TASK, tmp_path / str(t), theirs=t, **settings) for t in (True, False))
    assert ours.log == peer.log
    assert {"eval_a_loss", "eval_b_mean"} <= {k for entry in ours.log for k in entry}
    found = [run.trainer.predict(TASK.rows[:5]) for run in (peer, ours)]
    np.testing.assert_array_equal(found[0].predictions, found[1].predictions)
    assert found[0].metrics.keys() == found[1].metrics.keys()


def test_inputs_for_metrics(tmp_path) -> None:
    seen = []

    def metrics(prediction):
        seen.append(prediction.inputs.shape)
        return {}

    words = {"eval_dataset": TASK.rows[:6], "compute_metrics": metrics}
    train(TASK, tmp_path, words=words, eval_strategy="epoch", include_inputs_for_metrics=True)
    assert seen
    assert seen[0][0] == 6


@pytest.mark.parametrize("kind", ["datasets", "list"])
def test_batched_before_hand(kind, tmp_path) -> None:
    rows = [{"input_ids": [3 + i, 4, 5 + i % 7], "attention_mask": [1] * 3, "labels": i % 3}
            for i in range(24)]  # fmt: skip
    batches = [{k: [r[k] for r in rows[s : s + 4]] for k in rows[0]} for s in range(0, 24, 4)]
    data = Dataset.from_list(rows).batch(4) if kind == "datasets" else batches
    words = {"train_dataset": data, "data_collator": None}
    settings = {"train_sampling_strategy": "sequential"}
    batched = train(TASK, tmp_path, words=words, per_device_train_batch_size=1, **settings)
    words = {"train_dataset": rows}
    plain = train(TASK, tmp_path, words=words, per_device_train_batch_size=4, **settings)
    assert batched.losses == plain.losses


def test_columns_that_the_model_does_not_take_are_left_out(tmp_path) -> None:
    rows = Dataset.from_list([row | {"remark": "x"} for row in TASK.rows])
    peer, ours = (
        train(TASK, tmp_path / str(t), theirs=t, words={"train_dataset": rows})
        for t in (True, False)
    )
    assert ours.log == peer.log


def test_tokenizer_is_another_name(tmp_path) -> None:
    from luthier.testing.models import wordpiece_tokenizer

    tokenizer = wordpiece_tokenizer(120, 32)
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    trainer = Trainer(
        model=TASK.model(0.0), args=args, tokenizer=tokenizer, train_dataset=TASK.rows
    )
    assert trainer.processing_class is tokenizer
    assert isinstance(trainer.data_collator, transformers.DataCollatorWithPadding)
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "tokenizer.json").exists()


def test_workers_give_the_same_batches(tmp_path) -> None:
    alone, helped = (
        train(TASK, tmp_path, words={"data_collator": collate}, dataloader_num_workers=n)
        for n in (0, 2)
    )
    assert alone.log == helped.log


def test_a_model_alone_or_a_way_to_make_one(tmp_path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="but not both"):
        Trainer(model=TASK.model(0.0), model_init=lambda: TASK.model(0.0), args=args)
    with pytest.raises(RuntimeError, match="either a `model` or"):
        Trainer(args=args)


def test_a_loss_that_is_no_number_is_left_out_of_the_log(tmp_path) -> None:
    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.calls = 0

        def forward(self, input_ids=None, attention_mask=None, labels=None):
            self.calls += 1
            return {"loss": self.weight.sum() * (float("nan") if self.calls == 3 else 1.0)}

    runs = []
    for theirs in (True, False):
        task = type(TASK)(lambda _: Bad(), TASK.rows)
        settings = {"learning_rate": 0.1, "logging_steps": 2, "max_steps": 4}
        runs.append(train(task, tmp_path / str(theirs), theirs=theirs, **settings))
    assert str(runs[0].log) == str(runs[1].log)
