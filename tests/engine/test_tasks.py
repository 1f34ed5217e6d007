"""Every task through the engine: trained, measured, resumed bit for bit, opened elsewhere."""

import base64
import io
import json
import warnings

import numpy as np
import pytest
import torch
import transformers

from luthier.engine.control import Interrupted
from luthier.engine.run import Place, run
from luthier.engine.task_rows import read_examples
from luthier.engine.task_setup import prepare_task
from luthier.errors import SpecError
from luthier.spec import parse_spec
from luthier.testing.models import tiny_text_model
from luthier.testing.task_models import (
    CHAT_TEMPLATE,
    tiny_gpt2,
    tiny_resnet,
    tiny_t5,
    tiny_vit,
)

GOOD, BAD = ("good", "great", "fine", "lovely"), ("bad", "awful", "poor", "ugly")


def _words(i: int) -> str:
    words = np.random.default_rng(i).choice(GOOD if i % 2 else BAD, 1 + i % 5)
    return f"{' '.join(words)} thing"


def _image(i: int) -> str:
    from PIL import Image

    dark = np.random.default_rng(i).integers(0, 60, (16, 16, 3)) + 180 * (i % 2)
    stream = io.BytesIO()
    Image.fromarray(dark.astype(np.uint8)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _tagged(i: int) -> dict:
    words = [*np.random.default_rng(i).choice(BAD, 1 + i % 4).tolist(), "in", "lovely", "good"]
    return {"tokens": words, "tags": ["O"] * (len(words) - 2) + ["B-LOC", "I-LOC"]}


def _asked(i: int) -> dict:
    context = f"the colour of thing {i} is {GOOD[i % 4]} and it is {BAD[i % 4]}"
    answer = GOOD[i % 4]
    return {
        "question": f"colour of thing {i}", "context": context,
        "answers": {"text": [answer], "answer_start": [context.index(answer)]},
    }  # fmt: skip


#: Task → a row by its number.
ROWS = {
    "text-classification": lambda i: {"text": _words(i), "label": ["no", "yes"][i % 2]},
    "token-classification": _tagged,
    "question-answering": _asked,
    "summarization": lambda i: {"document": _words(i), "summary": GOOD[i % 4]},
    "translation": lambda i: {"source": _words(i), "target": BAD[i % 4]},
    "text-generation": lambda i: {"text": _words(i)},
    "chat-completion": lambda i: {
        "messages": [
            {"role": "user", "content": _words(i)},
            {"role": "assistant", "content": GOOD[i % 4]},
        ]
    },
    "image-classification": lambda i: {"image": _image(i), "label": i % 2},
}
MAKERS = {
    "summarization": tiny_t5,
    "translation": tiny_t5,
    "text-generation": tiny_gpt2,
    "chat-completion": lambda folder, dropout: tiny_gpt2(
        folder, dropout=dropout, template=CHAT_TEMPLATE
    ),
    "image-classification": tiny_vit,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The tiny model of a task, with dropout."""
    made = {}

    def model(task: str, dropout: float = 0.1):
        if (task, dropout) not in made:
            folder = tmp_path_factory.mktemp("models") / "model"
            maker = MAKERS.get(task)
            made[task, dropout] = (
                maker(folder, dropout=dropout)
                if maker
                else tiny_text_model(folder, pooling=None, dropout=dropout)
            )
        return made[task, dropout]

    return model


@pytest.fixture
def spec(tmp_path, models):
    def make(task: str, *, dropout: float = 0.1, count: int = 26, **changes):
        file = tmp_path / f"{task}.jsonl"
        file.write_text("".join(json.dumps(ROWS[task](i)) + "\n" for i in range(count)))
        data = {
            "task": task,
            "model": {"name": str(models(task, dropout))},
            "data": {"train": {"uri": str(file)}, "val_split": 0.25},
            "training": {
                "learning_rate": 3e-3, "num_train_epochs": 2, "per_device_train_batch_size": 4,
                "optim": "AdamW", "optim_args": {"weight_decay": 0.1}, "max_grad_norm": 1.0,
                "lr_scheduler_type": "linear",
            },
            "processing": {"generation": {"max_new_tokens": 4}} if task in MAKERS
            and task != "image-classification" else {},
        }  # fmt: skip
        for group, values in changes.items():
            data[group] = {**data.get(group, {}), **values} if isinstance(values, dict) else values
        return parse_spec(data)

    return make


@pytest.fixture
def trained(tmp_path, one_thread):
    """Run a spec in a folder of that name; ``stop`` interrupts it before so many steps."""

    def go(job, name="run", stop=None):
        steps = []

        def tell(kind, data):
            if kind == "step":
                steps.append(data["loss"])

        def control():
            return "interrupt" if stop is not None and len(steps) >= stop else None

        place = Place(tmp_path / name, tmp_path / "cache", None, None)
        return run(job, place, tell, control)

    return go


def losses(outcome) -> list[float]:
    return json.loads((outcome.folder / "luthier" / "history.json").read_text())["losses"]


def weights(outcome) -> bytes:
    return b"".join(p.read_bytes() for p in sorted(outcome.folder.glob("*.safetensors")))


@pytest.mark.parametrize("task", ROWS)
def test_trains_measures_and_opens_elsewhere(task, spec, trained) -> None:
    done = trained(spec(task, dropout=0.0, training={"num_train_epochs": 4}))
    found = losses(done)
    assert np.mean(found[-3:]) < np.mean(found[:3])
    assert {"before", "after", "verdict"} <= done.metrics.keys()
    assert done.metrics["before"].keys() == done.metrics["after"].keys()
    auto = {
        "text-classification": "AutoModelForSequenceClassification",
        "token-classification": "AutoModelForTokenClassification",
        "question-answering": "AutoModelForQuestionAnswering",
        "summarization": "AutoModelForSeq2SeqLM",
        "translation": "AutoModelForSeq2SeqLM",
        "image-classification": "AutoModelForImageClassification",
    }.get(task, "AutoModelForCausalLM")
    getattr(transformers, auto).from_pretrained(done.folder)
    reader = "AutoImageProcessor" if task == "image-classification" else "AutoTokenizer"
    getattr(transformers, reader).from_pretrained(done.folder)
    card = (done.folder / "README.md").read_text()
    assert auto in card
    assert "## Evaluation" in card
    assert "<h2>Training</h2>" in (done.folder / "luthier" / "report.html").read_text()


@pytest.mark.parametrize("task", ROWS)
def test_resumed_is_the_uninterrupted(task, spec, trained) -> None:
    job = spec(task, callbacks=[{"kind": "best_model", "monitor": "val_loss"}])
    whole = trained(job, "whole")
    with pytest.raises(Interrupted):
        trained(job, "cut", stop=3)
    with pytest.raises(Interrupted):
        trained(job, "cut", stop=4)
    again = trained(job, "cut")
    assert losses(again) == losses(whole)
    assert weights(again) == weights(whole)


@pytest.mark.parametrize("task", ["text-classification", "text-generation", "summarization"])
def test_lora(task, spec, trained) -> None:
    job = spec(task, adapter={"lora_r": 2, "lora_dropout": 0.1}, training={"max_steps": 6})
    whole = trained(job, "whole")
    with pytest.raises(Interrupted):
        trained(job, "cut", stop=3)
    again = trained(job, "cut")
    assert losses(again) == losses(whole)
    assert weights(again) == weights(whole)
    from peft import PeftModel
    from safetensors.torch import load_file

    base = transformers.AutoModelForSequenceClassification if task.startswith("text-c") else (
        transformers.AutoModelForCausalLM if task.startswith("text-g")
        else transformers.AutoModelForSeq2SeqLM
    )  # fmt: skip
    start = base.from_pretrained(job.model.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's, of transformers' names
        merged = PeftModel.from_pretrained(start, whole.folder / "luthier" / "adapter")
        merged = merged.merge_and_unload().state_dict()
    saved = load_file(whole.folder / "model.safetensors")
    for name in saved.keys() & merged.keys():
        torch.testing.assert_close(merged[name], saved[name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("task", sorted(ROWS.keys() - {"question-answering"}))
def test_accumulated_equals_the_large_batch(task, spec, trained) -> None:
    # Not the spans of an answer: transformers' loss for them reads the padding of the batch.
    whole = trained(spec(task, dropout=0.0, training={"per_device_train_batch_size": 8}), "whole")
    parts = trained(spec(task, dropout=0.0, training={"gradient_accumulation_steps": 2}), "parts")
    np.testing.assert_allclose(losses(parts), losses(whole), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "text-generation"])
def test_packed_equals_padded(task, spec, trained, tmp_path) -> None:
    packed = trained(spec(task, dropout=0.0), "packed")
    plain = trained(spec(task, dropout=0.0, training={"execution": "padded"}), "plain")
    np.testing.assert_allclose(losses(packed), losses(plain), rtol=2e-4, atol=1e-6)
    setup = prepared(spec(task, dropout=0.1), tmp_path)
    rows = np.arange(8)
    setup.learner.backward(setup.learner.fetch(rows), None)
    assert setup.model.unpadded.calls == {"packed": 2}
    forced = spec("question-answering", dropout=0.0, training={"execution": "packed"})
    with pytest.raises(SpecError, match="cannot be packed: the loss"):
        trained(forced, "forced")


def prepared(job, tmp_path):
    place = Place(tmp_path / "prepared", tmp_path / "cache", None, None)
    data = read_examples(job, place, lambda *_: None)
    return prepare_task(job, place, data, lambda *_: None, lambda: None)


def test_the_losses_of_transformers(spec, trained, tmp_path) -> None:
    """The same rows in the same order, by transformers' own trainer."""
    job = spec("text-classification", dropout=0.0)
    ours = losses(trained(job))
    setup = prepared(job, tmp_path)
    order = [r for e in range(2) for s in range(setup.plan.steps_per_epoch)
             for r in setup.plan.rows(e, s).tolist()]  # fmt: skip

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, train_dataset=None):
            return torch.utils.data.SequentialSampler(train_dataset)

    steps = setup.plan.steps_per_epoch
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path / "peer"), num_train_epochs=1, per_device_train_batch_size=4,
        learning_rate=3e-3, weight_decay=0.1, logging_steps=1, save_strategy="no", use_cpu=True,
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    rows = setup.learner.features.take(np.array(order))
    peer = InOrder(
        setup.model.model, args, train_dataset=rows,
        data_collator=transformers.DataCollatorWithPadding(setup.model.processor),
    )  # fmt: skip
    setup.model.unpadded.remove()
    peer.train()
    theirs = [e["loss"] for e in peer.state.log_history if "loss" in e]
    # In one epoch of twice the rows their schedule is ours, and so are the batches, up to the
    # smaller last one of our first epoch.
    np.testing.assert_allclose(ours[: steps - 1], theirs[: steps - 1], rtol=1e-4)


