"""Training on rankings: each text once, chunks, prefixes, phases, rates, resuming."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from luthier.data import load_dataset
from luthier.engine.device import Device
from luthier.engine.ranking_learner import RankingLearner
from luthier.engine.ranking_setup import phases_of, shared_decay
from luthier.errors import DataError
from luthier.models.dropout import set_fast_dropout
from luthier.models.loading import load_text_model
from luthier.models.tokens import Tokens
from luthier.objectives import build_objective
from luthier.objectives.lists import Phase
from luthier.spec import ObjectiveSpec

COLOURS = ["red", "blue", "green", "black", "white", "brown", "pink", "grey"]
THINGS = ["boat", "house", "tree", "stone", "river", "cloud", "horse", "apple"]
LOSSES = [
    "ProbMarginRankingLoss", "CosineProbMarginRankingLoss", "ListwiseSoftmaxLoss", "LambdaLoss",
    "ApproxNDCGLoss",
]  # fmt: skip


def searches(count=48):
    """Searches for a colour and a thing; that thing of that colour is relevant."""
    found = []
    for n in range(count):
        colour, thing = COLOURS[n % 8], THINGS[(n * 3 + n // 8) % 8]
        others = [THINGS[(n + i) % 8] for i in range(1, 4)]
        items = [f"{t} that is {colour}" for t in [thing, *others] if t != thing or t is thing]
        items = list(dict.fromkeys([*items, f"{thing} that is {COLOURS[(n + 1) % 8]}"]))
        place = n % len(items)
        items[0], items[place] = items[place], items[0]
        found.append(
            {
                "query": f"a {colour} {thing}",
                "items": items,
                "relevance": [float(i == place) for i in range(len(items))],
                "weight": [1.0 + (n + i) % 3 for i in range(len(items))],
                "score": [0.1 * ((n * 7 + i * 3) % 10) for i in range(len(items))],
            }
        )
    return found


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def ranked(tmp_path, make_spec):
    """A job on searches; words change its leaves."""
    file = write(tmp_path / "searches.jsonl", searches())

    def make(**changes):
        base = {"data.train": {"uri": str(file)}, "loss": "ListwiseSoftmaxLoss"}
        return make_spec(**{**base, **changes})

    return make


def a_learner(spec, place, execution="padded", **more):
    data = load_dataset(place.blobs(spec.data.train.uri), spec.data.csv, place.cache)
    model = load_text_model(spec.model, artifact=None, device="cpu")
    objective = build_objective(spec.objective, dim=model.dim, num_classes=0, form="rankings")
    model.execution = execution
    set_fast_dropout(model, execution != "padded")
    return RankingLearner(model, objective, data, Device("cpu", "fp32"), **more)


def gradients_of(found, micro, rows=12):
    found.mode(training=True)
    for module in found.modules():
        module.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    loss = found.backward(found.fetch(np.arange(rows)), micro)
    return loss, {
        n: p.grad.clone() for n, p in found.model.named_parameters() if p.grad is not None
    }


def equal(left, right, **tolerance):
    assert left.keys() == right.keys() != set()
    for name in left:
        torch.testing.assert_close(left[name], right[name], **tolerance)


@pytest.mark.parametrize("loss", LOSSES)
def test_chunks_equal_the_whole(ranked, place, loss, one_thread):
    spec = ranked(loss=loss)
    expected = gradients_of(a_learner(spec, place), None)
    for execution, micro in (("padded", 5), ("packed", 1), ("packed", 4), ("chunked", 5)):
        loss, found = gradients_of(a_learner(spec, place, execution), micro)
        assert loss == pytest.approx(expected[0], abs=1e-6)
        equal(found, expected[1], atol=5e-6, rtol=1e-4)


def test_equals_each_text_for_itself(ranked, place, one_thread):
    """Each query and item encoded alone, as often as it occurs, gives the same loss."""
    learner = a_learner(ranked(), place, "packed")
    learner.mode(training=False)
    rows = np.array([3, 11, 19, 3])
    batch = learner.fetch(rows)
    assert len(batch) == 4
    assert len(batch.columns[0]) == len(set(learner.dataset.texts("query", rows)))
    shown = [learner.dataset.texts("items", [row]) for row in rows]
    assert len(batch.columns[1]) == len({text for texts in shown for text in texts})
    loss = learner.loss(batch)
    queries = torch.from_numpy(
        learner.model.encode(learner.dataset.texts("query", rows), normalize=False)
    )
    everything = [text for texts in shown for text in texts]
    items = torch.from_numpy(learner.model.encode(everything, normalize=False))
    first = {text: place for place, text in reversed(list(enumerate(everything)))}
    lists = replace(batch.lists, items=torch.tensor([first[text] for text in everything]))
    from luthier.objectives import Embedded

    used = sorted(set(first.values()))
    where = {place: i for i, place in enumerate(used)}
    lists = replace(lists, items=torch.tensor([where[int(i)] for i in lists.items]))
    expected = learner.objective(Embedded((queries, items[used]), lists=lists)).item()
    assert loss == pytest.approx(expected, abs=1e-5)


def test_an_item_twice_in_a_list_is_one(tmp_path, ranked, place):
    rows = [{"query": "q", "items": ["a", "b", "a"], "relevance": [0.0, 0.0, 1.0]}] * 2
    spec = ranked(**{"data.train": {"uri": str(write(tmp_path / "twice.jsonl", rows))}})
    batch = a_learner(spec, place).fetch(np.array([0]))
    assert sorted(batch.lists.relevance.tolist()) == [0.0, 1.0]
    assert len(batch.columns[1]) == 2


# --- runs --------------------------------------------------------------------------------------


def test_a_run_learns_and_says_how_searches_are_ranked(ranked, trained):
    outcome = trained(ranked(val_split=0.25, num_train_epochs=8, learning_rate=3e-3))
    before, after = outcome.metrics["before"], outcome.metrics["after"]
    assert set(after) == {"ndcg_at_k", "reciprocal_rank"}
    assert after["ndcg_at_k"] > before["ndcg_at_k"]
    assert after["reciprocal_rank"] > before["reciprocal_rank"]
    history = json.loads((outcome.folder / "luthier" / "history.json").read_text())
    assert history["evaluations"][-1]["val_loss"] < history["evaluations"][0]["val_loss"]
    assert "ndcg" in (outcome.folder / "README.md").read_text().lower()


STOPPED = [
    {},
    {"num_fixed_layers": 1},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    {"examples_order": (3, 1, 11), "query_learning_rate": 5e-4},
    {"lr_scheduler_type": "step", "training.lr_scheduler_kwargs": {"step_size": 3, "gamma": 0.5}},
]


@pytest.mark.parametrize("changes", STOPPED, ids=str)
def test_a_run_resumes_bit_for_bit(ranked, run_in_pieces, tiny_dropout_model, changes, one_thread):
    spec = ranked(**{"model.name": str(tiny_dropout_model)}, val_split=0.2, **changes)
    straight, stopped = run_in_pieces(spec, 2, 7)
    for name in ("model.safetensors", "luthier/history.json"):
        assert (straight.folder / name).read_bytes() == (stopped.folder / name).read_bytes(), name


def test_a_prefix_is_stored_once_a_text(ranked, trained):
    fixed = {"num_fixed_layers": 1, "num_train_epochs": 4}
    with_prefix = trained(ranked(**fixed), "stored")
    plain = trained(ranked(**fixed, execution="padded"), "plain")
    losses = [
        json.loads((o.folder / "luthier" / "history.json").read_text())["losses"]
        for o in (with_prefix, plain)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


# --- rates and phases --------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [None, 0.1])
def test_a_rate_of_the_queries_is_a_second_optimizer(ranked, place, decay, one_thread):
    """Shared weights with two rates under SGD: as two SGDs that step one after the other, each
    with the gradient that flows through its side."""
    options = {} if decay is None else {"weight_decay": 0.02}
    spec = ranked(
        optim="SGD", optim_args=options, learning_rate=0.1, query_learning_rate=0.03,
        query_weight_decay=decay,
    )  # fmt: skip
    training = shared_decay(spec)
    ours = a_learner(spec, place, "packed", query_scale=0.3)
    _, found = gradients_of(ours, None)
    wd = training.optim_args.get("weight_decay", 0.0)
    stepped = {
        n: p.detach() - 0.1 * (found[n] + wd * p.detach())
        for n, p in ours.model.named_parameters()
        if n in found
    }
    theirs = a_learner(spec, place, "packed")
    theirs.mode(training=True)
    batch = theirs.fetch(np.arange(12))
    columns = theirs.embed_columns(batch, theirs.model)
    sides = [c.detach().requires_grad_() for c in columns]
    theirs.compare(sides, batch).backward()
    expected = {n: p.detach().clone() for n, p in theirs.model.named_parameters()}
    start = {n: p.clone() for n, p in expected.items()}
    for column, side, rate, d in zip(
        columns, sides, (0.03, 0.1), (decay, options.get("weight_decay", 0.0)), strict=True
    ):
        theirs.model.zero_grad()
        column.backward(side.grad, retain_graph=True)
        for n, p in theirs.model.named_parameters():
            if p.grad is not None:
                expected[n] -= rate * (p.grad + (d or 0.0) * start[n])
    for n, value in stepped.items():
        torch.testing.assert_close(value, expected[n], atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(value, start[n]) for n, value in stepped.items())


def test_phases_are_thirds_of_all_pairs(ranked, place):
    dataset = a_learner(ranked(), place).dataset
    apart = []
    for row in searches():
        for i, y in enumerate(row["relevance"]):
            for j, z in enumerate(row["relevance"]):
                if y > z:
                    apart.append(abs(row["score"][i] - row["score"][j]))
    found = phases_of(dataset, (3, 1, 2, 11))
    assert found[3] is None
    counted = [sum(p.low < a <= p.high for a in apart) for p in found[:3]]
    assert sum(counted) == len(apart)
    assert min(counted) > 0
    assert found[0].high == sorted(apart)[int((len(apart) - 1) / 3)]
    with pytest.raises(DataError, match="no pair for the phase 'negative_only'"):
        phases_of(dataset, (10,))


def test_phases_by_difficulty_need_scores(tmp_path, ranked, trained):
    rows = [{k: v for k, v in row.items() if k != "score"} for row in searches()]
    source = {"uri": str(write(tmp_path / "unscored.jsonl", rows))}
    with pytest.raises(DataError, match="need the starting model's scores"):
        trained(ranked(**{"data.train": source}, examples_order=(3, 11)))


def test_a_phase_counts_its_pairs_only(ranked, place):
    learner = a_learner(ranked(loss="ProbMarginRankingLoss"), place, "packed")
    learner.mode(training=True)
    seen = []
    for phase in (None, Phase(high=0.35), Phase(low=0.35)):
        learner.phase = lambda phase=phase: phase
        learner.backward(learner.fetch(np.arange(12)), None)
        seen.append(learner.objective.stats["pairs"])
    assert seen[0] == seen[1] + seen[2]
    assert min(seen) > 0
    learner.phase = lambda: Phase(low=99.0)
    loss, gradients = gradients_of(learner, None)
    assert loss == 0.0
    assert all(bool((g == 0).all()) for g in gradients.values())


def test_examples_order_changes_what_is_learned_first(ranked, trained):
    runs = {
        order: json.loads(
            (trained(ranked(examples_order=order), str(order)).folder / "luthier" / "history.json")
            .read_text()
        )["losses"]
        for order in ((3, 11), (11, 3))
    }  # fmt: skip
    assert runs[(3, 11)][0] != runs[(11, 3)][0]


def test_objective_spec_takes_them():
    for loss in LOSSES:
        build_objective(ObjectiveSpec(loss=loss), dim=4, num_classes=0, form="rankings")


def test_joined_tokens_split_by_column(ranked, place):
    learner = a_learner(ranked(), place, "packed")
    batch = learner.fetch(np.arange(6))
    queries, items = learner.embed_columns(batch, learner.model)
    assert (len(queries), len(items)) == tuple(map(len, batch.columns))
    assert len(Tokens.join(batch.columns)) == len(queries) + len(items)
