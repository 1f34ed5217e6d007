"""Every parameter of finetune is seen to act, or is refused: a row for each, or the test fails."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from component_world import Steps
from safetensors.torch import load_file
from torch.optim import SGD
from transformers import get_scheduler

from luthier.component.means import chosen
from luthier.doors.component import parse
from luthier.doors.component_table import TABLE
from luthier.engine import loop
from luthier.engine.task_learner import TaskLearner
from luthier.errors import ModelError, SpecError
from luthier.testing.models import tiny_text_model

#: 32 rows, 8 steps an epoch; nothing is measured on the way unless a row asks for it.
QUICK = {"max_steps": 4, "evaluation_strategy": "no"}
LORA = QUICK | {"apply_lora": "true", "learning_rate": 1e-2}
STEPS = {"max_steps": 8, "evaluation_strategy": "steps", "eval_steps": 1}


@dataclass
class Tuned:
    """What a finetune left, as a user finds it."""

    folder: Path
    made: dict[str, Any]
    messages: str

    def _json(self, name: str) -> Any:
        return json.loads((self.folder / ".luthier" / "result" / "luthier" / name).read_text())

    @property
    def losses(self) -> list[float]:
        return self._json("history.json")["losses"]

    @property
    def rates(self) -> list[float]:
        return self._json("history.json")["learning_rates"]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        return self._json("history.json")["evaluations"]

    @property
    def spec(self) -> dict[str, Any]:
        return self._json("spec.json")

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "model.safetensors")

    @property
    def adapter(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        place = self.folder / ".luthier" / "result" / "luthier" / "adapter"
        config = json.loads((place / "adapter_config.json").read_text())
        return config, load_file(place / "adapter_model.safetensors")


@pytest.fixture
def tune(ready):
    """``tune(**flags)``: each call a new run in the same output."""

    def go(**given: Any) -> Tuned:
        ready.told.clear()
        made = ready.tune(**(QUICK | given))
        assert made is not None
        return Tuned(ready.tuned, made, ready.messages)

    go.ready = ready
    return go


@pytest.fixture
def refused(ready):
    def go(**given: Any) -> dict[str, str]:
        with pytest.raises(SpecError) as caught:
            ready.tune(**given)
        assert not ready.tuned.exists()
        return {problem.field: problem.message for problem in caught.value.problems}

    return go


@pytest.fixture(scope="module")
def plain(tmp_path_factory, _ready_once, tiny):
    """Losses, rates and weights of QUICK."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = Steps(tmp_path_factory.mktemp("plain"), tiny)
    made.selected, made.prepared = _ready_once.selected, _ready_once.prepared
    found = Tuned(made.tuned, made.tune(**QUICK), made.messages)
    lora = Steps(tmp_path_factory.mktemp("plain-lora"), tiny)
    lora.selected, lora.prepared = made.selected, made.prepared
    found.lora = Tuned(lora.tuned, lora.tune(**LORA), lora.messages)
    torch.set_num_threads(threads)
    return found


@pytest.fixture
def still(tmp_path):
    """The steps with a model without dropout."""
    model = tiny_text_model(tmp_path / "model", pooling=None)
    made = Steps(tmp_path, lambda _: model)
    made.select()
    made.prepare()
    return made


#: Parameter → how it is seen to act.
SEEN: dict[str, Any] = {}


def seen(*names):
    """Marks how parameters are seen to act."""

    def mark(function):
        SEEN.update(dict.fromkeys(names, function))
        return function

    return mark


# --- folders ---------------------------------------------------------------------------------


@seen("preprocess_output", "model_selector_output")
def _what_is_read(tmp_path, plain, name):
    """Another model, or other rows for it: another first loss, of that model on those rows."""
    seed = 1 if name == "model_selector_output" else 0
    model = tiny_text_model(tmp_path / "model", pooling=None, dropout=0.1, seed=seed)
    other = Steps(tmp_path, lambda _: model)
    other.select()
    other.prepare(**({"seed": 7} if name == "preprocess_output" else {}))
    other.tune(**QUICK)
    assert Tuned(other.tuned, {}, "").losses[0] != plain.losses[0]


@seen("pytorch_model_folder", "mlflow_model_folder")
def _what_is_written(tune, tmp_path):
    tune(pytorch_model_folder=tmp_path / "here", mlflow_model_folder=tmp_path / "there")
    assert (tmp_path / "here" / "model.safetensors").is_file()
    assert (tmp_path / "there" / "MLmodel").is_file()
    assert not tune.ready.tuned.exists()


# --- LoRA ------------------------------------------------------------------------------------


