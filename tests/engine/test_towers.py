"""Two towers: they train apart, in the same ways as one, and open where people serve models."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from test_rankings import a_learner, equal, gradients_of, searches, write

import luthier
from luthier.admission import check
from luthier.engine.device import Device
from luthier.engine.optim import build_optimization
from luthier.engine.ranking_learner import RankingLearner
from luthier.errors import ModelError, SpecError
from luthier.models.loading import load_text_model, open_text_model
from luthier.models.towers import TwoTowers, load_towers


@pytest.fixture
def ranked(tmp_path, make_spec):
    file = write(tmp_path / "searches.jsonl", searches())

    def make(**changes):
        base = {
            "data.train": {"uri": str(file)}, "loss": "ListwiseSoftmaxLoss", "towers": "two",
        }  # fmt: skip
        return make_spec(**{**base, **changes})

    return make


def tower_learner(spec, place, execution="packed"):
    one = a_learner(spec, place, execution)
    towers = load_towers(spec.model, artifact=None, device="cpu")
    towers.execution = execution
    return RankingLearner(towers, one.objective, one.dataset, Device("cpu", "fp32"))


def test_at_first_they_are_one_model(ranked, place, one_thread):
    spec = ranked()
    one, one_gradients = gradients_of(a_learner(spec, place, "packed"), None)
    two, gradients = gradients_of(tower_learner(spec, place), None)
    assert two == pytest.approx(one, abs=1e-6)
    summed = {
        name: gradients[f"query_tower.{name}"] + gradients[f"item_tower.{name}"]
        for name in one_gradients
    }
    equal(summed, one_gradients, atol=5e-6, rtol=1e-4)
    assert all(bool((g != 0).any()) for n, g in gradients.items() if "word_emb" in n)


@pytest.mark.parametrize("execution", ["packed", "chunked", "padded"])
def test_chunks_equal_the_whole(ranked, place, execution, one_thread):
    whole = gradients_of(tower_learner(ranked(), place), None)
    loss, found = gradients_of(tower_learner(ranked(), place, execution), 4)
    assert loss == pytest.approx(whole[0], abs=1e-6)
    # Sums over all texts, in another order: what nearly cancels is off by some 2e-6.
    equal(found, whole[1], atol=5e-6, rtol=1e-4)


def test_each_has_its_rate_and_decay(ranked, place, one_thread):
    spec = ranked(
        optim="SGD", optim_args={"weight_decay": 0.02}, learning_rate=0.1,
        query_learning_rate=0.01, query_weight_decay=0.5,
    )  # fmt: skip
    learner = tower_learner(spec, place)
    start = {n: p.detach().clone() for n, p in learner.model.named_parameters()}
    optimization = build_optimization(
        spec.training, learner.model.depths(), device=learner.device, total_steps=3
    )
    _, gradients = gradients_of(learner, None)
    torch.manual_seed(3)
    batch = learner.fetch(np.arange(12))
    optimization.step(lambda: learner.backward(batch, None))
    for name, parameter in learner.model.named_parameters():
        if name in gradients:
            rate, decay = (0.01, 0.5) if name.startswith("query_tower.") else (0.1, 0.02)
            expected = start[name] - rate * (gradients[name] + decay * start[name])
            torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=1e-5)


def test_a_run_opens_in_sentence_transformers(ranked, trained):
    outcome = trained(
        ranked(val_split=0.25, num_train_epochs=4, learning_rate=2e-3, query_learning_rate=1e-3)
    )
    assert outcome.metrics["after"]["ndcg_at_k"] > outcome.metrics["before"]["ndcg_at_k"]
    theirs = SentenceTransformer(str(outcome.folder), device="cpu")
    ours = luthier.get_model(outcome.folder)
    assert isinstance(ours.model, TwoTowers)
    texts = ["a red boat", "house that is blue"]
    queries = theirs.encode_query(texts, normalize_embeddings=True)
    documents = theirs.encode_document(texts, normalize_embeddings=True)
    np.testing.assert_allclose(ours.model.encode_query(texts), queries, atol=1e-5)
    np.testing.assert_allclose(ours.encode(texts, normalize=True), documents, atol=1e-5)
    assert np.abs(queries - documents).max() > 1e-3  # they did train apart
    again = open_text_model(outcome.folder, device="cpu")
    np.testing.assert_array_equal(again.encode(texts), ours.encode(texts, normalize=True))


@pytest.mark.parametrize(
    "changes", [{}, {"num_fixed_layers": 1}, {"output_dim": 8, "freeze": True}], ids=str
)
def test_a_run_resumes_bit_for_bit(ranked, run_in_pieces, tiny_dropout_model, changes, one_thread):
    spec = ranked(**{"model.name": str(tiny_dropout_model)}, val_split=0.2, **changes)
    straight, stopped = run_in_pieces(spec, 5)
    files = sorted(p.relative_to(straight.folder) for p in straight.folder.rglob("*.safetensors"))
    assert len(files) >= 3
    for name in (*files, "luthier/history.json"):
        assert (straight.folder / name).read_bytes() == (stopped.folder / name).read_bytes(), name


def test_a_prefix_serves_both(ranked, trained):
    fixed = {"num_fixed_layers": 1, "num_train_epochs": 4}
    stored = trained(ranked(**fixed), "stored")
    plain = trained(ranked(**fixed, execution="padded"), "plain")
    losses = [
        json.loads((o.folder / "luthier" / "history.json").read_text())["losses"]
        for o in (stored, plain)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_what_was_tuned_is_tuned_on(ranked, trained, tmp_path):
    first = trained(ranked(max_steps=3), "first").folder
    again = trained(ranked(**{"model.name": str(first)}, max_steps=0), "again").folder
    texts = ["a red boat"]
    for side in ("encode_query", "encode"):
        left, right = (getattr(open_text_model(f, device="cpu"), side) for f in (first, again))
        np.testing.assert_array_equal(left(texts), right(texts))
    one = ranked(**{"model.name": str(first)}, towers="shared")
    with pytest.raises(ModelError, match="has two towers"):
        load_text_model(one.model, artifact=None, device="cpu")


REFUSED = [
    ({"lora_r": 4}, "rankings", "adapters are for one encoder"),
    ({"to_onnx": True}, "rankings", "one graph holds one encoder"),
    ({"updater": "ER"}, "rankings", "no updater learns on with rankings"),
    ({"sampler": "class"}, "rankings", "searches have no classes"),
    ({"optim": "LBFGS"}, "rankings", "has one group of parameters"),
    ({"optim": "Rprop", "query_weight_decay": 0.1}, "rankings", "has no weight decay"),
    ({"loss": "MultipleNegativesRankingLoss"}, "rankings", "needs pairs or triplets data"),
    ({"miner": "BatchHardMiner"}, "rankings", "takes no miner"),
    ({"loss": "MultipleNegativesRankingLoss"}, "pairs", "model.towers: is for rankings"),
    (
        {"loss": "CLIPLoss", "towers": "shared", "query_learning_rate": 1e-3,
         "query_weight_decay": 0.1, "examples_order": (1, 11)},
        "pairs",
        "examples_order: is for rankings",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "form", "said"), REFUSED)
def test_what_does_not_go_with_it_is_refused(ranked, changes, form, said):
    found = check(ranked(**changes), form, {"cpu"})
    assert said in "\n".join(map(str, found))
    assert all(problem.hint for problem in found if "rankings" in str(problem))


def test_unknown_phases_are_refused(ranked):
    with pytest.raises(SpecError, match="examples_order"):
        ranked(examples_order=(12,))
