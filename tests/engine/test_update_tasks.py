"""Models with a task's head that learn on: new rows, and new classes, beside what was learnt."""

import base64
import io
import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

from luthier.engine.control import Interrupted
from luthier.errors import DataError
from luthier.registry import cards
from luthier.spec import parse_spec
from luthier.store.bundle import open_bundle
from luthier.testing.models import tiny_text_model
from luthier.testing.task_models import CHAT_TEMPLATE, tiny_gpt2, tiny_t5, tiny_vit
from luthier.updaters.problems import problems

UPDATERS = [card.name for card in cards("updater") if not card.facts["program"]]
WORDS = {
    "good": ("great", "fine", "lovely"), "bad": ("awful", "poor", "ugly"),
    "red": ("rose", "blood", "brick"), "blue": ("sea", "sky", "ice"),
}  # fmt: skip
#: The classes of each chunk: the second knows none of the first's.
CHUNKS = ("good", "bad"), ("blue", "red")


def _text(i: int, chunk: int) -> dict:
    label = CHUNKS[chunk][i % 2]
    words = np.random.default_rng(100 * chunk + i).choice(WORDS[label], 1 + i % 4)
    return {"text": f"a {' '.join(words)} thing", "label": label}


def _tagged(i: int, chunk: int) -> dict:
    tag = ("LOC", "PER")[chunk]
    words = [*np.random.default_rng(i).choice(WORDS["bad"], 1 + i % 4).tolist(), "lovely", "good"]
    return {"tokens": words, "tags": ["O"] * (len(words) - 2) + [f"B-{tag}", f"I-{tag}"]}


def _image(i: int, chunk: int) -> dict:
    from PIL import Image

    label = CHUNKS[chunk][i % 2]
    shade = 60 * [*CHUNKS[0], *CHUNKS[1]].index(label)
    pixels = np.random.default_rng(i).integers(0, 50, (16, 16, 3)) + shade
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
    return {"image": base64.b64encode(stream.getvalue()).decode(), "label": label}


def _asked(i: int, chunk: int) -> dict:
    context = f"the thing {i} is {WORDS[CHUNKS[chunk][i % 2]][0]}"
    answer = context.rsplit(maxsplit=1)[-1]
    return {
        "question": "what is it", "context": context,
        "answers": {"text": [answer], "answer_start": [context.index(answer)]},
    }  # fmt: skip


def _talk(i: int, chunk: int) -> dict:
    told = {"role": "assistant", "content": CHUNKS[chunk][i % 2]}
    return {"messages": [{"role": "user", "content": _text(i, chunk)["text"]}, told]}


