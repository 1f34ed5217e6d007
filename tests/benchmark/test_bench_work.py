"""What the sides are given: texts, tokens, operations, and the order of rows."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from luthier.benchmark.cases import CASES, find_cases
from luthier.benchmark.corpora import corpus
from luthier.benchmark.facts import Counter, Load, shape_of
from luthier.benchmark.places import MODEL, clone, model_folder
from luthier.benchmark.unavailable import Unavailable
from luthier.benchmark.work import Job, Settings, prepare
from luthier.errors import ModelError


@pytest.fixture
def settings(tiny_model, tmp_path):
    return Settings(
        model=tiny_model,
        name="tiny",
        data=tmp_path / "data",
        work=tmp_path / "work",
        precision="fp32",
        threads=1,
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_numbered_pairs_are_never_alike(tmp_path):
    rows = lines(corpus("numbered", 6000, tmp_path))
    assert len({row["anchor"] for row in rows}) == len({row["positive"] for row in rows}) == 6000


def test_too_few_texts_are_said(tmp_path):
    with pytest.raises(Unavailable, match=r"wordnet has 5,040 pairs here, and 6,000"):
        corpus("wordnet", 6000, tmp_path)


def test_without_apt_there_are_no_descriptions(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="apt"):
        corpus("debian", 100, tmp_path)


def test_uniform_texts_fill_the_length(tmp_path, tiny_model):
    """From descriptions of our own, so that it needs no apt."""
    described = "\n".join(
        json.dumps({"query": "a tool", "doc": "it makes many small things " * 30, "split": "t"})
        for _ in range(20)
    )
    (tmp_path / "debian.jsonl").write_text(described + "\n")
    rows = lines(corpus("uniform-16", 50, tmp_path))
    for row in rows:
        for text in row.values():
            assert Counter(tiny_model, 16).load([text]).tokens == 16


def test_operations_are_those_of_the_model(tiny_model):
    """Two layers of width 32, counted by hand: 4 products of attention, 2 of the feed-forward
    block, their biases, and the scales and biases of the norms."""
    layer = 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32) + 2 * 64
    norm_of_embeddings = 64
    shape = shape_of(tiny_model)
    assert shape.parameters == 2 * layer + norm_of_embeddings
    load = Counter(tiny_model, 64).load(["a b c", "a"])  # 5 and 3 tokens with the special ones
    assert (load.tokens, load.padded_tokens) == (8, 10)
    by_hand = 2 * shape.parameters * 8 + 4 * 32 * 2 * (25 + 9)
    assert load.forward_operations == by_hand
    assert (load + Load(2)).samples == 2


def test_the_order_is_that_of_the_plan(settings):
    case = replace(find_cases(["short"])[0], rounds=2, steps=3, warmup=1)
    work = prepare(case, settings)
    assert len(work.order) == 1 + 2 * 3 + 1  # the last is where the sides are stopped
    assert all(len(rows) == 32 for rows in work.order)
    flat = [row for rows in work.order for row in rows]
    assert len(set(flat)) == len(flat)
    assert work.job.rows() == work.order
    assert [load.samples for load in work.loads()] == [96, 96]
    assert Job.read(work.job.write(settings.work / "job.json")) == work.job


def test_more_steps_than_an_epoch_has_are_refused(settings):
    with pytest.raises(Unavailable, match="fewer --rounds"):
        prepare(find_cases(["rows-1k"])[0], replace(settings, rounds=50))


def test_a_field_that_no_job_has_is_said(settings):
    with pytest.raises(Unavailable, match="learning_rat"):
        prepare(find_cases(["short"])[0], replace(settings, changed={"learning_rat": 1}))


def test_the_quick_form_is_smaller(settings):
    for case in CASES:
        quick = case.quick()
        assert quick.rounds == 1
        assert len(quick.peers) == 1
        assert (quick.rows or 0) <= (case.rows or 10**9)


def test_a_model_that_is_not_here_is_not_fetched():
    assert clone() is not None
    with pytest.raises(ModelError, match="on this machine"):
        model_folder("somebody/some-model")
    assert MODEL
