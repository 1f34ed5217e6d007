"""LoRA: the model is what it was before training, merged it is what it was trained to be, and
nothing but the adapters has moved."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from luthier.engine.run import run
from luthier.errors import ModelError, SpecError
from luthier.models.adapters import add_lora, merge, merged, trainable
from luthier.models.loading import load_text_model, open_text_model
from luthier.spec import AdapterSpec, ModelSpec, parse_spec
from luthier.testing.models import tiny_text_model

TEXTS = ["banana lemon", "a", "the quick brown fox", "river stone"]


@pytest.fixture
def load(tmp_path):
    def load_it(family="bert", spec=None, adapter=None, **words):
        path = tiny_text_model(tmp_path / family, family)
        model = load_text_model(
            ModelSpec(name=str(path), **words), artifact=None, device="cpu"
        ).eval()
        add_lora(model, adapter or AdapterSpec(lora_r=4), str(path))
        return model.eval()

    return load_it


def moved(model) -> None:
    """As if it had been trained: B is no longer zero."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "distilbert", "llama", "modernbert", "mpnet"]
)
@pytest.mark.parametrize("dora", [False, True])
def test_merged_vectors_are_the_adapted_ones(load, tmp_path, family, dora) -> None:
    adapter = AdapterSpec(lora_r=4, lora_alpha=16, use_dora=dora, target_modules="all-linear")
    model = load(family, adapter=adapter)
    plain = open_text_model(tmp_path / family, device="cpu")
    np.testing.assert_allclose(model.encode(TEXTS), plain.encode(TEXTS), atol=1e-6)
    moved(model)
    adapted = model.encode(TEXTS)
    assert np.abs(adapted - plain.encode(TEXTS)).max() > 1e-3
    before = {n: p.clone() for n, p in model.named_parameters()}
    with merged(model):
        np.testing.assert_allclose(model.encode(TEXTS), adapted, atol=2e-6)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    model.save(tmp_path / "saved")
    np.testing.assert_allclose(
        open_text_model(tmp_path / "saved", device="cpu").encode(TEXTS), adapted, atol=2e-6
    )
    merge(model)
    assert not any("lora" in n for n, _ in model.named_parameters())
    np.testing.assert_allclose(model.encode(TEXTS), adapted, atol=2e-6)


def test_only_adapters_and_heads_train(load) -> None:
    model = load(output_dim=8)
    names = set(trainable(model))
    assert {n.split(".")[-3] for n in names if "lora" in n} == {"lora_A", "lora_B"}
    assert {n for n in names if "lora" not in n} == {
        f"sentence_transformer.{i}.linear.{w}" for i in (2, 3) for w in ("weight", "bias")
    }


def test_fixed_layers_get_none(load) -> None:
    names = [n for n in trainable(load(num_fixed_layers=1)) if "lora" in n]
    assert names
    assert all(".layer.1." in name for name in names)


def test_modules_that_are_not_there_are_named(load) -> None:
    with pytest.raises(ModelError, match="cannot take adapters") as caught:
        load(adapter=AdapterSpec(lora_r=4, target_modules=("q_proj",)))
    assert "query" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"adapter": {"lora_alpha": 16}}, "without lora_r"),
        ({"adapter": {"lora_r": 4}, "model": {"name": "x", "freeze": True}}, "nothing of the enc"),
        ({"adapter": {"lora_r": 0}}, "greater than or equal"),
    ],
)
def test_what_makes_no_sense_is_refused(words, match) -> None:
    spec = {"model": {"name": "x"}, "data": {"train": {"uri": "x"}}} | words
    with pytest.raises(SpecError, match=match):
        parse_spec(spec)


@pytest.fixture
def job(tmp_path):
    rows = [{"anchor": f"banana {i}", "positive": f"lemon number {i}"} for i in range(32)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return parse_spec(
        {
            "model": {"name": str(tiny_text_model(tmp_path / "model", dropout=0.1))},
            "adapter": {"lora_r": 4, "lora_alpha": 16, "lora_dropout": 0.1},
            "data": {"train": {"uri": str(data)}},
            "objective": {"loss": "MultipleNegativesRankingLoss"},
            "training": {
                "per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 1e-2,
                "save_steps": 3, "device": "cpu",
            },
        }
    )  # fmt: skip


def place(folder):
    from pathlib import Path

    from luthier.engine.run import Place

    folder.mkdir()
    return Place(folder, folder.parent / "cache", Path, Path)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_run_tunes_adapters_and_writes_them_as_peft_does(job, tmp_path) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    outcome = run(job.changed(num_train_epochs=12), place(tmp_path / "run"))
    losses = json.loads((outcome.folder / "luthier" / "history.json").read_text())["losses"]
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    tuned = open_text_model(outcome.folder, device="cpu")
    start = AutoModel.from_pretrained(job.model.name)
    adapted = PeftModel.from_pretrained(start, outcome.folder / "luthier" / "adapter").eval()
    features = tuned.tokenize(TEXTS)
    with torch.no_grad():
        theirs = adapted(**features).last_hidden_state
        ours = tuned.encoder.eval()(**features).last_hidden_state
    mask = features["attention_mask"].bool()
    torch.testing.assert_close(ours[mask], theirs[mask], atol=2e-6, rtol=1e-4)


def test_a_resumed_run_equals_the_uninterrupted_one(job, tmp_path) -> None:
    from luthier.engine.control import Interrupted

    whole = run(job, place(tmp_path / "whole"))
    broken, asked = place(tmp_path / "broken"), []

    def after_four() -> str | None:
        asked.append(1)
        return "interrupt" if len(asked) == 5 else None

    with pytest.raises(Interrupted):
        run(job, broken, control=after_four)
    again = run(job, broken)
    for file in ("model.safetensors", "luthier/adapter/adapter_model.safetensors"):
        expected, found = load_file(whole.folder / file), load_file(again.folder / file)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_best_and_the_mixed_model_are_written_merged(job, tmp_path) -> None:
    best = job.changed(
        val_split=0.25, callbacks=[{"kind": "best_model", "monitor": "val_loss"}], learning_rate=0.5
    )
    outcome = run(best, place(tmp_path / "best"))
    assert np.isfinite(open_text_model(outcome.folder, device="cpu").encode(TEXTS)).all()
    tuned = run(job, place(tmp_path / "tuned"))
    mixed = run(
        job.changed(callbacks=[{"kind": "wise_ft", "alpha": 0.25}]), place(tmp_path / "mixed")
    )
    name = "encoder.layer.0.attention.self.query.weight"
    weights = [
        load_file(folder / "model.safetensors")[name]
        for folder in (outcome.folder.__class__(job.model.name), tuned.folder, mixed.folder)
    ]
    torch.testing.assert_close(weights[2], 0.75 * weights[0] + 0.25 * weights[1])
