"""Checkpoints: when they are written, which are kept, what is in them, and how one goes on."""

import json
import logging
import shutil
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from lines import Line, PreTrainedLine, both, close, fit, line, log, pretrained, trainer
from torch import nn

from conftest import TASKS, collate, llama
from luthier.errors import CorruptBundle
from luthier.trainer.trainer import Trainer

STEPS = {"save_strategy": "steps", "save_steps": 3}


def steps(folder) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in Path(folder).glob("checkpoint-*"))


@pytest.mark.parametrize("make", [Line, pretrained])
def test_written_every_so_many_steps_and_at_the_end(make, tmp_path) -> None:
    _, ours = both(tmp_path, lambda: {"model": make()}, **STEPS)
    theirs_at, ours_at = (steps(tmp_path / f"theirs-{t}") for t in (True, False))
    assert ours_at == theirs_at == [3, 6, 8]
    last = tmp_path / "theirs-False" / "checkpoint-8"
    weights = safetensors.torch.load_file(last / "model.safetensors")
    assert weights["slope"].item() == line(ours)[0]
    assert {"trainer_state.json", "training_args.json"} <= {p.name for p in last.iterdir()}
    assert (last / "config.json").exists() == (make is pretrained)
    if make is pretrained:
        opened = PreTrainedLine.from_pretrained(last)
        assert (opened.slope.item(), opened.offset.item()) == line(ours)


@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_accumulation_steps": 2, "num_train_epochs": 5}, {"optim": "sgd"}],
    ids=str,
)
@pytest.mark.parametrize("make", [Line, pretrained])
def test_resumed_state_and_numbers_are_the_uninterrupted(make, settings, tmp_path) -> None:
    whole = fit(trainer(tmp_path, words={"model": make()}, **(STEPS | settings)))
    for step in (3, 6):
        again = trainer(tmp_path, words={"model": make()}, **(STEPS | settings))
        fit(again, resume=str(tmp_path / f"checkpoint-{step}"))
        assert line(again) == line(whole)
        assert log(again)[:-1] == log(whole)[:-1]
        assert again.state.epoch == whole.state.epoch
        assert again.state.total_flos == whole.state.total_flos


def test_false_starts_anew(tmp_path) -> None:
    first = fit(trainer(tmp_path, **STEPS))
    again = fit(trainer(tmp_path, **STEPS), resume=False)
    assert log(again) == log(first)


def test_another_batch_size_goes_on_at_the_same_number_of_steps(tmp_path) -> None:
    small = {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 20}
    runs = []
    for theirs in (True, False):
        folder = tmp_path / str(theirs)
        fit(trainer(folder, theirs=theirs, max_steps=20, **small))  # of 32 in an epoch
        made = trainer(folder, theirs=theirs, num_train_epochs=7)  # of 4 in an epoch
        runs.append(fit(made, resume=str(folder / "checkpoint-20")))
    assert [made.state.global_step for made in runs] == [28, 28]
    assert [made._train_batch_size for made in runs] == [16, 16]
    assert log(runs[1])[20:-1] == log(runs[0])[20:-1]


def test_more_epochs_than_before(tmp_path) -> None:
    runs = []
    for theirs in (True, False):
        folder, constant = tmp_path / str(theirs), {"lr_scheduler_type": "constant"} | STEPS
        fit(trainer(folder, theirs=theirs, **constant))
        made = trainer(folder, theirs=theirs, num_train_epochs=4, **constant)
        runs.append(fit(made, resume=True))
    whole = fit(trainer(tmp_path / "whole", num_train_epochs=4, **constant))
    assert log(runs[1])[:-1] == log(whole)[:-1]
    assert line(runs[1]) == line(whole) == line(runs[0])


def test_cut_by_max_steps_and_finished_elsewhere(tmp_path) -> None:
    settings = {"gradient_accumulation_steps": 3, "num_train_epochs": 1, "save_strategy": "steps",
                "save_steps": 1, "per_device_train_batch_size": 2}  # fmt: skip
    fit(trainer(tmp_path / "first", max_steps=2, **settings))
    made = trainer(tmp_path / "second", **settings)
    fit(made, resume=str(tmp_path / "first" / "checkpoint-2"))
    assert made.state.global_step == 11  # of 32 batches, three at a time
    assert steps(tmp_path / "second") == list(range(3, 12))


def test_frozen_parameters_stay_frozen(tmp_path) -> None:
    def frozen():
        model = Line(1.5)
        model.slope.requires_grad_(False)
        return {"model": model}

    theirs, ours = both(tmp_path, frozen, **STEPS)
    assert line(ours) == line(theirs)
    assert line(ours)[0] == 1.5
    assert ours.get_num_trainable_parameters() == 1
    again = trainer(tmp_path / "theirs-False", words=frozen(), **STEPS)
    fit(again, resume=str(tmp_path / "theirs-False" / "checkpoint-3"))
    assert line(again) == line(ours)
    assert not again.model.slope.requires_grad


