"""An encoder that learns on: update after update, with what it learnt before beside it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from luthier.data.remembered import joined, kept
from luthier.engine.control import Interrupted
from luthier.errors import DataError, SpecError
from luthier.registry import cards
from luthier.spec import parse_spec
from luthier.store.bundle import open_bundle
from luthier.updaters.problems import problems

COLOURS = ["red", "blue", "green", "black", "white", "brown", "pink", "grey", "gold", "amber"]
THINGS = ["boat", "house", "tree", "stone", "river", "cloud", "horse", "apple", "lamp", "chair"]
UPDATERS = [c.name for c in cards("updater") if not (c.facts["program"] or c.facts["labels"])]
#: Two domains: the words of one mean nothing in the other.
SIGNS = ("{colour} {thing}", "{thing} of {colour}"), ("{thing} at {colour}", "not {colour} {thing}")


def write(path: Path, rows: list[tuple], names: tuple[str, ...]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)
    return path


@pytest.fixture
def chunk(tmp_path):
    """The pairs of a domain as files: to train on, and to measure on."""

    def make(number: int) -> tuple[Path, Path]:
        first, second = SIGNS[number]
        colours = COLOURS[:5] if number == 0 else COLOURS[5:]
        rows = [
            (first.format(colour=c, thing=t), second.format(colour=c, thing=t))
            for c in colours
            for t in THINGS
        ]
        names = ("anchor", "positive")
        return (
            write(tmp_path / f"train-{number}.csv", rows[:32], names),
            write(tmp_path / f"eval-{number}.csv", rows[32:], names),
        )

    return make


@pytest.fixture
def job(tiny_dropout_model, chunk):
    def make(number=0, updater="ER", start=None, update=None, model=None, **training):
        train, held_out = chunk(number)
        words = {"per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 1e-3}
        words |= {"device": "cpu"}
        return parse_spec({
            "model": {"name": str(model or tiny_dropout_model), "artifact": start and str(start)},
            "data": {"train": {"uri": str(train)}, "eval": {"uri": str(held_out)}},
            "objective": {"loss": "MultipleNegativesRankingLoss"},
            "update": {"updater": updater, **_memory(updater), **(update or {})},
            "training": words | training,
        })  # fmt: skip

    return make


def _memory(updater: str) -> dict[str, int]:
    card = next(c for c in cards("updater") if c.name == updater)
    return {"memory_size": 12} if card.facts["memory"] else {}


@pytest.mark.parametrize("updater", UPDATERS)
def test_an_update_that_was_interrupted_is_the_uninterrupted_one(updater, job, trained, files_of):
    """In the first update, and in the second, which has a memory to go on from."""
    start = None
    for number in (0, 1):
        spec = job(number, updater, start=start)
        whole = trained(spec, f"whole-{number}")
        for stop in (2, 3):  # within an epoch, and after one
            with pytest.raises(Interrupted):
                trained(spec, f"parts-{number}", stop=stop)
        found = trained(spec, f"parts-{number}")
        assert files_of(found.folder) == files_of(whole.folder)
        start = open_bundle(whole.folder).path
    assert len(whole.metrics["update"]["by_chunk"]) == 2


def test_the_memory_holds_pairs_of_both_updates_and_their_vectors(job, trained):
    first = trained(job(0, "DER"), "first")
    assert len(kept(first.folder / "luthier" / "update" / "memory.arrow")) == 12
    second = trained(job(1, "DER", start=first.folder), "second")
    folder = second.folder / "luthier" / "update"
    memory = kept(folder / "memory.arrow")
    anchors = memory.texts("anchor", np.arange(len(memory)))
    assert len(anchors) == 12
    assert 0 < sum(" at " in anchor for anchor in anchors) < 12
    told = json.loads((folder / "update.json").read_text())
    assert told["updates"] == 2
    assert told["seen"] == 64
    raw = sum(len(t) for role in memory.roles for t in memory.texts(role, np.arange(12)))
    assert (folder / "memory.arrow").stat().st_size < raw + 4096  # a file has a frame


def test_all_chunks_are_measured_and_their_queries_remembered(job, trained):
    first = trained(job(0), "first")
    assert first.metrics["update"]["score"] == "ndcg_at_k"
    second = trained(job(1, start=first.folder), "second")
    update = second.metrics["update"]
    assert update["matrix"][0] == first.metrics["update"]["by_chunk"]
    assert len(update["by_chunk"]) == 2
    assert update["before"][0] == pytest.approx(first.metrics["update"]["by_chunk"][0])
    assert update["by_chunk"][1] == pytest.approx(second.metrics["after"]["ndcg_at_k"])
    assert update["forgetting"] is not None
    again = trained(job(0, start=second.folder), "again")  # the queries of chunk 0 once more
    assert len(again.metrics["update"]["by_chunk"]) == 2


def test_replay_keeps_what_plain_training_forgets(tmp_path, tiny_model, trained):
    """Answers that can only be learnt by heart: nothing of them is in the words."""
    answers = np.random.default_rng(0).permutation(len(THINGS) * len(COLOURS))
    asked = [f"the {colour} {thing}" for colour in COLOURS for thing in THINGS]
    told = [f"{'abcdefghij'[n % 10]} {'klmnopqrst'[n // 10]}" for n in answers]
    rows = list(zip(asked, told, strict=True))
    lost, kept_ = {}, {}
    for updater in ("FineTuning", "ER"):
        start = None
        for number, part in enumerate((rows[:24], rows[24:48])):
            file = write(tmp_path / f"answers-{number}.csv", part, ("anchor", "positive"))
            spec = parse_spec({
                "model": {"name": str(tiny_model), "artifact": start and str(start)},
                "data": {"train": {"uri": str(file)}, "eval": {"uri": str(file)}},
                "objective": {"loss": "MultipleNegativesRankingLoss"},
                "update": {"updater": updater} | ({"memory_size": 24} if updater == "ER" else {}),
                "training": {"per_device_train_batch_size": 12, "num_train_epochs": 40,
                             "learning_rate": 3e-3, "eval_steps": 10**6, "device": "cpu"},
            })  # fmt: skip
            found = trained(spec, f"{updater}-{number}")
            start = found.folder
        update = found.metrics["update"]
        lost[updater], kept_[updater] = update["forgetting"], update["by_chunk"]
    assert kept_["FineTuning"][1] > 0.9, kept_
    assert kept_["ER"][1] > 0.9, kept_
    assert lost["ER"] < lost["FineTuning"] - 0.1, lost


@pytest.mark.parametrize(
    ("loss", "names", "rows"),
    [
        (
            "TripletMarginLoss",
            ("text", "label"),
            [(f"{c} {t}", t) for t in THINGS for c in COLOURS],
        ),
        (
            "CosineSimilarityLoss",
            ("sentence1", "sentence2", "score"),
            [(f"{c} {t}", f"{t} {c}", (i % 5) / 4) for i, t in enumerate(THINGS) for c in COLOURS],
        ),
        (
            "MultipleNegativesRankingLoss",
            ("anchor", "positive", "negative"),
            [(f"{c} {t}", f"{t} {c}", f"no {c}") for t in THINGS for c in COLOURS],
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("updater", ["ER", "CLS-ER", "Robust-DER"])
def test_every_form_of_rows_is_remembered(
    loss, names, rows, updater, tmp_path, tiny_model, trained
):
    start = None
    for number, part in enumerate((rows[:40], rows[40:80])):
        file = write(tmp_path / f"part-{number}.csv", part, names)
        spec = parse_spec({
            "model": {"name": str(tiny_model), "artifact": start and str(start)},
            "data": {"train": {"uri": str(file)}},
            "objective": {"loss": loss},
            "update": {"updater": updater, "memory_size": 16},
            "training": {"per_device_train_batch_size": 8, "num_train_epochs": 1, "device": "cpu"},
        })  # fmt: skip
        found = trained(spec, f"run-{number}")
        start = found.folder
    memory = kept(start / "luthier" / "update" / "memory.arrow")
    assert len(memory) == 16
    there = {rows.index(row) // 40 for row in rows[:80]
             if row[0] in memory.texts(memory.roles[0], np.arange(16))}  # fmt: skip
    assert there == {0, 1}
    if names[1] == "label":
        labels = {memory.class_name(code) for code in memory.array("label").tolist()}
        assert labels <= set(THINGS)
        assert len(labels) > 4  # of both chunks


def test_rows_of_another_kind_are_refused(job, trained, tmp_path):
    first = trained(job(0), "first")
    spec = job(1, start=first.folder)
    other = write(tmp_path / "scored.csv", [("a", "b", 0.5)] * 8, ("text1", "text2", "score"))
    spec = spec.changed(**{"data.train": {"uri": str(other)}}, loss="CoSENTLoss")
    with pytest.raises(DataError, match="remembered pairs"):
        trained(spec, "second")


def test_what_does_not_go_together_is_refused(job):
    cases = {
        "POD-ER": ({}, "configuration files"),
        "iCaRL": ({}, "one class each"),
        "RD": ({}, "configuration files"),
        "ER": ({"probe_budget": 0.1}, "no probe"),
    }
    for updater, (update, message) in cases.items():
        found = problems(job(0, updater, update=update))
        assert any(message in problem.message for problem in found), updater
    found = problems(job(0, gradient_accumulation_steps=2))
    assert [p.field for p in found] == ["gradient_accumulation_steps"]
    assert isinstance(SpecError(found), SpecError)


def test_joined_rows_are_numbered_old_ones_first(tmp_path):
    from luthier.data import load_dataset
    from luthier.data.remembered import keep
    from luthier.spec import CSVOptions

    rows = [("a", "x"), ("b", "y"), ("c", "x")]
    old = load_dataset(write(tmp_path / "o.csv", rows, ("text", "label")), CSVOptions(), tmp_path)
    more = [("d", "z"), ("e", "y")]
    new = load_dataset(write(tmp_path / "n.csv", more, ("text", "label")), CSVOptions(), tmp_path)
    keep(old, np.array([2, 1]), tmp_path / "kept.arrow")
    found = joined(kept(tmp_path / "kept.arrow"), new, 2)
    assert found.texts("text", np.arange(4)) == ["c", "b", "d", "e"]
    assert [found.class_name(code) for code in found.array("label")] == ["x", "y", "z", "y"]
    assert found.num_classes == 3
    assert found.id != new.id


def test_a_budget_of_bytes_holds(job, trained):
    from luthier.data.remembered import bytes_of

    start = None
    for number in (0, 1):
        update = {"memory_size": 500, "memory_bytes": 400}
        found = trained(job(number, start=start, update=update), f"run-{number}")
        start = found.folder
        memory = kept(start / "luthier" / "update" / "memory.arrow")
        assert 250 < bytes_of(memory).sum() <= 400
    words = [*memory.texts("anchor", np.arange(len(memory)))]
    assert 0 < sum(" at " in word for word in words) < len(words)


def test_more_or_fewer_rows_go_along(job, trained, new_place):
    from luthier.engine.means import Means
    from luthier.engine.run import _prepared, keep_going

    first = trained(job(0), "first")
    for ratio, count in ((0.0, 0), (0.5, 4), (1.5, 12)):
        spec = job(1, start=first.folder, update={"replay_ratio": ratio})
        setup, _ = _prepared(spec, new_place(f"r{ratio}"), lambda *_: None, keep_going, Means())
        setup.update.start()
        replayed = setup.update._replay()
        assert (0 if replayed is None else len(replayed.scores)) == count
    with pytest.raises(SpecError, match="not both"):
        job(1, update={"replay_ratio": 1.0, "memory_batch_size": 4})


def test_a_memory_is_written_without_being_in_memory(tmp_path):
    import pyarrow

    from luthier.data import load_dataset
    from luthier.data.remembered import keep
    from luthier.spec import CSVOptions

    rows = [(f"{n} " + "a" * 500, "b" * 500) for n in range(40_000)]
    file = write(tmp_path / "large.csv", rows, ("anchor", "positive"))
    dataset = load_dataset(file, CSVOptions(), tmp_path)
    chosen = np.random.default_rng(0).permutation(len(rows))
    pool = pyarrow.default_memory_pool()
    before = pool.bytes_allocated()
    high = pool.max_memory()
    keep(dataset, chosen, tmp_path / "kept.arrow")
    found = kept(tmp_path / "kept.arrow")
    assert found.texts("anchor", np.array([5])) == [rows[chosen[5]][0]]
    assert (tmp_path / "kept.arrow").stat().st_size > 40e6
    assert pool.max_memory() - max(high, before) < 25e6


@pytest.mark.parametrize("merge", ["wise-ft", "ema", "soup", "ties"])
def test_weights_are_merged_at_the_end(merge, job, trained, files_of):
    first = trained(job(0, update={"merge": merge}), "first")
    spec = job(1, start=first.folder, update={"merge": merge})
    assert not problems(spec)
    whole = trained(spec, "whole")
    assert whole.metrics["update"]["merge"]["kind"] == merge
    plain = trained(job(1, start=first.folder), "plain")
    one, other = (files_of(found.folder)["model.safetensors"] for found in (whole, plain))
    if merge != "wise-ft":  # which may find that the trained weights are the best
        assert one != other
    with pytest.raises(Interrupted):
        trained(spec, "parts", stop=3)
    assert files_of(trained(spec, "parts").folder) == files_of(whole.folder)


def test_the_way_of_earlier_queries_and_drift_are_told(job, trained, files_of):
    first = trained(job(0, update={"drift": "report"}), "first")
    assert first.metrics["update"]["drift"]["decision"] == "update"
    update = {"drift": "report", "stability_steps": 2}
    plain = trained(job(1, start=first.folder), "plain")
    found = trained(job(1, start=first.folder, update=update), "second")
    told = found.metrics["update"]
    assert told["drift"]["reference"] == "queries of former updates"
    assert told["drift"]["decision"] in ("update", "retrain")  # other words altogether
    assert [point["step"] for point in told["stability"]["curve"]] == [2, 4, 6, 8]
    # watching changes nothing of what is trained
    weights = "model.safetensors"
    assert files_of(found.folder)[weights] == files_of(plain.folder)[weights]


def test_nothing_is_trained_where_nothing_has_drifted(trained, tmp_path, tiny_model):
    rows = [(f"the {c} {t}", f"{t} of {c}") for c in COLOURS for t in THINGS]
    order = np.random.default_rng(0).permutation(100)
    start = None
    for number, part in enumerate((order[:50], order[50:])):
        chosen = [rows[i] for i in part]
        train = write(tmp_path / f"t{number}.csv", chosen[:20], ("anchor", "positive"))
        asked = write(tmp_path / f"q{number}.csv", chosen[20:], ("anchor", "positive"))
        spec = parse_spec({
            "model": {"name": str(tiny_model), "artifact": start and str(start)},
            "data": {"train": {"uri": str(train)}, "eval": {"uri": str(asked)}},
            "objective": {"loss": "MultipleNegativesRankingLoss"},
            "update": {"updater": "ER", "memory_size": 9, "drift": "gate"},
            "training": {"per_device_train_batch_size": 10, "num_train_epochs": 1, "device": "cpu"},
        })  # fmt: skip
        found = trained(spec, f"run-{number}")
        start = start or found.folder
    assert found.metrics["update"]["drift"]["decision"] == "skip", found.metrics["update"]["drift"]
    assert found.metrics["steps"] == 0
    assert found.metrics["update"]["promoted"] is False
