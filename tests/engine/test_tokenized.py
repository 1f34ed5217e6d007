"""Tokens are made once, kept in memory-mapped files, and are those that the tokenizer gives."""

from __future__ import annotations

import errno
import json
import threading

import numpy as np
import pyarrow as pa
import pytest

from luthier.batches import make_plan
from luthier.data import load_dataset
from luthier.engine.resolved import Resolved
from luthier.engine.tokenized import TokenColumn, Tokenized, rows_seen, tokenize_once
from luthier.errors import DiskFull
from luthier.models.loading import load_text_model
from luthier.objectives import needs
from luthier.spec import ObjectiveSpec
from luthier.testing.waiting import until


@pytest.fixture
def world(make_spec, place):
    spec = make_spec()
    dataset = load_dataset(place.blobs(spec.data.train.uri), spec.data.csv, place.cache)
    model = load_text_model(spec.model, artifact=None, device="cpu")
    return spec, dataset, model, place.cache


def files(cache):
    return sorted((cache / "tokens").iterdir())


def test_tokens_are_the_tokenizers(world) -> None:
    _, dataset, model, cache = world
    texts = tokenize_once(model, dataset, cache)
    rows = np.array([7, 0, 7, 41])
    for role in dataset.roles:
        found, expected = texts(role, rows), model.tokens(dataset.texts(role, rows))
        assert found.values.tolist() == expected.values.tolist()
        assert found.lengths.tolist() == expected.lengths.tolist()


def test_a_second_run_only_reads(world, monkeypatch) -> None:
    _, dataset, model, cache = world
    tokenize_once(model, dataset, cache)
    before = [(f.name, f.stat().st_mtime_ns) for f in files(cache)]
    monkeypatch.setattr(type(model), "tokens", None)  # making them again would fail
    assert tokenize_once(model, dataset, cache) is not None
    assert [(f.name, f.stat().st_mtime_ns) for f in files(cache)] == before


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.tokenizer, "model_max_length", 5),
        lambda model: setattr(model, "prompt", "query: "),
        lambda model: model.tokenizer.add_tokens(["banana"]),
    ],
)
def test_what_changes_the_tokens_changes_the_file(world, change) -> None:
    _, dataset, model, cache = world
    tokenize_once(model, dataset, cache)
    first = set(files(cache))
    change(model)
    texts = tokenize_once(model, dataset, cache)
    assert len(set(files(cache)) - first) == len(dataset.roles)
    rows = np.arange(len(dataset))
    role = dataset.roles[0]
    assert (
        texts(role, rows).values.tolist() == model.tokens(dataset.texts(role, rows)).values.tolist()
    )


def test_what_the_tokenizer_remembers_does_not(world) -> None:
    _, dataset, model, cache = world
    tokenize_once(model, dataset, cache)
    model.tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=4)
    tokenize_once(model, dataset, cache)
    assert len(files(cache)) == len(dataset.roles)


def test_a_short_run_tokenizes_only_what_it_will_see(world) -> None:
    _, dataset, model, cache = world
    plan = make_plan(
        dataset, batch_size=8, num_items_per_class=4, sampler="auto", seed=1,
        objective=needs(ObjectiveSpec(loss="MultipleNegativesRankingLoss")),
    )  # fmt: skip
    assert rows_seen(plan, 6, len(dataset)) is None
    rows = rows_seen(plan, 2, len(dataset))
    assert sorted(np.concatenate([plan.rows(0, 0), plan.rows(0, 1)])) == rows.tolist()
    texts = tokenize_once(model, dataset, cache, rows)
    assert [len(TokenColumn(f)) for f in files(cache)] == [16, 16]
    asked = plan.rows(0, 1)
    expected = model.tokens(dataset.texts("positive", asked))
    assert texts("positive", asked).values.tolist() == expected.values.tolist()


def test_a_killed_writer_leaves_no_file_that_is_used(world, monkeypatch) -> None:
    _, dataset, model, cache = world
    import luthier.engine.tokenized as room

    write = room._write

    def torn(model, dataset, role, file, stopped):
        write(model, dataset, role, file, stopped)
        file.write_bytes(file.read_bytes()[:-40])
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "_write", torn)
    with pytest.raises(KeyboardInterrupt):
        tokenize_once(model, dataset, cache)
    monkeypatch.setattr(room, "_write", write)
    assert files(cache) == []
    assert tokenize_once(model, dataset, cache) is not None


def test_large_data_are_tokenized_while_the_run_trains(world, monkeypatch) -> None:
    """Until the thread is ready the tokens are the same; then they are read."""
    _, dataset, model, cache = world
    import luthier.engine.tokenized as room

    go, write = threading.Event(), room._write

    def waiting(*arguments):
        go.wait(20)
        write(*arguments)

    monkeypatch.setattr(room, "_write", waiting)
    texts = Tokenized(model, dataset, cache, at_once=10)
    role, rows = dataset.roles[1], np.array([5, 40])
    assert not texts.ready
    before = texts(role, rows)
    go.set()
    until(lambda: texts.ready)
    monkeypatch.setattr(type(model), "tokens", None)
    assert texts(role, rows).values.tolist() == before.values.tolist()
    texts.close()


def test_closing_stops_the_thread_and_leaves_nothing(world, monkeypatch) -> None:
    _, dataset, model, cache = world
    import luthier.engine.tokenized as room

    monkeypatch.setattr(room, "_TOGETHER", 1)
    tokens, calls = type(model).tokens, []

    def first_only(self, texts):
        calls.append(1)
        until(lambda: len(calls) < 3 or stopping)
        return tokens(self, texts)

    stopping: list[int] = []
    monkeypatch.setattr(type(model), "tokens", first_only)
    texts = Tokenized(model, dataset, cache, at_once=10)
    until(lambda: len(calls) >= 3)
    texts._stop.set()
    stopping.append(1)
    texts.close()
    assert not texts.ready
    assert files(cache) == []
    assert len(calls) < len(dataset)


def test_a_disk_that_fills_up_meanwhile_leaves_the_tokens_to_the_batches(
    world, monkeypatch
) -> None:
    _, dataset, model, cache = world
    import luthier.engine.tokenized as room

    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(room, "_write", full)
    with pytest.raises(DiskFull):
        Tokenized(model, dataset, cache)
    texts = Tokenized(model, dataset, cache, at_once=10)
    until(texts._columns.done)
    assert not texts.ready
    assert len(texts(dataset.roles[0], np.array([1, 2]))) == 2
    texts.close()


def test_files_hold_lists_of_small_numbers(world) -> None:
    _, dataset, model, cache = world
    tokenize_once(model, dataset, cache)
    with pa.memory_map(str(files(cache)[0])) as file:
        schema = pa.ipc.open_file(file).schema
    assert schema.field("tokens").type == pa.list_(pa.uint16())


def test_a_decision_is_made_once(tmp_path) -> None:
    asked = []
    for _ in range(2):
        resolved = Resolved(tmp_path / "resolved.json")
        assert resolved.once("rows", lambda: asked.append(1) or 32) == 32
    assert asked == [1]
    assert json.loads((tmp_path / "resolved.json").read_text()) == {"rows": 32}