ROWS = {
    "question-answering": _asked,
    "chat-completion": _talk,
    "text-classification": _text,
    "image-classification": _image,
    "token-classification": _tagged,
    "text-generation": lambda i, chunk: {"text": _text(i, chunk)["text"]},
    "summarization": lambda i, chunk: {"document": _text(i, chunk)["text"], "summary": "good"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The tiny model of a task, with dropout."""
    makers = {
        "text-generation": tiny_gpt2, "summarization": tiny_t5, "image-classification": tiny_vit,
        "chat-completion": partial(tiny_gpt2, template=CHAT_TEMPLATE),
    }  # fmt: skip
    made = {}

    def model(task: str) -> Path:
        if task not in made:
            folder = tmp_path_factory.mktemp("models") / "model"
            make = makers.get(task)
            made[task] = (
                make(folder, dropout=0.1)
                if make
                else tiny_text_model(folder, pooling=None, dropout=0.1)
            )
        return made[task]

    return model


@pytest.fixture
def job(tmp_path, models):
    def make(task, chunk=0, updater="ER", start=None, update=None, **training):
        for name, rows in (("train", range(24)), ("eval", range(24, 36))):
            lines = [json.dumps(ROWS[task](i, chunk)) + "\n" for i in rows]
            (tmp_path / f"{name}-{chunk}.jsonl").write_text("".join(lines))
        remembers = next(c for c in cards("updater") if c.name == updater).facts["memory"]
        words = {"per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 1e-3}
        return parse_spec({
            "task": task,
            "model": {"name": str(models(task)), "artifact": start and str(start)},
            "data": {"train": {"uri": str(tmp_path / f"train-{chunk}.jsonl")},
                     "eval": {"uri": str(tmp_path / f"eval-{chunk}.jsonl")}},
            "update": {"updater": updater, **({"memory_size": 12} if remembers else {}),
                       **(update or {})},
            "training": words | {"device": "cpu"} | training,
        })  # fmt: skip

    return make


def table(file: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


@pytest.mark.parametrize("updater", UPDATERS)
def test_an_interrupted_update_is_the_uninterrupted_one_also_with_new_classes(
    updater, job, trained, files_of
):
    start = None
    for chunk in (0, 1):
        spec = job("text-classification", chunk, updater, start)
        assert not problems(spec)
        whole = trained(spec, f"whole-{chunk}")
        for stop in (2, 2):
            if whole.metrics["steps"] < 4:
                break
            with pytest.raises(Interrupted):
                trained(spec, f"parts-{chunk}", stop=stop)
        found = trained(spec, f"parts-{chunk}")
        assert files_of(found.folder) == files_of(whole.folder)
        start = open_bundle(whole.folder).path
    assert len(whole.metrics["update"]["by_chunk"]) == 2
    names = transformers.AutoConfig.from_pretrained(start).id2label
    assert [names[i] for i in range(4)] == ["bad", "good", "blue", "red"]


@pytest.mark.parametrize("task", [task for task in ROWS if task != "text-classification"])
@pytest.mark.parametrize("updater", ["ER", "EWC"])
def test_every_task_learns_on(task, updater, job, trained, files_of):
    start = None
    for chunk in (0, 1):
        spec = job(task, chunk, updater, start)
        assert not problems(spec)
        whole = trained(spec, f"whole-{chunk}")
        with pytest.raises(Interrupted):
            trained(spec, f"parts-{chunk}", stop=3)
        assert files_of(trained(spec, f"parts-{chunk}").folder) == files_of(whole.folder)
        start = open_bundle(whole.folder).path
    assert len(whole.metrics["update"]["by_chunk"]) == 2
    assert len(table(start / "luthier" / "update" / "validation.arrow")) == 24
    if updater == "ER":
        memory = table(start / "luthier" / "update" / "memory.arrow")
        assert len(memory) == 12
        first = [ROWS[task](i, 0) for i in range(24)]
        if task != "image-classification":
            role = memory.column_names[0]
            mine = sum(text in [row.get(role) for row in first]
                       for text in memory.column(role).to_pylist())  # fmt: skip
            assert mine > 0
        else:
            assert {*memory.column("label").to_pylist()} > {"good"}


def test_a_language_model_stays_near_what_it_said(job, trained):
    """The new texts are learnt, and less of the old ones is unlearnt, token by token."""
    loss = {}
    spec = job("text-generation", updater="FineTuning", num_train_epochs=40, learning_rate=3e-3)
    first = trained(spec.changed(eval_steps=10**6), "first")
    for updater, options in (("FineTuning", {}), ("LwF", {"alpha": 3.0, "temperature": 1.0})):
        spec = job(
            "text-generation", 1, updater, first.folder, update={"updater_options": options},
            num_train_epochs=15, learning_rate=2e-3, eval_steps=10**6,
        )  # fmt: skip
        assert not problems(spec)
        loss[updater] = trained(spec, updater).metrics["update"]
    assert loss["LwF"]["score"] == "loss"
    assert loss["LwF"]["by_chunk"][0] < loss["FineTuning"]["by_chunk"][0] - 0.05, loss
    assert loss["LwF"]["by_chunk"][1] < loss["LwF"]["before"][1] - 0.3, loss


def test_replay_keeps_the_classes_of_before(job, trained):
    right = {}
    for updater in ("FineTuning", "ER", "iCaRL"):
        start = None
        for chunk in (0, 1):
            spec = job(
                "text-classification", chunk, updater, start,
                learning_rate=1e-3, num_train_epochs=20, eval_steps=10**6,
            )  # fmt: skip
            start = (found := trained(spec, f"{updater}-{chunk}")).folder
        right[updater] = found.metrics["update"]["by_chunk"]
    assert right["FineTuning"][0] < 0.2, right
    for updater in ("ER", "iCaRL"):
        assert right[updater][0] > right["FineTuning"][0] + 0.3, right
        assert np.mean(right[updater]) > np.mean(right["FineTuning"]) + 0.15, right


def test_a_grown_head_says_of_old_classes_what_it_said(models, tmp_path):
    from luthier.tasks.growing import grow_head
    from luthier.tasks.loading import load_pretrained

    model, _ = load_pretrained(
        "AutoModelForSequenceClassification", str(models("text-classification")), options={},
        config={}, labels=("a", "b"), new_parts=True,
    )  # fmt: skip
    ids = torch.tensor([[2, 7, 9, 3]])
    model.eval()
    before = model(input_ids=ids).logits
    grow_head(model, ("a", "b", "c"), "here")
    after = model(input_ids=ids, labels=torch.tensor([2]))
    assert torch.equal(after.logits[:, :2], before)
    assert after.logits.shape == (1, 3)
    assert after.loss.isfinite()
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_images_are_remembered_by_their_content(job, trained, tmp_path):
    rows = [_image(i, 0) for i in range(24)]
    for i, row in enumerate(rows):
        (tmp_path / f"{i}.png").write_bytes(base64.b64decode(row["image"]))
        row["image"] = f"{i}.png"
    spec = job("image-classification")
    (tmp_path / "train-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = trained(spec, "first")
    for i in range(24):
        (tmp_path / f"{i}.png").unlink()
    second = trained(job("image-classification", 1, start=found.folder), "second")
    memory = table(second.folder / "luthier" / "update" / "memory.arrow")
    assert {"good", "bad"} & {*memory.column("label").to_pylist()}


def test_what_does_not_fit_is_refused(job, trained, tmp_path):
    assert "one class each" in problems(job("text-generation", updater="ER-ACE"))[0].message
    assert "whole rows" in problems(job("token-classification", updater="DER"))[0].message
    first = trained(job("text-classification"), "first")
    spec = job("text-classification", 1, start=first.folder)
    lines = [json.dumps({"text": "a", "text_b": "c", "label": name}) for name in ("x", "y")] * 4
    (tmp_path / "train-1.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match="differ in"):
        trained(spec, "second")


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "text-generation"])
def test_heads_are_watched_on_the_way_and_drift_is_told(task, job, trained):
    first = trained(job(task), "first")
    update = {"drift": "report", "stability_steps": 3}
    told = trained(job(task, 1, start=first.folder, update=update), "second").metrics["update"]
    assert told["drift"]["reference"] == "rows of former updates that were held out"
    assert told["drift"]["decision"] in ("skip", "update", "retrain")
    if task == "text-classification":  # classes that were never there
        assert told["drift"]["decision"] == "retrain"
    assert [point["step"] for point in told["stability"]["curve"]] == [3, 6]