class Diary(nn.Module):
    """Writes down which rows it sees, into a buffer that goes into the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("seen", torch.full((99,), -1.0))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x, labels=None):
        start, self.count = self.count, self.count + len(x)
        self.seen[start : self.count] = x
        return {"loss": (x * self.weight - labels).square().mean()}


def test_rows_come_in_the_same_order_after_resuming(tmp_path) -> None:
    def words():
        return {"model": Diary(), "train_dataset": [{"x": float(i), "labels": 1.0}
                                                    for i in range(10)]}  # fmt: skip

    settings = {"per_device_train_batch_size": 2, "num_train_epochs": 3, "optim": "sgd",
                "save_strategy": "steps", "save_steps": 1}  # fmt: skip
    theirs, ours = both(tmp_path, words, **settings)
    again = trainer(tmp_path / "again", words=words(), **settings)
    fit(again, resume=str(tmp_path / "theirs-False" / "checkpoint-6"))
    assert ours.model.count == 30
    assert torch.equal(ours.model.seen, theirs.model.seen)
    assert torch.equal(again.model.seen, ours.model.seen)


def test_weights_in_shards_are_resumed(tmp_path) -> None:
    """Of theirs; of ours the bytes are known, and weights that were put there are refused."""

    def shard(checkpoint: Path) -> None:
        weights = safetensors.torch.load_file(checkpoint / "model.safetensors")
        (checkpoint / "model.safetensors").unlink()
        files = {name: f"model-{n}-of-2.safetensors" for n, name in enumerate(weights)}
        for name, file in files.items():
            safetensors.torch.save_file({name: weights[name]}, checkpoint / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": files}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))

    theirs, ours = both(tmp_path, lambda: {"model": pretrained()}, **STEPS)
    for name in ("theirs-True", "theirs-False"):
        shard(tmp_path / name / "checkpoint-3")
    again = trainer(tmp_path / "again", words={"model": pretrained()}, **STEPS)
    fit(again, resume=str(tmp_path / "theirs-True" / "checkpoint-3"))
    assert line(again) == line(theirs) == line(ours)
    with pytest.raises(CorruptBundle):
        fit(again, resume=str(tmp_path / "theirs-False" / "checkpoint-3"))


def test_adapters_are_resumed(tmp_path) -> None:
    from peft import LoraConfig, get_peft_model

    rows = TASKS["llama"].rows

    def words():
        torch.manual_seed(3)
        config = LoraConfig(r=2, lora_dropout=0.1, target_modules=["q_proj"], task_type="CAUSAL_LM")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft's, of transformers' names
            model = get_peft_model(llama("CausalLM"), config, "first")
            model.add_adapter("second", config)
        return {"model": model, "train_dataset": rows, "eval_dataset": None,
                "data_collator": collate}  # fmt: skip

    settings = STEPS | {"max_steps": 4, "save_steps": 2, "execution": "padded"}
    whole = fit(trainer(tmp_path, words=words(), **settings))
    again = trainer(tmp_path, words=words(), **settings)
    fit(again, resume=str(tmp_path / "checkpoint-2"))
    for name, weight in whole.model.named_parameters():
        assert torch.equal(dict(again.model.named_parameters())[name], weight), name
    assert log(again)[:-1] == log(whole)[:-1]
    folder = tmp_path / "checkpoint-4"
    assert {p.suffix for p in folder.rglob("*") if p.is_file()} <= {".json", ".safetensors", ".md"}


def test_other_arguments_than_before_are_told(tmp_path, caplog) -> None:
    fit(trainer(tmp_path, **STEPS))
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        made = trainer(tmp_path, save_strategy="steps", save_steps=4, log_level="warning",
                       per_device_train_batch_size=8)  # fmt: skip
        fit(made, resume=str(tmp_path / "checkpoint-3"))
    finally:
        logger.removeHandler(caplog.handler)
    assert "save_steps: 4 (from args) != 3" in caplog.text
    assert "per_device_train_batch_size: 8 (from args) != 16" in caplog.text


def test_only_the_model_where_that_is_asked(tmp_path) -> None:
    fit(trainer(tmp_path, save_only_model=True, **STEPS))
    found = {path.name for path in (tmp_path / "checkpoint-3").rglob("*") if path.is_file()}
    known = {"training_args.json", "manifest.json", "model.safetensors", "trainer_state.json"}
    assert found == known


# --- which are kept, and the best ----------------------------------------------------------------


def scripted(base, scores):
    """A trainer whose evaluations give these scores, the last one for ever."""

    left = list(scores)

    class Scripted(base):
        def evaluate(self, *args, **words):
            score = left.pop(0) if len(left) > 1 else left[0]
            metrics = {"eval_score": score}
            self.log(metrics)
            return metrics

    return Scripted


BEST = {"metric_for_best_model": "score", "greater_is_better": True}
CASES = {
    "no evaluation": ({"save_steps": 1}, [0.5]),
    "no evaluation, one kept": ({"save_steps": 1, "save_total_limit": 1}, [0.5]),
    "every epoch": ({"eval_strategy": "epoch", "save_strategy": "epoch"}, [0.59, 0.57]),
    "saved more often": ({"eval_strategy": "epoch", "save_steps": 1}, [0.59, 0.57]),
    "the first is best, one kept": (
        {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "save_total_limit": 1},
        [0.9, 0.8, 0.7],
    ),
    "evaluated elsewhere": (
        {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 2}, [0.9, 0.8, 0.7],
    ),
    "best only": ({"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "best"},
                  [0.6, 0.65, 0.64]),
    "best only, two kept, loaded": (
        {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best",
         "save_total_limit": 2, "load_best_model_at_end": True}, [0.1, 0.6, 0.7, 0.8, 0.2],
    ),
    "two kept, loaded": (
        {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "save_total_limit": 2,
         "load_best_model_at_end": True, "max_steps": 7}, [0.6, 0.9, 0.4],
    ),
    "one kept, loaded": (
        {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "save_total_limit": 1,
         "load_best_model_at_end": True}, [0.6, 0.9, 0.4],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_which_are_kept_and_which_is_best(name, tmp_path) -> None:
    settings, scores = CASES[name]
    settings = {"save_strategy": "steps"} | BEST | settings
    found = []
    for base in (transformers.Trainer, None):
        theirs, folder = base is not None, tmp_path / str(base is not None)
        kind = scripted(base or Trainer, scores)
        made = fit(trainer(folder, theirs=theirs, kind=kind, words={"model": Line()}, **settings))
        best = made.state.best_model_checkpoint
        found.append((steps(folder), made.state.best_metric, made.state.best_global_step,
                      best and Path(best).name, line(made)))  # fmt: skip
    assert found[1] == found[0]
    if "loaded" in name:
        weights = safetensors.torch.load_file(Path(best) / "model.safetensors")
        assert weights["offset"].item() == line(made)[1]


@pytest.mark.parametrize("make", [Line, pretrained])
@pytest.mark.parametrize("metric", ["loss", "close"])
def test_the_best_is_loaded_and_evaluates_as_it_did(metric, make, tmp_path) -> None:
    def words():
        return {"model": make(1.5, 2.5), "compute_metrics": close}

    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps",
                "save_steps": 2, "load_best_model_at_end": True, "learning_rate": 0.9,
                "metric_for_best_model": metric, "num_train_epochs": 3}  # fmt: skip
    theirs, ours = both(tmp_path, words, **settings)
    assert ours.args.greater_is_better == (metric == "close")
    assert line(ours) == line(theirs)
    found = [entry[f"eval_{metric}"] for entry in log(ours) if f"eval_{metric}" in entry]
    best = max(found) if metric == "close" else min(found)
    assert ours.evaluate()[f"eval_{metric}"] == best


def test_a_best_metric_must_be_named_and_be_there(tmp_path) -> None:
    with pytest.raises(ValueError, match="metric_for_best_model"):
        trainer(tmp_path, eval_strategy="epoch", save_strategy="best")
    made = trainer(tmp_path, eval_strategy="epoch", save_strategy="best",
                   metric_for_best_model="nothing")  # fmt: skip
    with pytest.raises(KeyError, match="eval_nothing"):
        fit(made)


# --- what goes with the model --------------------------------------------------------------------


def test_the_tokenizer_goes_with_the_model(tmp_path) -> None:
    from luthier.testing.models import wordpiece_tokenizer

    tokenizer = wordpiece_tokenizer(120, 32)
    tokenizer.add_tokens(["<one>", "<two>"])

    class Collator:
        """Has a tokenizer, and is all that the trainer knows of one."""

        def __init__(self) -> None:
            self.tokenizer = tokenizer

        def __call__(self, rows):
            return transformers.default_data_collator(rows)

    fit(trainer(tmp_path, words={"data_collator": Collator(), "model": pretrained()}, **STEPS))
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "checkpoint-3")
    assert len(opened) == len(tokenizer)
    made = trainer(tmp_path, words={"processing_class": tokenizer, "model": pretrained()})
    made.save_model()
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert opened("a b <one>").input_ids == tokenizer("a b <one>").input_ids


@pytest.mark.parametrize(
    "make",
    [
        lambda: transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000),
        lambda: transformers.ViTImageProcessor(size={"height": 16, "width": 16}),
    ],
    ids=["sound", "images"],
)
def test_what_prepares_sounds_and_images_goes_with_the_model(make, tmp_path) -> None:
    try:
        processor = make()
    except ImportError as error:
        pytest.skip(str(error))
    trainer(tmp_path, words={"processing_class": processor, "model": pretrained()}).save_model()
    assert type(processor).from_pretrained(tmp_path).to_dict() == processor.to_dict()


def test_a_checkpoint_that_was_taken_away(tmp_path) -> None:
    settings = STEPS | {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True}
    whole = fit(trainer(tmp_path, **settings))
    shutil.rmtree(tmp_path / f"checkpoint-{whole.state.best_global_step}", ignore_errors=True)
    left = steps(tmp_path)
    again = fit(trainer(tmp_path, **settings), resume=str(tmp_path / f"checkpoint-{left[0]}"))
    assert again.state.global_step == 8
    assert again.state.best_metric == whole.state.best_metric