@seen("apply_lora")
def _lora(tune):
    config, weights = tune(**LORA).adapter
    assert config["peft_type"] == "LORA"
    assert any("lora_A" in name for name in weights)


@seen("merge_lora_weights")
def _unmerged(tune):
    tuned = tune(**LORA, merge_lora_weights="false")
    assert (tuned.folder / "adapter_model.safetensors").is_file()
    assert not (tuned.folder / "model.safetensors").exists()


@seen("lora_r")
def _rank(tune):
    _, weights = tune(**LORA, lora_r=3).adapter
    assert {w.shape[0] for n, w in weights.items() if "lora_A" in n} == {3}


@seen("lora_alpha", "lora_dropout", "use_rslora", "use_dora")
def _kinds_of_lora(tune, plain, name):
    value = {"lora_alpha": 4, "lora_dropout": 0.5}.get(name, True)
    tuned = tune(**LORA, **{name: value})
    assert tuned.adapter[0][name] == value
    if name != "lora_dropout":  # which draws other masks in the model as well
        assert tuned.losses[0] == pytest.approx(plain.lora.losses[0], rel=1e-5)  # B is zero
    assert tuned.losses[2:] != plain.lora.losses[2:]
    assert f"{name} has no effect: apply_lora is false" in tune(**{name: value}).messages


@seen("lora_target_modules")
def _targets(tune):
    _, weights = tune(**LORA, lora_target_modules="key").adapter
    assert {n.split(".lora_A")[0].rpartition(".")[2] for n in weights if "lora_A" in n} == {"key"}


# --- training --------------------------------------------------------------------------------


@seen("num_train_epochs", "max_steps")
def _length(tune):
    assert len(tune(num_train_epochs=2, max_steps=-1).losses) == 16
    assert len(tune(num_train_epochs=2, max_steps=3).losses) == 3


@seen("learning_rate")
def _rate(tune, refused):
    assert tune(learning_rate=3e-4).rates[0] == 3e-4


@seen("per_device_train_batch_size", "gradient_accumulation_steps")
def _batch(tune):
    large = tune(per_device_train_batch_size=8, num_train_epochs=1, max_steps=-1)
    parts = tune(gradient_accumulation_steps=2, num_train_epochs=1, max_steps=-1)
    assert len(large.losses) == len(parts.losses) == 4
    assert parts.spec["training"]["gradient_accumulation_steps"] == 2


@seen("per_device_eval_batch_size")
def _evaluation_batch(tune, monkeypatch):
    sizes, loss = [], TaskLearner.loss

    def heard(self, batch):
        sizes.append(sum(len(part["input_ids"]) for part in batch))
        return loss(self, batch)

    monkeypatch.setattr(TaskLearner, "loss", heard)
    tune(per_device_eval_batch_size=3, evaluation_strategy="steps", eval_steps=2, max_steps=2)
    assert max(sizes) == 3


@seen("auto_find_batch_size")
def _halves(still, monkeypatch):
    """Memory for two rows at a time: the step that fails is done again, with the same losses."""
    still.tune(**QUICK)
    expected, went, loss = Tuned(still.tuned, {}, "").losses, [], TaskLearner._loss

    def narrow(self, part):
        rows = len(part["labels"])
        if rows > 2:
            raise torch.OutOfMemoryError("out of memory")
        went.append(rows)
        return loss(self, part)

    monkeypatch.setattr(TaskLearner, "_loss", narrow)
    still.tune(**QUICK, auto_find_batch_size="true")
    assert still.messages.count("going on with 2 rows at a time, same effective batch") == 1
    assert went == [2] * 8  # four steps of two halves each
    found = Tuned(still.tuned, {}, "")
    assert found.losses == pytest.approx(expected, rel=1e-5)
    assert found.spec["training"]["per_device_train_batch_size"] == 4
    assert "auto_find_batch_size: a batch that does not fit" in still.messages


# --- accelerators ----------------------------------------------------------------------------


@seen("apply_ort")
def _onnx_runtime(refused):
    assert "ONNX Runtime training is no longer made" in refused(apply_ort="true")["apply_ort"]


@seen("apply_deepspeed", "deepspeed")
def _deepspeed(tune, tmp_path, refused):
    """In real processes: test_component_deepspeed.py."""
    args = parse("finetune", tune.ready.flags(apply_deepspeed="true"))
    assert chosen(args, "bf16")[0].deepspeed["zero_optimization"]["stage"] == 2
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimization": {"stage": 3}, "gradient_clipping": 9}')
    told = refused(apply_deepspeed="true", deepspeed=file)
    assert "max_grad_norm" in told["deepspeed.gradient_clipping"]
    assert "deepspeed has no effect: apply_deepspeed is false" in tune(deepspeed=file).messages


