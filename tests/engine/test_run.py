"""A whole run: what each option of a spec does to it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from luthier.engine.run import run
from luthier.errors import DataError, SpecError, TrainingError


def history(outcome):
    return json.loads((outcome.folder / "luthier" / "history.json").read_text())


def encoder(folder):
    return load_file(folder / "model.safetensors")


def listen():
    told = []
    return told, lambda kind, data: told.append((kind, data))


def messages(told):
    return [data["message"] for kind, data in told if kind == "log"]


def test_it_learns_and_the_result_opens_everywhere(make_spec, place, one_thread) -> None:
    told, tell = listen()
    outcome = run(make_spec(val_split=0.25, num_train_epochs=6), place, tell)
    found = history(outcome)
    assert np.mean(found["losses"][-3:]) < 0.7 * np.mean(found["losses"][:3])
    before, after = outcome.metrics["before"], outcome.metrics["after"]
    assert after["ndcg_at_k"] > before["ndcg_at_k"]
    vectors = SentenceTransformer(str(outcome.folder), device="cpu").encode(["a red boat"])
    assert vectors.shape == (1, 32)
    kinds = [kind for kind, _ in told]
    assert kinds.index("preflight") < kinds.index("step")
    assert kinds.count("step") == len(found["losses"])
    assert kinds.count("evaluation") == 6


def test_the_preflight_report_says_what_will_happen(make_spec, place) -> None:
    told, tell = listen()
    run(make_spec(val_split=0.25, max_steps=1), place, tell)
    report = next(data for kind, data in told if kind == "preflight")
    assert report["steps"] == 1
    assert report["form"] == "pairs"
    assert report["evaluation"] is not None
    assert report["overlap"] == 0
    assert 0 <= report["cut_share"] <= 1
    assert report["estimated_s"] > 0


def test_zero_epochs_train_nothing(make_spec, place, tiny_model) -> None:
    outcome = run(make_spec(num_train_epochs=0), place)
    assert history(outcome)["losses"] == []
    start = encoder(tiny_model)
    for name, tensor in encoder(outcome.folder).items():
        assert torch.equal(tensor, start[name]), name


def test_max_steps_and_a_part_of_an_epoch(make_spec, new_place) -> None:
    assert len(history(run(make_spec(max_steps=4), new_place("a")))["losses"]) == 4
    part = run(make_spec(num_train_epochs=0.5), new_place("b"))
    assert len(history(part)["losses"]) == 3


def test_the_seed_decides_everything(make_spec, new_place, one_thread) -> None:
    first = run(make_spec(max_steps=3), new_place("a"))
    again = run(make_spec(max_steps=3), new_place("b"))
    other = run(make_spec(max_steps=3, seed=7), new_place("c"))
    assert history(first) == history(again) != history(other)
    ahead = run(make_spec(max_steps=3, dataloader_num_workers=3), new_place("d"))
    assert history(ahead) == history(first)


def test_freeze_trains_the_head_alone(make_spec, place, tiny_model) -> None:
    outcome = run(make_spec(freeze=True, output_dim=8, max_steps=3), place)
    start = encoder(tiny_model)
    for name, tensor in encoder(outcome.folder).items():
        assert torch.equal(tensor, start[name]), name
    model = SentenceTransformer(str(outcome.folder), device="cpu")
    assert model.encode(["a"]).shape == (1, 8)


def test_early_stopping_stops(make_spec, place) -> None:
    told, tell = listen()
    spec = make_spec(
        val_split=0.25,
        num_train_epochs=30,
        learning_rate=1e-9,
        callbacks=[{"kind": "early_stopping", "patience": 2, "min_delta": 0.1}],
    )
    outcome = run(spec, place, tell)
    assert len(history(outcome)["evaluations"]) == 3
    assert any("stopping early" in message for message in messages(told))


def test_the_best_model_is_the_result(make_spec, place) -> None:
    """A rate that climbs until the model breaks: the last epochs are worse than the best."""
    spec = make_spec(
        val_split=0.25,
        num_train_epochs=6,
        learning_rate=0.5,
        lr_scheduler_type="constant_with_warmup",
        num_warmup_steps=30,
        callbacks=[{"kind": "best_model", "monitor": "val_loss"}],
    )
    told, tell = listen()
    outcome = run(spec, place, tell)
    evaluations = history(outcome)["evaluations"]
    losses = [e["val_loss"] for e in evaluations]
    best = int(np.argmin(losses))
    assert losses[best] < losses[-1]
    assert any(f"step {evaluations[best]['step']}" in m for m in messages(told))
    assert outcome.metrics["after"]["ndcg_at_k"] == evaluations[best]["ndcg_at_k"]


def test_epochs_are_kept_where_asked(make_spec, place) -> None:
    spec = make_spec(num_train_epochs=4, callbacks=[{"kind": "checkpoint", "last_k_epochs": 2}])
    run(spec, place)
    kept = sorted(p.name for p in (place.folder / "epochs").iterdir())
    assert kept == ["step-00000018", "step-00000024"]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_wise_ft_mixes_weights(make_spec, new_place, tiny_model, alpha) -> None:
    tuned = encoder(run(make_spec(max_steps=4), new_place("tuned")).folder)
    spec = make_spec(max_steps=4, callbacks=[{"kind": "wise_ft", "alpha": alpha}])
    mixed = encoder(run(spec, new_place("mixed")).folder)
    start = encoder(tiny_model)
    for name, tensor in mixed.items():
        expected = alpha * tuned[name] + (1 - alpha) * start[name]
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-5)


def test_a_run_goes_on_from_an_artifact(make_spec, new_place) -> None:
    first = run(make_spec(max_steps=3), new_place("first"))
    second = run(make_spec(max_steps=0, artifact=str(first.folder)), new_place("second"))
    for name, tensor in encoder(second.folder).items():
        assert torch.equal(tensor, encoder(first.folder)[name]), name


def test_batch_size_none_finds_one(make_spec, place) -> None:
    told, tell = listen()
    run(make_spec(per_device_train_batch_size=None, max_steps=1), place, tell)
    assert json.loads((place.folder / "resolved.json").read_text())["batch_size"] == 32
    assert any("32 rows fit" in message for message in messages(told))


def test_memory_that_runs_out_halves_the_rows_at_a_time(
    make_spec, new_place, monkeypatch, one_thread
) -> None:
    """The allocator's own error, from a model that takes so many tokens at a time; the losses
    are those of a machine with more memory."""
    from luthier.models.text import TextModel

    straight = history(run(make_spec(max_steps=4), new_place("straight")))
    forward = TextModel.forward

    def small(self, features):
        if self.training and features["input_ids"].numel() > 65:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, features)

    monkeypatch.setattr(TextModel, "forward", small)
    told, tell = listen()
    squeezed = history(run(make_spec(max_steps=4), new_place("squeezed"), tell))
    assert sum("out of memory" in m for m in messages(told)) == 2  # 8 → 4 → 2, then it stays
    np.testing.assert_allclose(squeezed["losses"], straight["losses"], atol=1e-5)


def test_a_loss_that_is_no_number_ends_the_run(make_spec, place) -> None:
    with pytest.raises(TrainingError, match="lower the learning rate"):
        run(make_spec(optim="SGD", learning_rate=1e30), place)


def test_data_that_changed_since_submit_is_refused(make_spec, place, pairs_csv) -> None:
    spec = make_spec()
    source = spec.data.train.model_copy(update={"sha256": "0" * 64})
    spec = spec.model_copy(update={"data": spec.data.model_copy(update={"train": source})})
    with pytest.raises(DataError, match="changed since"):
        run(spec, place)


def test_val_loss_of_a_loss_with_class_centres_is_refused(make_spec, place) -> None:
    spec = make_spec(loss="ArcFaceLoss", val_split=0.25, callbacks=[{"kind": "early_stopping"}])
    with pytest.raises(SpecError, match="centre for each training class"):
        run(spec, place)


def test_bf16_trains_close_to_fp32(make_spec, new_place, one_thread) -> None:
    exact = history(run(make_spec(max_steps=4), new_place("fp32")))
    half = history(run(make_spec(max_steps=4, precision="bf16"), new_place("bf16")))
    assert half["losses"] != exact["losses"]
    np.testing.assert_allclose(half["losses"], exact["losses"], rtol=0.05)


@pytest.mark.parametrize("words", [{"precision": "fp16"}, {"device": "cuda"}])
def test_what_this_machine_lacks_is_refused(make_spec, place, words) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SpecError):
        run(make_spec(**words), place)


def test_the_onnx_graph_gives_the_same_vectors(make_spec, place) -> None:
    from luthier.inference import encode, get_model

    outcome = run(make_spec(to_onnx=True, max_steps=2), place)
    texts = ["a red boat", "the grey river and a much longer text about it"]
    plain = encode(get_model(outcome.folder), texts)
    graph = encode(get_model(outcome.folder, is_onnx=True), texts)
    np.testing.assert_allclose(graph, plain, rtol=1e-3, atol=1e-5)


def test_the_artifact_carries_its_papers(make_spec, place) -> None:
    """Spec, metrics, report and page, and a card with lineage, beside the model."""
    from luthier.evaluation.report import read_report
    from luthier.spec import parse_spec

    spec = make_spec(val_split=0.25, max_steps=2)
    outcome = run(spec, place)
    ours = outcome.folder / "luthier"
    assert parse_spec((ours / "spec.json").read_text()) == spec
    metrics = json.loads((ours / "metrics.json").read_text())
    assert metrics == outcome.metrics
    assert metrics["verdict"] in ("better", "no clear difference", "worse")
    report = read_report(ours / "report.json")
    assert report.lineage["spec"] == spec.id
    assert report.examples
    assert "<html" in (ours / "report.html").read_text()
    card = (outcome.folder / "README.md").read_text()
    assert spec.id in card
    assert spec.model.name in card


def test_examples_of_a_callback_are_gathered_where_asked(make_spec, new_place, pairs_csv) -> None:
    from luthier.evaluation.report import read_report

    for gather in (True, False):
        callback = {
            "kind": "evaluation",
            "query_data": {"uri": str(pairs_csv)},
            "gather_examples": gather,
            "limit": 5,
        }
        outcome = run(make_spec(max_steps=1, callbacks=[callback]), new_place(str(gather)))
        report = read_report(outcome.folder / "luthier" / "report.json")
        assert bool(report.examples) is gather
        assert report.evaluation["k"] == 5
