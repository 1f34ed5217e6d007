"""Our own losses against their equations, and against sentence-transformers' classes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from sentence_transformers.sentence_transformer import losses as theirs
from sentence_transformers.util import pairwise_cos_sim, pairwise_dot_score
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from luthier.errors import DataError
from luthier.objectives import Embedded, build_objective
from luthier.objectives.matryoshka import default_dims
from luthier.spec import ObjectiveSpec
from luthier.testing.losses import LossCase, Vectors, random_batch

pytestmark = pytest.mark.usefixtures("one_thread")


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def unit(x: list[float]) -> list[float]:
    length = math.sqrt(dot(x, x))
    return [a / length for a in x]


def cosine(x: list[float], y: list[float]) -> float:
    return dot(unit(x), unit(y))


def ranking(columns: list[Vectors], scale: float, symmetric: bool, similarity: Any) -> float:
    anchors, documents = columns[0], [d for column in columns[1:] for d in column]
    forward = [
        -math.log(
            math.exp(scale * similarity(a, columns[1][i]))
            / sum(math.exp(scale * similarity(a, d)) for d in documents)
        )
        for i, a in enumerate(anchors)
    ]
    backward = [
        -math.log(
            math.exp(scale * similarity(anchors[i], p))
            / sum(math.exp(scale * similarity(a, p)) for a in anchors)
        )
        for i, p in enumerate(columns[1])
    ]
    terms = [(f + b) / 2 for f, b in zip(forward, backward, strict=True)] if symmetric else forward
    return sum(terms) / len(terms)


class RankingCase(LossCase):
    loss = "MultipleNegativesRankingLoss"
    form = "pairs"

    def oracle(self, columns: list[Vectors], labels: Any, targets: Any) -> float:
        scale = self.options.get("scale", 20.0)
        if "temperature" in self.options:
            scale = 1 / self.options["temperature"]
        by = dot if self.options.get("similarity") == "dot" else cosine
        return ranking(columns, scale, self.options.get("symmetric", False), by)


class TestRankingPairs(RankingCase): ...


class TestRankingTriplets(RankingCase):
    form = "triplets"


class TestRankingSymmetric(RankingCase):
    form = "triplets"
    options: ClassVar[dict[str, Any]] = {"symmetric": True, "scale": 5}


class TestRankingTemperature(RankingCase):
    options: ClassVar[dict[str, Any]] = {"temperature": 0.5}


class TestRankingDot(RankingCase):
    options: ClassVar[dict[str, Any]] = {"similarity": "dot", "scale": 1.0}


class TestCLIP(LossCase):
    loss = "CLIPLoss"
    form = "pairs"
    tolerance = 1e-7  # the scale is a float32 parameter

    def oracle(self, columns: list[Vectors], labels: Any, targets: Any) -> float:
        return ranking(columns, 1 / 0.07, True, cosine)


class TestCosineSimilarity(LossCase):
    loss = "CosineSimilarityLoss"
    form = "scored"

    def oracle(self, columns: list[Vectors], labels: Any, targets: list[float] | None) -> float:
        assert targets is not None
        rows = zip(*columns, targets, strict=True)
        return sum((cosine(u, v) - score) ** 2 for u, v, score in rows) / len(targets)


def cosent(similarity: list[float], scores: list[float], scale: float) -> float:
    total = 1.0
    for i, high in enumerate(scores):
        for j, low in enumerate(scores):
            if high > low:
                total += math.exp(scale * (similarity[j] - similarity[i]))
    return math.log(total)


class TestCoSENT(LossCase):
    loss = "CoSENTLoss"
    form = "scored"

    def oracle(self, columns: list[Vectors], labels: Any, targets: list[float] | None) -> float:
        assert targets is not None
        return cosent([cosine(u, v) for u, v in zip(*columns, strict=True)], targets, 20)


class TestAnglE(LossCase):
    loss = "AnglELoss"
    form = "scored"
    options: ClassVar[dict[str, Any]] = {"scale": 3.0}

    def oracle(self, columns: list[Vectors], labels: Any, targets: list[float] | None) -> float:
        """By complex numbers: |Re<z, w> + Im<z, w>| of unit vectors."""
        assert targets is not None

        def complexes(x: list[float]) -> list[complex]:
            x = unit(x) if len(x) % 2 == 0 else [*unit(x), 0.0]
            half = len(x) // 2
            return [complex(x[i], x[half + i]) for i in range(half)]

        similarity = []
        for u, v in zip(*columns, strict=True):
            inner = sum(a * b.conjugate() for a, b in zip(complexes(u), complexes(v), strict=True))
            similarity.append(abs(inner.real + inner.imag))
        return cosent(similarity, targets, 3.0)


class TestAnglEOfOddWidth(TestAnglE):
    dim = 9


class TestMarginMSE(LossCase):
    loss = "MarginMSELoss"
    form = "margin"

    def oracle(self, columns: list[Vectors], labels: Any, targets: list[float] | None) -> float:
        assert targets is not None
        by = cosine if self.options.get("similarity") == "cosine" else dot
        rows = zip(*columns, targets, strict=True)
        return sum((by(q, p) - by(q, n) - m) ** 2 for q, p, n, m in rows) / len(targets)


class TestMarginMSECosine(TestMarginMSE):
    options: ClassVar[dict[str, Any]] = {"similarity": "cosine"}


class TestMatryoshka(LossCase):
    loss = "MatryoshkaLoss"
    form = "triplets"
    options: ClassVar[dict[str, Any]] = {
        "loss_options": {"scale": 4},
        "matryoshka_dims": [8, 3],
        "matryoshka_weights": [1, 0.5],
    }

    def oracle(self, columns: list[Vectors], labels: Any, targets: Any) -> float:
        cut = [[[x[:3] for x in column] for column in columns], columns]
        return ranking(cut[1], 4, False, cosine) + 0.5 * ranking(cut[0], 4, False, cosine)


class Given(nn.Module):
    """An encoder whose embeddings are its input: sentence-transformers' losses want one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["embedding"]}

    def get_embedding_dimension(self) -> int:
        return self.dim