def test_only_what_may_train_trains(spec, trained) -> None:
    job = spec("text-classification", model={"freeze": True})
    from safetensors.torch import load_file

    saved = load_file(trained(job, "frozen").folder / "model.safetensors")
    start = transformers.AutoModel.from_pretrained(job.model.name).state_dict()
    inside = [n for n in saved if n.startswith("bert.") and n.removeprefix("bert.") in start]
    assert len(inside) > 10
    assert all(torch.equal(saved[n], start[n.removeprefix("bert.")]) for n in inside)
    job = spec("text-classification", model={"num_fixed_layers": 1})
    saved = load_file(trained(job, "fixed").folder / "model.safetensors")
    same = {n for n in inside if torch.equal(saved[n], start[n.removeprefix("bert.")])}
    assert any("layer.0." in n for n in same)
    assert not any("layer.1." in n for n in same)


def test_a_convolutional_model(spec, trained, tmp_path) -> None:
    folder = tiny_resnet(tmp_path / "resnet")
    done = trained(spec("image-classification", model={"name": str(folder)}, count=48,
                        training={"num_train_epochs": 3, "learning_rate": 1e-2}))  # fmt: skip
    assert done.metrics["after"]["accuracy"] > 0.8


def test_convolutions_are_resumed_in_their_layout(spec, trained, tmp_path) -> None:
    """Channels last where not asked for the plain path, whose losses are the same."""
    words = {"model": {"name": str(tiny_resnet(tmp_path / "resnet"))}, "count": 48}
    job = spec("image-classification", **words, training={"max_steps": 6})
    setup = prepared(job, tmp_path)
    layouts = {w.is_contiguous(memory_format=torch.channels_last)
               for w in setup.model.parameters() if w.dim() == 4}  # fmt: skip
    assert layouts == {True}
    whole = trained(job, "whole")
    with pytest.raises(Interrupted):
        trained(job, "cut", stop=3)
    again = trained(job, "cut")
    assert losses(again) == losses(whole)
    assert weights(again) == weights(whole)
    plain = spec("image-classification", **words,
                 training={"max_steps": 6, "execution": "padded"})  # fmt: skip
    np.testing.assert_allclose(losses(trained(plain, "plain")), losses(whole), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"execution": "chunked"}}, "packed or padded"),
        ({"objective": {"loss": "ArcFaceLoss"}}, "the loss of its head"),
        ({"model": {"output_dim": 8}}, "has a head of its own"),
        ({"model": {"options": {"pooler": "mean"}}}, "knows no such option"),
        ({"processing": {"doc_stride": 3}}, "means nothing for text-classification"),
        ({"processing": {"columns": {"labl": "x"}}}, "has no role 'labl'"),
        ({"callbacks": [{"kind": "best_model", "monitor": "accurac"}]}, "does not measure"),
        ({"output": {"to_onnx": True}}, "encoders of vectors only"),
        ({"training": {"sampler": "class"}}, "takes rows at random"),
        ({"training": {"optim": "SparseAdam", "optim_args": {}, "max_grad_norm": 0}}, "vectors"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message, spec) -> None:
    from luthier.admission import check

    problems = check(spec("text-classification", **changes), None, ["cpu"])
    assert any(message in str(p) for p in problems), problems
    assert check(spec("text-classification"), None, ["cpu"]) == []
