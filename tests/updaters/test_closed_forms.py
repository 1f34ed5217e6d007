"""Heads in closed form, adapters, prompts and distillation: each equation against plain Python."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from luthier.errors import ModelError
from luthier.testing.pupils import SmallPupil
from luthier.updaters.build import build_updater
from luthier.updaters.classes import RunningMeans
from luthier.updaters.distill import Previous, divergence
from luthier.updaters.expert import Distilled, Expert
from luthier.updaters.lowrank import LowRank
from luthier.updaters.projected import RIDGES, RandomProjection, RandomProjectionHead, best_ridge
from luthier.updaters.prompts import centroids
from luthier.updaters.updater import Seen

CLASSES = 4


def make(rows: int = 40, seed: int = 7, classes: tuple[int, ...] = (0, 1, 2, 3)) -> SmallPupil:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes)[torch.arange(rows) % len(classes)]
    inputs = torch.randn(rows, 3, generator=generator) + labels[:, None]
    return SmallPupil(inputs, labels, CLASSES)


def features(pupil: SmallPupil) -> torch.Tensor:
    return pupil.see(pupil.batch(range(len(pupil.of)))).features[0].detach()


def test_running_means_over_two_updates_are_those_of_all_rows() -> None:
    whole, past = make(40), None
    for half in (range(25), range(25, 40)):
        pupil = make(40)
        pupil.inputs, pupil.of = (
            whole.inputs[half.start : half.stop],
            whole.of[half.start : half.stop],
        )
        pupil.new_rows = len(half)
        part = RunningMeans()
        part.start(pupil, past)
        part.end(pupil)
        past = part.hand_on()
    for c in range(CLASSES):
        mine = features(whole)[whole.of == c]
        units = [[float(x) / float(f.norm()) for x in f] for f in mine]
        total = [sum(column) for column in zip(*units, strict=True)]
        length = math.sqrt(sum(x * x for x in total))
        assert pupil.model[2].weight[c].tolist() == pytest.approx([x / length for x in total])


def test_a_class_of_a_former_update_is_still_known() -> None:
    first = make(classes=(0, 2))
    part = RunningMeans()
    part.start(first)
    part.end(first)
    past = part.hand_on()
    second = make(classes=(1,))
    part = RunningMeans()
    part.start(second, past)
    part.end(second)
    assert second.model[2].bias.tolist() == [0.0, 0.0, 0.0, -1.0]


def test_a_class_without_rows_is_never_the_nearest() -> None:
    pupil = make(classes=(0, 2))
    part = RunningMeans()
    part.start(pupil)
    part.end(pupil)
    assert set(pupil.see(pupil.batch(range(40))).scores.argmax(1).tolist()) <= {0, 2}


@pytest.mark.parametrize("projected", [0, 7])
def test_a_ridge_regression_over_two_updates(projected) -> None:
    """W = (Σ HᵀH + ridge I)⁻¹ Σ HᵀY of all rows, by numpy in one go."""
    whole, past = make(40), None
    for half in (range(30), range(30, 40)):
        pupil = make(40)
        pupil.inputs, pupil.of = (
            whole.inputs[half.start : half.stop],
            whole.of[half.start : half.stop],
        )
        pupil.new_rows = len(half)
        part = RandomProjection(projected, ridge=0.3, tune_first=False, seed=3)
        part.attach(pupil.model, 0)
        part.start(pupil, past)
        part.end(pupil)
        past = part.hand_on()
    h = features(whole).numpy()
    if projected:
        head = pupil.model[2]
        assert isinstance(head, RandomProjectionHead)
        assert 0.5 < float(head.projection.var()) * 5 < 1.5  # N(0, 1 / in_features)
        h = np.maximum(h @ head.projection.double().numpy(), 0)
    y = np.eye(CLASSES)[whole.of.numpy()]
    expected = np.linalg.solve(h.T @ h + 0.3 * np.eye(h.shape[1]), h.T @ y)
    found = pupil.model[2].linear if projected else pupil.model[2]
    assert found.weight.detach().numpy() == pytest.approx(expected.T, rel=1e-6, abs=1e-9)


def test_the_same_projection_in_every_update() -> None:
    one, other = (RandomProjectionHead(5, 4, 6, seed=1) for _ in range(2))
    assert torch.equal(one.projection, other.projection)
    assert not torch.equal(one.projection, RandomProjectionHead(5, 4, 6, seed=2).projection)


def test_the_best_ridge_is_that_of_trying_each() -> None:
    generator = torch.Generator().manual_seed(1)
    h = torch.randn(60, 30, generator=generator).double()
    y = nn.functional.one_hot(torch.arange(60) % 3, 3).double()
    y = y + 0.5 * torch.randn(60, 3, generator=generator).double()
    past = torch.randn(40, 30, generator=generator).double()
    gram, sums = past.T @ past, past.T @ torch.randn(40, 3, generator=generator).double()
    found = best_ridge(gram, sums, h, y)
    from luthier.batches.arithmetic import derive, permutation

    out = permutation(derive("ridge"), 60).astype(int) % 5 == 4
    rest, held = h.numpy()[~out], h.numpy()[out]
    errors = {}
    for ridge in RIDGES:
        w = np.linalg.solve(gram.numpy() + rest.T @ rest + ridge * np.eye(30),
                            sums.numpy() + rest.T @ y.numpy()[~out])  # fmt: skip
        errors[ridge] = ((held @ w - y.numpy()[out]) ** 2).mean()
    assert found == min(errors, key=errors.get)


def adapted(orthogonality: float = 0.0, updates: int = 0) -> tuple[SmallPupil, LowRank]:
    pupil = make()
    part = LowRank(r=2, alpha=3.0, orthogonality=orthogonality, seed=5)
    part.attach(pupil.model, updates)
    pupil.model.double()
    return pupil, part


def logits(pupil: SmallPupil) -> torch.Tensor:
    hidden = pupil.model[1](pupil.model[0](pupil.inputs))
    return pupil.model[2](hidden).detach()


def test_adapters_are_merged_into_the_weights_that_were_there() -> None:
    plain = make()
    pupil, part = adapted()
    assert torch.equal(logits(pupil), logits(plain)), "B is zero at first"
    trained = {n for n, p in pupil.model.named_parameters() if p.requires_grad}
    assert trained == {"0.lora_A.default.weight", "0.lora_B.default.weight", "2.weight", "2.bias"}
    with torch.no_grad():
        pupil.model[0].lora_B["default"].weight.normal_()
    a, b = (
        pupil.model[0].__getattr__(n)["default"].weight.detach().clone()
        for n in ("lora_A", "lora_B")
    )
    before = logits(pupil)
    foretold = part.plain(pupil.model, {n: t.clone() for n, t in pupil.model.state_dict().items()})
    part.detach(pupil.model)
    assert set(pupil.model.state_dict()) == set(plain.model.state_dict()) == set(foretold)
    expected = plain.model[0].weight.detach() + 3.0 / 2 * (b @ a)
    assert torch.allclose(pupil.model[0].weight, expected)
    assert torch.allclose(logits(pupil), before)
    for name, tensor in pupil.model.state_dict().items():
        assert torch.allclose(foretold[name], tensor), name


def test_adapters_of_former_updates_are_kept_apart() -> None:
    pupil, part = adapted(orthogonality=0.7)
    part.start(pupil)
    new = pupil.see(pupil.batch([0]))
    assert list(part.terms(pupil, new, None)) == []
    past = None
    kept = []
    for update in (0, 1):
        pupil, part = adapted(0.7, update)
        part.start(pupil, past)
        kept.append(pupil.model[0].lora_A["default"].weight.detach().clone())
        part.detach(pupil.model)
        past = part.hand_on()
    assert not torch.equal(*kept), "each update begins elsewhere"
    pupil, part = adapted(0.7, 2)
    part.start(pupil, past)
    (term,) = part.terms(pupil, pupil.see(pupil.batch([0])), None)
    now = pupil.model[0].lora_A["default"].weight.tolist()
    total = sum(
        sum(x * y for x, y in zip(old, row, strict=True)) ** 2
        for matrix in kept for old in matrix.tolist() for row in now
    )  # fmt: skip
    assert (term.weight, term.value.item()) == (0.7, pytest.approx(total))


def test_nothing_to_adapt_is_told() -> None:
    with pytest.raises(ModelError, match="nothing to adapt"):
        LowRank().attach(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), 0)


def test_a_new_model_learns_from_the_expert_and_from_what_was_noted() -> None:
    pupil = make()
    updater = build_updater("RD", {}, 0)
    assert isinstance(updater, Distilled)
    updater.start(pupil)
    new = pupil.see(pupil.batch(range(6)))
    noted = torch.randn(4, CLASSES).double()
    seen = pupil.see(pupil.batch(range(6, 10)))
    old = Seen(seen.batch, seen.scores, seen.features, {"scores": noted})
    (first,) = updater.terms(pupil, new, old)
    assert first.value.item() == pytest.approx(pupil.losses(new).mean().item()), "the expert"
    with torch.no_grad():  # learns
        for weight in pupil.model.parameters():
            weight.mul_(1.3)
    said = pupil.see(pupil.batch(range(6))).scores.detach().clone()
    updater.turned(pupil, 1)
    with torch.no_grad():
        for weight in pupil.model.parameters():
            weight.mul_(0.5)
    new = pupil.see(pupil.batch(range(6)))
    (term,) = updater.terms(pupil, new, old)
    total = 0.0
    for now, target in [*zip(new.scores, said, strict=True), *zip(old.scores, noted, strict=True)]:
        mean = sum(target.tolist()) / CLASSES
        squares = [
            (x - (t - mean)) ** 2 for x, t in zip(now.tolist(), target.tolist(), strict=True)
        ]
        total += sum(squares) / CLASSES / 2
    assert term.value.item() == pytest.approx(total / 10)


def test_the_expert_survives_a_crash() -> None:
    pupil = make()
    part, again = Expert(), Expert()
    part.start(pupil)
    part.turned(pupil, 1)
    with torch.no_grad():
        for weight in pupil.model.parameters():
            weight.mul_(0.5)
    again.start(pupil)
    again.restore(part.state())
    new = pupil.see(pupil.batch(range(6)))
    one, other = (next(iter(p.terms(pupil, new, None))).value.item() for p in (part, again))
    assert one == other > 0


def test_token_wise_divergence_counts_what_is_scored() -> None:
    """Scores (n, t, v): T² KL of each token that counts, their mean; by plain Python."""
    generator = torch.Generator().manual_seed(0)
    now, before = (torch.randn(2, 3, 5, generator=generator).double() for _ in range(2))
    counts = torch.tensor([[True, False, True], [True, True, False]])
    total = 0.0
    for i, t in counts.nonzero().tolist():

        def soft(x):
            powers = [math.exp(float(v) / 2) for v in x]
            return [p / sum(powers) for p in powers]

        p, q = soft(before[i, t]), soft(now[i, t])
        total += 4 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert divergence(now, before, 2.0, None, counts).item() == pytest.approx(total / 4)
    assert divergence(now, before, 2.0, None).item() != pytest.approx(total / 4)


def test_a_model_of_language_stays_near_the_one_before() -> None:
    class Tokens(SmallPupil):
        def see(self, batch, model=None) -> Seen:
            scores = super().see(batch, model).scores[:, None].expand(-1, 2, -1)
            return Seen(batch, scores, counts=torch.ones(scores.shape[:2], dtype=torch.bool))

    pupil = make()
    pupil.__class__ = Tokens
    pupil.known = None
    part = Previous(alpha=1.0, temperature=2.0)
    part.start(pupil)
    with torch.no_grad():
        for weight in pupil.model.parameters():
            weight.mul_(0.5)
    new = pupil.see(pupil.batch(range(5)))
    (term,) = part.terms(pupil, new, None)
    was = pupil.see(pupil.batch(range(5)), part._before).scores
    assert term.value.item() == pytest.approx(
        divergence(new.scores[:, 0], was[:, 0], 2.0, None).item()
    )


def test_centroids_are_where_nothing_moves() -> None:
    """Lloyd's fixed point: each centre is the mean of the points nearest to it."""
    generator = torch.Generator().manual_seed(3)
    points = torch.cat([torch.randn(20, 2, generator=generator) + 8 * i for i in range(3)])
    found = centroids(points, 3, key=11)
    nearest = [
        min(range(3), key=lambda c: math.dist(p, found[c].tolist())) for p in points.tolist()
    ]
    assert len(set(nearest)) == 3
    for c in range(3):
        mine = [p for p, n in zip(points.tolist(), nearest, strict=True) if n == c]
        assert len(mine) == 20
        mean = [sum(column) / len(mine) for column in zip(*mine, strict=True)]
        assert found[c].tolist() == pytest.approx(mean, rel=1e-5)
    assert torch.equal(found, centroids(points, 3, key=11))
    assert centroids(points[:2], 3, key=1).shape == (3, 2)
