"""A probe of an encoder and of a head: scored before and after an update, never learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import luthier
from luthier.data.remembered import kept
from luthier.engine.control import Interrupted
from luthier.errors import DataError, SpecError
from luthier.runs.process import Process, kill
from luthier.spec import parse_spec
from luthier.store.bundle import open_bundle
from luthier.testing.models import tiny_text_model
from luthier.updaters.problems import problems

WORDS = ("great", "awful", "sea", "rose")


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def encoder(tmp_path, tiny_dropout_model):
    """A job on pairs; the probe is of pairs that no chunk has."""

    def make(chunk: int, start: Any = None, probe: bool = True, **update: Any):
        def pairs(first: int, count: int) -> list[dict[str, Any]]:
            return [{"anchor": f"number {n}", "positive": f"day {n}"}
                    for n in range(first, first + count)]  # fmt: skip

        train = lines(tmp_path / f"train-{chunk}.jsonl", pairs(100 * chunk, 24))
        held_out = lines(tmp_path / f"eval-{chunk}.jsonl", pairs(100 * chunk + 50, 12))
        data = {"train": {"uri": str(train)}, "eval": {"uri": str(held_out)}}
        if probe:
            data["probe"] = {"uri": str(lines(tmp_path / "probe.jsonl", pairs(900, 16)))}
        return parse_spec({
            "model": {"name": str(tiny_dropout_model), "artifact": start and str(start)},
            "data": data,
            "objective": {"loss": "MultipleNegativesRankingLoss"},
            "update": {"updater": "ER", "memory_size": 12, **update},
            "training": {
                "per_device_train_batch_size": 8, "num_train_epochs": 1, "learning_rate": 1e-2,
                "device": "cpu",
            },
        })  # fmt: skip

    return make


@pytest.fixture
def head(tmp_path):
    """A job on texts with labels; the second chunk has classes that the first has not."""
    model = tiny_text_model(tmp_path / "head", pooling=None, dropout=0.1)

    def make(chunk: int, start: Any = None, probe: str = "known", **update: Any):
        def rows(names: tuple[str, ...], seed: int, count: int) -> list[dict[str, Any]]:
            drawn = np.random.default_rng(seed).choice(names, count)
            return [{"text": f"a {name} thing {i}", "label": str(name)}
                    for i, name in enumerate(drawn)]  # fmt: skip

        now = WORDS[2 * chunk : 2 * chunk + 2]
        train = lines(tmp_path / f"train-{chunk}.jsonl", rows(now, chunk, 24))
        held_out = lines(tmp_path / f"eval-{chunk}.jsonl", rows(now, 10 + chunk, 12))
        of = WORDS[:2] if probe == "known" else ("nobody", "knows")
        asked = lines(tmp_path / f"probe-{probe}.jsonl", rows(of, 99, 20))
        return parse_spec({
            "task": "text-classification",
            "model": {"name": str(model), "artifact": start and str(start)},
            "data": {name: {"uri": str(path)} for name, path in
                     (("train", train), ("eval", held_out), ("probe", asked))},
            "update": {"updater": "FineTuning", **update},
            "training": {
                "per_device_train_batch_size": 8, "num_train_epochs": 12, "learning_rate": 1e-2,
                "device": "cpu",
            },
        })  # fmt: skip

    return make


@pytest.mark.parametrize("kind", ["encoder", "head"])
def test_a_probe_is_scored_before_and_after_and_survives_interruptions(
    kind, request, trained, files_of
) -> None:
    job, start = request.getfixturevalue(kind), None
    for chunk in (0, 1):
        spec = job(chunk, start)
        whole = trained(spec, f"whole-{chunk}")
        with pytest.raises(Interrupted):
            trained(spec, f"parts-{chunk}", stop=2)
        assert files_of(trained(spec, f"parts-{chunk}").folder) == files_of(whole.folder)
        start = open_bundle(whole.folder).path
    told = whole.metrics["update"]["probe"]
    main = told["metric"] or "accuracy"
    assert 0 <= told["before"][main] <= 1
    assert told["mean"] == pytest.approx(told["before"][main] - told["after"][main], abs=1e-9)
    page = (whole.folder / "luthier" / "report.html").read_text()
    assert f"{told['before'][main]:.3f}, {told['after'][main]:.3f} {main}" in page


def test_a_probe_is_not_learnt_and_not_remembered(encoder, trained) -> None:
    with_probe = trained(encoder(0), "with")
    without = trained(encoder(0, probe=False), "without")
    one, other = (r.folder / "model.safetensors" for r in (with_probe, without))
    assert one.read_bytes() == other.read_bytes()
    memory = kept(with_probe.folder / "luthier" / "update" / "memory.arrow")
    assert not any("9" in text[7:8] for text in memory.texts("anchor", np.arange(len(memory))))
    assert without.metrics["update"]["probe"] is None


def test_what_loses_the_probe_is_not_committed(head, trained) -> None:
    """Plain tuning on two new classes forgets those of the probe."""
    first = trained(head(0), "first")
    assert first.metrics["update"]["probe"]["after"]["accuracy"] > 0.9
    assert first.metrics["update"]["promoted"], "a model that knew nothing has nothing to lose"
    second = trained(head(1, first.folder, probe_budget=0.1), "second")
    told = second.metrics["update"]
    assert told["probe"]["after"]["accuracy"] < 0.5 < told["probe"]["before"]["accuracy"]
    assert not told["promoted"]
    assert "the probe lost" in told["reasons"][0]


def test_a_probe_of_unknown_classes_is_refused(head, trained) -> None:
    with pytest.raises(DataError, match=r"nobody|knows"):
        trained(head(0, probe="unknown"), "first")


def test_a_probe_without_an_update_means_nothing(encoder) -> None:
    words = encoder(0).model_dump(mode="json") | {"update": {}}
    assert [p.field for p in problems(parse_spec(words))] == ["data.probe"]
    found = problems(encoder(0, probe=False, probe_budget=0.1))
    assert [(p.field, p.hint) for p in found] == [("probe_budget", "give probe_data")]


def test_a_probe_goes_through_fit(tmp_path, tiny_dropout_model, monkeypatch) -> None:
    rows = [{"anchor": f"number {n}", "positive": f"day {n}"} for n in range(16)]
    lines(tmp_path / "probe.jsonl", rows[:8])
    monkeypatch.chdir(tmp_path)
    words = {"loss": "MultipleNegativesRankingLoss", "max_steps": 1, "batch_size": 8,
             "probe_data": "probe.jsonl"}  # fmt: skip
    home = luthier.connect(tmp_path / "home")
    try:
        with pytest.raises(SpecError, match="before and after an update"):
            luthier.fit(str(tiny_dropout_model), rows, **words)
        run = luthier.fit(str(tiny_dropout_model), rows, eval_data=rows, update="ER", **words)
        run.wait(progress=False)
        told = run.metrics()["update"]["probe"]
    finally:
        for worker in home.ledger.workers():
            kill(Process.parse(worker.process))
    assert set(told) >= {"metric", "before", "after", "mean"}
