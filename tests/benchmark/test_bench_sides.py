"""luthier bench with real peers over the real pipe, on a tiny random model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from luthier.testing.models import tiny_text_model


def bench(*words, model=None):
    """The command; its JSON and its exit code."""
    more = [] if model is None else ["--model", str(model)]
    done = subprocess.run(
        [sys.executable, "-m", "luthier", "bench", *words, *more, "--threads", "1", "--json"],
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    return done, json.loads(done.stdout)


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory):
    """Six layers, of which a case can freeze three."""
    return tiny_text_model(tmp_path_factory.mktemp("deep") / "model", layers=6)


@pytest.fixture(scope="module")
def short(tiny_model):
    done, found = bench("short", "--quick", "--dropout", "0", model=tiny_model)
    assert done.returncode == 0, done.stderr
    return found


def test_the_losses_of_both_sides_agree(short):
    (result,) = short["results"]
    assert result["loss_difference"] < 1e-5
    ours, theirs = (result["sides"][n] for n in ("luthier", "sentence-transformers"))
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    assert ours["loss"] > 1  # of 32 pairs and a random model: near log 32


def test_every_figure_is_there(short):
    (result,) = short["results"]
    assert result["load"]["samples"] == 64
    assert 64 < result["load"]["tokens"] < result["load"]["padded_tokens"]
    for side in result["sides"].values():
        assert side["samples_per_s"] == pytest.approx(64 / side["seconds"], rel=0.01)
        assert side["tokens_per_s"] == pytest.approx(
            result["load"]["tokens"] / side["seconds"], rel=0.01
        )
        assert 100 < side["peak_mb"] < 8000
        assert 0 < side["mfu"] < 1
        assert side["start_s"] is None  # in the quick form the sides are started together
    seconds = [s["seconds"] for s in result["sides"].values()]
    ratio = result["ratios"]["sentence-transformers"]
    assert ratio["least"] == ratio["median"] == ratio["greatest"]
    assert ratio["median"] == pytest.approx(seconds[1] / seconds[0], rel=0.01)


def test_what_cannot_be_measured_is_skipped_and_said(tiny_model):
    done, found = bench("short", "--quick", "--rounds", "200", model=tiny_model)
    assert done.returncode == 1
    assert found["results"] == []
    assert found["skipped"][0]["case"] == "short"
    assert "200" not in found["skipped"][0]["case"]
    assert "fewer --rounds" in found["skipped"][0]["reason"]
    assert "skipped short" in done.stderr


def test_the_peer_freezes_what_luthier_would(tiny_model, tmp_path, one_thread):
    from luthier.benchmark.cases import find_cases
    from luthier.benchmark.sides.peers import load_model
    from luthier.benchmark.work import Settings, prepare

    data = Settings(
        model=tiny_model, name="tiny", data=tmp_path, work=tmp_path, precision="fp32", threads=1
    )
    job = prepare(find_cases(["short"])[0], data).job
    frozen = load_model(replace(job, case=replace(job.case, frozen_layers=1)))
    trained = {
        name.split(".layer.")[-1].split(".")[0]
        for name, parameter in frozen[0].model.named_parameters()
        if parameter.requires_grad and not name.startswith("pooler")
    }
    assert trained == {"1"}  # of layers 0 and 1, and no embeddings


@pytest.mark.slow
def test_all_peers_do_the_same_work(tiny_model):
    done, found = bench("short", "--rounds", "1", "--dropout", "0", model=tiny_model)
    assert done.returncode == 0, done.stderr
    (result,) = found["results"]
    assert len(result["sides"]) == 4
    for side in result["sides"].values():
        assert 0 < side["start_s"] < 250
        assert side["loss"] == pytest.approx(result["sides"]["luthier"]["loss"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "contrastive-1024",
        "frozen-3",
        "lora",
        "head-only",
        "encode",
        "start",
        "rows-1k",
        "skewed-32",
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_kind_of_case_runs(case, precision, deep_model):
    done, found = bench(
        case, "--quick", "--precision", precision, "--dropout", "0", model=deep_model
    )
    assert done.returncode in (0, 1), done.stderr
    if not found["results"]:
        assert "debian" in found["skipped"][0]["reason"].lower()
        pytest.skip(found["skipped"][0]["reason"])
    (result,) = found["results"]
    if case == "encode":
        assert result["least_cosine"] > (0.9999 if precision == "fp32" else 0.99)
    else:
        assert result["loss_difference"] < (1e-4 if precision == "fp32" else 0.1)


def test_a_side_that_runs_alone_is_started_for_each_round(tiny_model, tmp_path):
    """The same rows each time, so the same losses, and those of the other side."""
    from luthier.benchmark.cases import find_cases
    from luthier.benchmark.places import data_folder
    from luthier.benchmark.race import race
    from luthier.benchmark.work import Settings

    case = replace(find_cases(["short"])[0].quick(), alone=True, rounds=2)
    settings = Settings(
        tiny_model, "tiny", data_folder(), tmp_path / "work", "fp32", 1, dropout=0.0
    )
    said = []
    found = race(case, settings, said.append)
    ours, theirs = found.sides.values()
    assert len(said) == 4  # one side at a time
    assert found.loads[0] == found.loads[1]
    losses = [[loss for p in side for loss in p.losses] for side in (*ours.rounds, *theirs.rounds)]
    assert [len(found) for found in losses] == [case.steps] * 4
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(losses[2], abs=1e-5)
    assert len(ours.start_s) == len(theirs.start_s) == 2