def value_of_theirs(loss: nn.Module, batch: Embedded) -> Tensor:
    features = [{"embedding": column} for column in batch.columns]
    value: Tensor = loss(features, batch.targets)
    return value


SYMMETRIC = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
PEERS: dict[str, tuple[str, dict[str, Any], str, Any]] = {
    "pairs": (
        "MultipleNegativesRankingLoss",
        {},
        "pairs",
        theirs.MultipleNegativesRankingLoss,
    ),
    "hard negatives": (
        "MultipleNegativesRankingLoss",
        {"scale": 7},
        "triplets",
        lambda m: theirs.MultipleNegativesRankingLoss(m, scale=7),
    ),
    "symmetric": (
        "MultipleNegativesRankingLoss",
        {"symmetric": True},
        "triplets",
        lambda m: theirs.MultipleNegativesRankingLoss(m, **SYMMETRIC),
    ),
    "cosine": ("CosineSimilarityLoss", {}, "scored", theirs.CosineSimilarityLoss),
    "cosent": ("CoSENTLoss", {}, "scored", theirs.CoSENTLoss),
    "cosent scale": (
        "CoSENTLoss",
        {"scale": 3},
        "scored",
        lambda m: theirs.CoSENTLoss(m, scale=3),
    ),
    "angle": ("AnglELoss", {}, "scored", theirs.AnglELoss),
    "margin": (
        "MarginMSELoss",
        {},
        "margin",
        lambda m: theirs.MarginMSELoss(m, similarity_fct=pairwise_dot_score),
    ),
    "margin cosine": (
        "MarginMSELoss",
        {"similarity": "cosine"},
        "margin",
        lambda m: theirs.MarginMSELoss(m, similarity_fct=pairwise_cos_sim),
    ),
    "matryoshka ranking": (
        "MatryoshkaLoss",
        {"matryoshka_dims": [4, 16, 8], "matryoshka_weights": [0.5, 1, 2]},
        "triplets",
        lambda m: theirs.MatryoshkaLoss(
            m, theirs.MultipleNegativesRankingLoss(m), [4, 16, 8], [0.5, 1, 2]
        ),
    ),
    "matryoshka cosent": (
        "MatryoshkaLoss",
        {"loss": "CoSENTLoss", "matryoshka_dims": [16, 5]},
        "scored",
        lambda m: theirs.MatryoshkaLoss(m, theirs.CoSENTLoss(m), [16, 5]),
    ),
}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("dim", [16, 17])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_sentence_transformers(peer: str, dim: int, seed: int) -> None:
    """Values and gradients, to 1e-6, on the same embeddings."""
    if dim == 17 and "matryoshka" in peer:
        dim = 16
    name, options, form, make = PEERS[peer]
    spec = ObjectiveSpec(loss=name, loss_options=options)
    ours = build_objective(spec, dim=dim, num_classes=0, form=form)
    mine = random_batch(form, 12, dim, seed=seed, dtype=torch.float32)
    other = random_batch(form, 12, dim, seed=seed, dtype=torch.float32)
    if mine.targets is not None:  # equal scores must not be ordered
        mine.targets[3:6] = 0.5
        other.targets[3:6] = 0.5  # type: ignore[index]
    value, expected = ours(mine), value_of_theirs(make(Given(dim)), other)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
    value.backward()
    expected.backward()
    for a, b in zip(mine.columns, other.columns, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_clip_equals_transformers() -> None:
    batch = random_batch("pairs", 8, 16, dtype=torch.float32)
    loss = build_objective(ObjectiveSpec(loss="CLIPLoss"), dim=16, num_classes=0, form="pairs")
    left, right = (nn.functional.normalize(c, dim=-1) for c in batch.columns)
    expected = image_text_contrastive_loss(left @ right.T / 0.07)
    assert loss(batch).item() == pytest.approx(expected.item(), rel=1e-6)


def test_clip_learns_its_scale_up_to_its_limit() -> None:
    spec = ObjectiveSpec(loss="CLIPLoss", loss_options={"max_scale": 20})
    loss = build_objective(spec, dim=8, num_classes=0, form="pairs")
    (scale,) = loss.parameters()
    batch = random_batch("pairs", 8, 8, dtype=torch.float32)
    loss(batch).backward()
    assert scale.grad is not None
    assert scale.grad.item() != 0
    assert loss.stats["scale"] == pytest.approx(1 / 0.07)
    with torch.no_grad():
        scale.fill_(10.0)
    loss(batch)
    assert loss.stats["scale"] == 20


def test_matryoshka_of_a_loss_with_classes_has_centres_for_each_width() -> None:
    spec = ObjectiveSpec(
        loss="MatryoshkaLoss",
        loss_options={"loss": "ArcFaceLoss", "matryoshka_dims": [8, 4]},
    )
    loss = build_objective(spec, dim=8, num_classes=3, form="labelled")
    assert sorted(tuple(p.shape) for p in loss.parameters()) == [(4, 3), (8, 3)]
    loss(random_batch("labelled", dtype=torch.float32)).backward()
    assert all(p.grad is not None for p in loss.parameters())


def test_matryoshka_mines_at_each_width() -> None:
    spec = ObjectiveSpec(
        loss="MatryoshkaLoss",
        loss_options={"loss": "TripletMarginLoss", "matryoshka_dims": [8, 4]},
        miner="TripletMarginMiner",
    )
    loss = build_objective(spec, dim=8, num_classes=3, form="labelled")
    loss(random_batch("labelled", dtype=torch.float32)).backward()
    assert set(loss.stats) == {"mined@8", "mined@4"}


@pytest.mark.parametrize(("dim", "dims"), [(384, [384, 192, 96, 48]), (32, [32]), (8, [8])])
def test_matryoshka_dims_by_default(dim: int, dims: list[int]) -> None:
    assert default_dims(dim) == dims


@pytest.mark.parametrize(
    ("loss", "form", "columns"),
    [
        ("MultipleNegativesRankingLoss", "pairs", 1),
        ("CLIPLoss", "pairs", 3),
        ("CoSENTLoss", "scored", 3),
        ("MarginMSELoss", "margin", 2),
        ("VICRegLoss", "pairs", 3),
    ],
)
def test_the_wrong_number_of_columns(loss: str, form: str, columns: int) -> None:
    built = build_objective(ObjectiveSpec(loss=loss), dim=4, num_classes=0, form=form)
    batch = Embedded(tuple(torch.randn(3, 4) for _ in range(columns)), targets=torch.rand(3))
    with pytest.raises(DataError, match=r"compares .* a row"):
        built(batch)


@pytest.mark.parametrize("loss", ["CosineSimilarityLoss", "CoSENTLoss", "AnglELoss"])
def test_scores_are_needed(loss: str) -> None:
    built = build_objective(ObjectiveSpec(loss=loss), dim=4, num_classes=0, form="scored")
    with pytest.raises(DataError, match="needs a score in each row"):
        built(Embedded((torch.randn(3, 4), torch.randn(3, 4))))