@seen("apply_compile")
def _compiler(refused, monkeypatch):
    """Compiled for real: test_compiled_steps_are_the_plain_ones."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "there is no no-such-compiler" in refused(apply_compile="true")["apply_compile"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's own, in itself
def test_compiled_steps_are_the_plain_ones(still) -> None:
    still.tune(num_train_epochs=2)
    expected = Tuned(still.tuned, {}, "").losses
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    made = still.tune(num_train_epochs=2, apply_compile="true")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert torch._dynamo.utils.counters["inductor"]  # and torch's own C++ was made of them
    assert Tuned(still.tuned, {}, "").losses == pytest.approx(expected, rel=1e-5)
    found = made["metrics"]["compile"]
    assert found["compile_s"] > found["plain_step_s"] > 0
    assert found["compiled_step_s"] > 0
    assert "compiled in" in still.messages


# --- optimizer and schedule ------------------------------------------------------------------


@seen("optim")
def _optimizers(tune, plain):
    assert tune(optim="adamw_torch").losses == plain.losses
    assert "adamw_hf is an alias of adamw_torch" in plain.messages
    assert tune(optim="adafactor").losses[1:] != plain.losses[1:]


@seen("warmup_steps")
def _warmup(tune):
    assert tune(warmup_steps=2, learning_rate=1e-3).rates[:3] == pytest.approx([0, 5e-4, 1e-3])


@seen("weight_decay")
def _decay(tune):
    """Of one step: rate * decay * weight, and nothing of biases and norms."""
    one = {"max_steps": 1, "learning_rate": 1e-2}
    without = tune(**one).weights
    start = load_file(tune.ready.selected / "model.safetensors")
    found = tune(**one, weight_decay=0.5).weights
    compared = 0
    for name, weight in start.items():
        if f"bert.{name}" not in found or "pooler" in name:
            continue
        spared = name.endswith("bias") or "LayerNorm" in name
        expected = without[f"bert.{name}"] - (0 if spared else 1e-2 * 0.5 * weight)
        torch.testing.assert_close(found[f"bert.{name}"], expected, rtol=1e-5, atol=1e-7)
        compared += 1
    assert compared > 30


@seen("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm")
def _adam(tune, plain, name):
    # clipped to far less than epsilon, gradients move next to nothing
    value = {"adam_epsilon": 1.0, "max_grad_norm": 1e-12}.get(name, 0.5)
    tuned = tune(**{name: value})
    assert tuned.losses[0] == plain.losses[0]
    assert tuned.losses[-1] != plain.losses[-1]


@seen("lr_scheduler_type")
def _schedules(tune):
    (row,) = (p for p in TABLE["finetune"] if p.name == "lr_scheduler_type")
    for kind in row.choices:
        warmup = 0 if kind == "constant" else 1
        rates = tune(lr_scheduler_type=kind, warmup_steps=warmup).rates
        optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        schedule = get_scheduler(kind, optimizer, warmup, 4)
        expected = []
        for _ in rates:
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert rates == pytest.approx(expected), kind


# --- the rest --------------------------------------------------------------------------------


@seen("precision")
def _precision(tune, plain, refused):
    tuned = tune(precision=16)
    assert tuned.spec["training"]["precision"] == "bf16"
    assert tuned.losses != plain.losses
    assert tuned.losses == pytest.approx(plain.losses, rel=3e-2)  # bf16 has 8 digits of mantissa
    assert {w.dtype for w in tuned.weights.values()} == {torch.float32}


@seen("seed")
def _seed(tune, plain):
    assert tune(seed=42).losses == plain.losses
    assert tune(seed=43).losses != plain.losses


@seen("dataloader_num_workers")
def _readers(tune, plain, monkeypatch):
    started, pool = [], loop.ThreadPoolExecutor
    monkeypatch.setattr(loop, "ThreadPoolExecutor", lambda n: started.append(n) or pool(n))
    assert tune(dataloader_num_workers=3).losses == plain.losses
    assert started == [3]


@seen("ignore_mismatched_sizes")
def _mismatch(tmp_path, tiny, ready):
    """A head for other classes: drawn anew, or refused."""
    import transformers

    head = tmp_path / "head"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tiny("SingleLabelClassification"), num_labels=5
    )
    model.save_pretrained(head)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny("SingleLabelClassification"))
    tokenizer.save_pretrained(head)
    other = Steps(tmp_path, lambda _: head)
    other.select()
    other.prepare()
    with pytest.raises(ModelError, match="ignore_mismatched_sizes"):
        other.tune(**QUICK, ignore_mismatched_sizes="false")
    other.tune(**QUICK)
    assert Tuned(other.tuned, {}, "").weights["classifier.weight"].shape[0] == 2


@seen("evaluation_strategy", "eval_steps", "evaluation_steps_interval")
def _when_it_is_measured(tune, ready):
    def at(**given):
        return [e["step"] for e in tune(max_steps=8, **given).evaluations if "val_loss" in e]

    assert at(evaluation_strategy="no") == []
    assert at(evaluation_strategy="epoch") == [8]
    assert at(evaluation_strategy="steps", eval_steps=3) == [3, 6]
    quarter = {"evaluation_strategy": "steps", "eval_steps": 3, "evaluation_steps_interval": 0.25}
    assert at(**quarter) == [2, 4, 6, 8]
    with pytest.raises(SpecError, match="evaluation_steps_interval"):
        ready.tune(evaluation_strategy="steps", evaluation_steps_interval=1.5)


@seen("logging_strategy", "logging_steps")
def _when_it_is_told(tune):
    def lines(**given):
        return [m.split()[1] for m in tune(max_steps=8, **given).messages.split("\n")
                if m.startswith("step ")]  # fmt: skip

    assert lines(logging_strategy="epoch", logging_steps=3) == ["8"]
    assert lines(logging_strategy="steps", logging_steps=3) == ["3", "6", "8"]


@seen("metric_for_best_model")
def _best(tune, refused):
    for metric, key, best in (("loss", "val_loss", min), ("accuracy", "accuracy", max)):
        tuned = tune(**STEPS, metric_for_best_model=metric, learning_rate=1e-2)
        values = [e[key] for e in tuned.evaluations]
        first = 1 + values.index(best(values))
        assert f"the best model is that of step {first}" in tuned.messages
    assert tuned.spec["callbacks"][0]["monitor"] == "accuracy"


@seen("save_total_limit")
def _checkpoints(tune):
    def kept(**given):
        return tune(**STEPS | {"eval_steps": 2}, **given).made["checkpoints"]

    assert kept() == ["checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-8"]
    assert kept(save_total_limit=1) == ["checkpoint-8"]


@seen("apply_early_stopping", "early_stopping_patience", "early_stopping_threshold")
def _stops_early(tune, refused):
    """Nothing improves by ten: it stops after so many measurements in vain."""
    hard = {"apply_early_stopping": "true", "early_stopping_threshold": 10}
    assert len(tune(**STEPS).losses) == 8
    for patience in (1, 2):
        tuned = tune(**STEPS, **hard, early_stopping_patience=patience)
        assert len(tuned.losses) == 1 + patience
        assert "stopping early: val_loss no longer improves" in tuned.messages
    free = tune(**STEPS, apply_early_stopping="true", early_stopping_threshold=0)
    values = [e["val_loss"] for e in free.evaluations]
    falls = [later < min(values[: n + 1]) for n, later in enumerate(values[1:])]
    assert all(falls[:-1])  # it went on as long as it improved, by however little


@seen("resume_from_checkpoint")
def _goes_on(tune):
    """Stopped, killed and resumed: test_component_resume.py."""
    tune(**STEPS, lr_scheduler_type="constant")
    more = STEPS | {"max_steps": 12, "lr_scheduler_type": "constant"}
    assert "resuming after step 8 of 12" in tune(**more, resume_from_checkpoint="true").messages
    assert "resuming" not in tune(**more).messages


# --- what is refused -------------------------------------------------------------------------


def test_few_bits_of_a_whole_model_are_refused(refused) -> None:
    assert "trains only by adapters" in refused(precision=8)["precision"]


# --- the rows --------------------------------------------------------------------------------


def _wants(how) -> tuple[str, ...]:
    return how.__code__.co_varnames[: how.__code__.co_argcount]


def _rows():
    """One for several parameters, where their rows need not know which one it is."""
    once = {}
    for name, how in SEEN.items():
        once.setdefault((how, name if "name" in _wants(how) else ""), name)
    return sorted(once.values())


@pytest.mark.parametrize("name", _rows())
def test_a_parameter_acts_or_is_refused(name, request) -> None:
    how = SEEN[name]
    how(**{n: name if n == "name" else request.getfixturevalue(n) for n in _wants(how)})


def test_every_parameter_has_a_row() -> None:
    assert set(SEEN) == {parameter.name for parameter in TABLE["finetune"]}
