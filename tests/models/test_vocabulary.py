"""Training only the token rows that occur is training of the whole table."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from luthier.engine.control import Interrupted
from luthier.engine.run import run
from luthier.models.loading import load_text_model, open_text_model
from luthier.models.text import TextModel, evaluating
from luthier.models.vocabulary import (
    EXACT,
    ActiveEmbedding,
    activate,
    inexact,
    trained,
    unfit,
    whole,
)
from luthier.registry import cards
from luthier.spec import ModelSpec, parse_spec
from luthier.testing.models import tiny_text_model

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIMIZERS = [c.name for c in cards("optimizer")]
SEEN = ["banana", "a lemon is not a banana", "lemon", "be or not to be a lemon"]
UNSEEN = ["zygote wizard 77", "lemon, zebra"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    families = ("bert", "roberta", "distilbert", "modernbert", "llama", "albert", "mpnet", "t5")
    return {f: tiny_text_model(root / f, f, dropout=0.1, seed=3) for f in families}


def load(folder: Path) -> TextModel:
    return load_text_model(ModelSpec(name=str(folder)), artifact=None, device="cpu")


def active(model: TextModel) -> TextModel:
    activate(model, np.unique(model.tokens(SEEN).values))
    return model


def train(model: TextModel, optimizer, clip: float, steps: int = 6) -> float:
    """A few steps on ever other texts, so that rows come and go; the last loss."""
    model.train()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    torch.manual_seed(1)
    for number in range(steps):
        texts = SEEN[number % 3 : number % 3 + 2]

        def closure(texts=texts) -> torch.Tensor:
            optimizer.zero_grad()
            vectors = model.embed(model.tokens(texts))
            loss = torch.cosine_similarity(vectors[:1], vectors[1:]).sum()
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(parameters, clip)
            return loss

        loss = optimizer.step(closure)
    return loss.item()


def build(name: str, parameters, **options):
    if name in ("Adam", "AdamW", "SGD", "Adagrad"):
        options["fused"] = True
    if name == "AdamW":
        options.setdefault("weight_decay", 0.0)
    return getattr(torch.optim, name)(parameters, lr=1e-3, **options)


def both(folder: Path, name: str, clip: float = 0.0, **options):
    """The plain run and the one of active rows, with their optimizers."""
    plain, ours = load(folder), active(load(folder))
    first = build(name, [p for _, p, _ in plain.depths() if p.requires_grad], **options)
    second = build(name, [p for _, p, _ in trained(ours) if p.requires_grad], **options)
    assert train(plain, first, clip) == pytest.approx(train(ours, second, clip), abs=1e-5)
    return plain, ours, first, second


# --- exactness --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in EXACT]
    + [
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("Adam", {"amsgrad": True}),
        ("RMSprop", {"momentum": 0.9, "centered": True}),
        ("Adagrad", {"initial_accumulator_value": 0.1}),
        ("NAdam", {"decoupled_weight_decay": True}),
    ],
)
def test_each_admitted_optimizer_gives_the_same_weights(folders, name, options) -> None:
    assert inexact(name, options | {"weight_decay": 0.0}) == ""
    start = load(folders["bert"]).state_dict()
    plain, ours, _, _ = both(folders["bert"], name, **options)
    expected, found = plain.state_dict(), ours.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    table = next(n for n in found if n.endswith("word_embeddings.weight"))
    moved = (found[table] != start[table]).any(1)
    assert 5 < int(moved.sum()) < len(moved) / 4


@pytest.mark.parametrize("name", EXACT)
def test_clipping_differs_by_rounding_alone(folders, name) -> None:
    """The norm of fewer zeros is the same number, summed in another order."""
    plain, ours, _, _ = both(folders["bert"], name, clip=0.1)
    found = ours.state_dict()
    for key, expected in plain.state_dict().items():
        # Signs and quotients of gradients near zero magnify rounding.
        torch.testing.assert_close(found[key], expected, atol=2e-5, rtol=1e-4)


def test_those_that_move_idle_rows_are_refused() -> None:
    """By the optimizers themselves: a row whose gradient is always zero, and one that is not."""
    for name in OPTIMIZERS:
        # Adafactor leaves an idle row alone too, but scales the others by the size of the table
        if name in ("LBFGS", "SparseAdam", "Adafactor"):
            assert "needs the whole table" in inexact(name, {})
            continue
        for decay in (0.0, 0.1):
            options = {} if name == "Rprop" else {"weight_decay": decay}
            rows = nn.Parameter(torch.ones(2, 4))
            optimizer = build(name, [rows], **options)
            for _ in range(5):
                rows.grad = torch.tensor([[0.0], [1.0]]).expand(2, 4).clone()
                optimizer.step()
            assert float(rows[1, 0].detach()) != 1
            moved = not torch.equal(rows[0].detach(), torch.ones(4))
            assert moved == bool(inexact(name, options)), (name, options)
    assert "weight_decay=0.01" in inexact("AdamW", {})
    assert "eps=0" in inexact("Adam", {"eps": 0})


@pytest.mark.parametrize("family", ["roberta", "distilbert", "modernbert", "llama", "albert"])
def test_every_family_gives_the_same_weights(folders, family) -> None:
    plain, ours, _, _ = both(folders[family], "Adam")
    found = ours.state_dict()
    assert all(torch.equal(found[n], tensor) for n, tensor in plain.state_dict().items())


@pytest.mark.parametrize("execution", ["packed", "chunked", "padded"])
def test_padding_does_not_train(folders, execution) -> None:
    plain, ours = load(folders["bert"]), active(load(folders["bert"]))
    plain.execution = ours.execution = execution
    for model in (plain, ours):
        train(model, build("Adam", [p for _, p, _ in trained(model) if p.requires_grad]), 0.0)
    found = ours.state_dict()
    assert all(torch.equal(found[n], tensor) for n, tensor in plain.state_dict().items())


# --- the table is whole for all else ----------------------------------------------------


def test_moments_are_those_of_the_active_rows(folders) -> None:
    _, ours, first, second = both(folders["bert"], "Adam")

    def size(optimizer) -> int:
        return sum(t.numel() for s in optimizer.state.values() for t in s.values() if t.dim())

    table = ours.token_embedding
    assert isinstance(table, ActiveEmbedding)
    spared = len(table.weight) - len(table.rows.ids)
    assert spared > 400
    assert size(first) - size(second) == 2 * spared * 32


def test_unseen_tokens_are_looked_up_too(folders) -> None:
    plain, ours, _, _ = both(folders["bert"], "Adam")
    texts = [*SEEN, *UNSEEN]
    np.testing.assert_array_equal(plain.encode(texts), ours.encode(texts))
    rows = ours.token_embedding.rows
    plain.token_embedding.weight.grad = rows.vectors.grad = None
    for model in (plain, ours):
        with evaluating(model):
            model.embed(model.tokens(UNSEEN)).square().sum().backward()
    expected = plain.token_embedding.weight.grad[rows.ids]
    torch.testing.assert_close(rows.vectors.grad, expected)


def test_a_saved_model_has_the_whole_table(folders, tmp_path) -> None:
    plain, ours, _, _ = both(folders["bert"], "Adam")
    plain.save(tmp_path / "plain")
    ours.save(tmp_path / "ours")
    names = sorted(p.relative_to(tmp_path / "plain") for p in (tmp_path / "plain").rglob("*.*"))
    for name in names:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert [n for n, _, _ in ours.depths()] == [n for n, _, _ in plain.depths()]
    opened = open_text_model(tmp_path / "ours", device="cpu")
    np.testing.assert_array_equal(opened.encode(UNSEEN), plain.encode(UNSEEN))


def test_copies_and_ordinary_tables(folders) -> None:
    plain, ours, _, _ = both(folders["bert"], "Adam")
    twin = copy.deepcopy(ours)
    with torch.no_grad():
        twin.token_embedding.rows.vectors.zero_()
    np.testing.assert_array_equal(ours.encode(SEEN), plain.encode(SEEN))
    assert not np.array_equal(twin.encode(SEEN), plain.encode(SEEN))
    whole(ours)
    assert type(ours.token_embedding) is nn.Embedding
    assert torch.equal(ours.token_embedding.weight, plain.token_embedding.weight)
    assert trained(ours) == ours.depths()


def test_tables_that_cannot_are_told(folders) -> None:
    model = load(folders["bert"])
    assert unfit(model) == ""
    model.token_embedding.max_norm = 1.0
    assert "rescales" in unfit(model)
    model.token_embedding.weight.requires_grad_(False)
    assert "does not train" in unfit(model)
    tied = load(folders["bert"])
    tied.encoder.decoder = nn.Linear(32, 600, bias=False)
    tied.encoder.decoder.weight = tied.token_embedding.weight
    assert "is also" in unfit(tied)
    assert "is also" in unfit(load(folders["t5"]))
    activate(model, np.arange(5))
    assert "ActiveEmbedding" in unfit(model)


# --- in a run ---------------------------------------------------------------------------


def job(folder: Path, tmp_path: Path, **changes):
    rows = [f"the red boat {n},a boat that is red {n}" for n in range(24)]
    (tmp_path / "pairs.csv").write_text("\n".join(["anchor,positive", *rows]))
    spec = parse_spec(
        {
            "model": {"name": str(folder)},
            "data": {"train": {"uri": str(tmp_path / "pairs.csv")}},
            "objective": {"loss": "MultipleNegativesRankingLoss"},
            "training": {
                "per_device_train_batch_size": 8,
                "num_train_epochs": 3,
                "learning_rate": 1e-3,
                "device": "cpu",
                "precision": "fp32",
            },
        }
    )
    return spec.changed(**changes)


def place_of(tmp_path: Path, name: str):
    from luthier.engine.run import Place

    (tmp_path / name).mkdir()
    return Place(tmp_path / name, tmp_path / "cache", Path, Path)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"optim_args": {"layer_wise_lr_decay": 0.5}},
        {"callbacks": [{"kind": "wise_ft", "alpha": 0.5}]},
    ],
)
def test_a_run_gives_what_it_gave(folders, tmp_path, monkeypatch, words) -> None:
    spec, messages = job(folders["bert"], tmp_path, **words), []

    def tell(kind, data) -> None:
        if kind == "log":
            messages.append(data["message"])

    ours = run(spec, place_of(tmp_path, "ours"), tell)
    assert any("of 600 tokens occur" in message for message in messages)
    monkeypatch.setattr("luthier.engine.vocabulary.MOST_ACTIVE", 0)
    plain = run(spec, place_of(tmp_path, "plain"))
    found, expected = weights(ours.folder), weights(plain.folder)
    assert all(torch.equal(found[n], expected[n]) for n in expected)


def test_a_resumed_run_equals_the_straight_one(folders, tmp_path) -> None:
    changes = {"save_steps": 2, "callbacks": [{"kind": "wise_ft", "alpha": 0.5}]}
    spec = job(folders["bert"], tmp_path, **changes)
    straight = run(spec, place_of(tmp_path, "straight"))
    place, seen = place_of(tmp_path, "stopped"), [0]

    def tell(kind, data) -> None:
        seen[0] = data["step"] if kind == "step" else seen[0]

    with pytest.raises(Interrupted):
        run(spec, place, tell, lambda: "interrupt" if seen[0] == 4 else None)
    assert json.loads((place.folder / "resolved.json").read_text())["active_vocabulary"] is True
    resumed = run(spec, place)
    found, expected = weights(resumed.folder), weights(straight.folder)
    assert all(torch.equal(found[n], expected[n]) for n in expected)


@pytest.mark.parametrize(
    "changes", [{"optim": "AdamW"}, {"optim": "ASGD"}, {"optim_args": {"weight_decay": 0.1}}]
)
def test_a_run_that_decays_the_table_trains_it_whole(folders, tmp_path, changes) -> None:
    spec, place = job(folders["bert"], tmp_path, **changes), place_of(tmp_path, "run")
    result = run(spec.changed(max_steps=2), place)
    assert "active_vocabulary" not in json.loads((place.folder / "resolved.json").read_text())
    start, found = load(folders["bert"]).state_dict(), weights(result.folder)
    name = "embeddings.word_embeddings.weight"
    before = next(t for n, t in start.items() if n.endswith(name))
    assert bool((found[name] != before).any(1)[1:].all())  # also those that no text looks up
