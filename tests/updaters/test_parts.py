"""Each part's equation against plain Python."""

import math

import pytest
import torch

from luthier.testing.pupils import SmallPupil
from luthier.updaters.averages import Complementary
from luthier.updaters.classes import NearestMean
from luthier.updaters.distill import Previous
from luthier.updaters.elastic import Elastic
from luthier.updaters.pooled import PooledOutputs, pooled
from luthier.updaters.replay import Dark, Replay
from luthier.updaters.updater import Seen, Term, Updater
from luthier.updaters.weights import Anchor, ShrinkAndPerturb

CLASSES = 4


@pytest.fixture
def pupil() -> SmallPupil:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(16, 3, generator=generator)
    return SmallPupil(inputs, torch.arange(16) % CLASSES, CLASSES)


def seen(pupil, rows, **kept) -> Seen:
    found = pupil.see(pupil.batch(rows))
    assert found.scores.requires_grad
    return Seen(found.batch, found.scores, found.features, kept)


def only(part, pupil, new, replayed) -> Term:
    (term,) = part.terms(pupil, new, replayed)
    return Term(term.name, term.weight, term.value.detach())


def softmax(row, temperature=1.0) -> list[float]:
    powers = [math.exp(float(x) / temperature) for x in row]
    return [p / sum(powers) for p in powers]


def cross_entropy(scores, labels) -> float:
    rows = zip(scores.detach(), labels, strict=True)
    return sum(-math.log(softmax(row)[int(y)]) for row, y in rows) / len(scores)


def move(pupil, by: float) -> None:
    with torch.no_grad():
        for weight in pupil.model.parameters():
            weight.add_(by)


def test_replay(pupil) -> None:
    new, old = seen(pupil, range(4)), seen(pupil, range(4, 10))
    term = only(Replay(0.3), pupil, new, old)
    assert term.weight == 0.3
    assert float(term.value) == pytest.approx(cross_entropy(old.scores, old.batch[1]))


def test_dark(pupil) -> None:
    before = torch.randn(6, CLASSES).double()
    old = seen(pupil, range(4, 10), scores=before)
    squares = [
        (float(a) - float(b)) ** 2
        for row, noted in zip(old.scores.detach(), before, strict=True)
        for a, b in zip(row, noted, strict=True)
    ]
    term = only(Dark(0.5), pupil, seen(pupil, [0]), old)
    assert float(term.value) == pytest.approx(sum(squares) / len(squares))


def test_dark_by_the_huber_distance(pupil) -> None:
    before = 3 * torch.randn(6, CLASSES).double()
    old = seen(pupil, range(4, 10), scores=before)
    away = (old.scores.detach() - before).flatten().tolist()
    assert min(map(abs, away)) < 1 < max(map(abs, away))
    costs = [x * x / 2 if abs(x) <= 1 else abs(x) - 0.5 for x in away]
    term = only(Dark(2.0, "huber"), pupil, seen(pupil, [0]), old)
    assert float(term.value) == pytest.approx(sum(costs) / len(costs))


def test_complementary_takes_the_surer_copy_row_by_row(pupil) -> None:
    part = Complementary(beta=0.1)
    part.start(pupil)
    for copy, by in zip(part._copies, (0.3, -0.2), strict=True):
        with torch.no_grad():
            for weight in copy.parameters():
                weight.mul_(1 + by)
    old = seen(pupil, range(16))
    stable, plastic = (pupil.see(old.batch, copy).scores.detach() for copy in part._copies)
    total, taken = 0.0, set()
    for row, one, other, label in zip(
        old.scores.detach(), stable, plastic, old.batch[1], strict=True
    ):
        y = int(label)
        which = 0 if softmax(one)[y] >= softmax(other)[y] else 1
        taken.add(which)
        target = (one, other)[which]
        total += sum((float(a) - float(b)) ** 2 for a, b in zip(row, target, strict=True))
    assert taken == {0, 1}, "the rows must not all take the same copy"
    term = only(part, pupil, seen(pupil, [0]), old)
    assert float(term.value) == pytest.approx(total / old.scores.numel())


def test_copies_move_as_often_and_as_far_as_they_should(pupil) -> None:
    part = Complementary(
        stable_model_update_probability=0.2, plastic_model_update_probability=0.8,
        stable_model_update_weight=0.9, plastic_model_update_weight=0.6, seed=5,
    )  # fmt: skip
    part.start(pupil)
    start = [[w.clone() for w in copy.parameters()] for copy in part._copies]
    move(pupil, 1.0)  # and stays: a copy is 1 - Π w of the way after its moves
    moves, away = [0, 0], [0.0, 0.0]
    kept = [1.0, 1.0]
    for step in range(1, 201):
        part.stepped(pupil.model)
        for i, limit in enumerate((0.9, 0.6)):
            now = float((next(part._copies[i].parameters()).detach() - start[i][0]).flatten()[0])
            if now != away[i]:
                moves[i] += 1
                kept[i] *= min(1 - 1 / (step + 1), limit)
                away[i] = now
            assert now == pytest.approx(1 - kept[i])
            if 1 - now < 1e-9:
                part._copies[i].load_state_dict(
                    {k: v - 1 for k, v in part._copies[i].state_dict().items()}
                )
                kept[i], away[i] = kept[i] + 1, away[i] - 1
    assert 20 < moves[0] < 60
    assert 140 < moves[1] < 180


@pytest.mark.parametrize("how", ["spatial", "pixel", "channel", "width", "height", "gap"])
def test_pooling_of_images(how) -> None:
    features = torch.randn(2, 3, 4, 5).double()
    found = pooled(features, how)
    for n in range(2):
        square = [[[float(x) ** 2 for x in row] for row in plane] for plane in features[n]]
        cs, ws, hs = range(3), range(4), range(5)
        sums = {
            "pixel": [square[c][w][h] for c in cs for w in ws for h in hs],
            "channel": [sum(square[c][w][h] for c in cs) for w in ws for h in hs],
            "width": [sum(square[c][w][h] for w in ws) for c in cs for h in hs],
            "height": [sum(square[c][w][h] for h in hs) for c in cs for w in ws],
            "gap": [sum(square[c][w][h] for w in ws for h in hs) / 20 for c in cs],
        }
        sums["spatial"] = sums["height"] + sums["width"]
        assert found[n].tolist() == pytest.approx(sums[how])


@pytest.mark.parametrize("normalize", [True, False])
def test_pooled_outputs(pupil, normalize) -> None:
    before = torch.randn(6, 5).double()
    old = seen(pupil, range(6), **{"features.0": before})

    def unit(row):
        squares = [float(x) ** 2 for x in row]
        length = math.sqrt(sum(s * s for s in squares)) if normalize else 1.0
        return [s / length for s in squares]

    distances = [
        math.dist(unit(now), unit(then))
        for now, then in zip(old.features[0].detach(), before, strict=True)
    ]
    term = only(PooledOutputs(2.0, "spatial", normalize), pupil, seen(pupil, [0]), old)
    assert term.weight == 2.0
    assert float(term.value) == pytest.approx(sum(distances) / 6)


def test_previous_asks_about_the_classes_that_were_known(pupil) -> None:
    pupil.known = torch.tensor([0, 2])
    part = Previous(alpha=1.0, temperature=2.0)
    part.start(pupil)
    was = pupil.see(pupil.batch(range(5))).scores.detach()
    move(pupil, 0.4)
    new = seen(pupil, range(5))
    total = 0.0
    for now, before in zip(new.scores.detach(), was, strict=True):
        p = softmax([before[0], before[2]], 2.0)
        q = softmax([now[0], now[2]], 2.0)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(only(part, pupil, new, None).value) == pytest.approx(4 * total / 5)


def test_previous_of_vectors(pupil) -> None:
    pupil.known = None
    part = Previous()
    part.start(pupil)
    was = pupil.see(pupil.batch(range(5))).scores.detach()
    move(pupil, 0.4)
    new = seen(pupil, range(5))
    assert float(only(part, pupil, new, None).value) == pytest.approx(
        (new.scores - was).square().mean().item()
    )


def test_nothing_is_said_of_before_in_the_first_update(pupil) -> None:
    pupil.updates = 0
    part = Previous()
    part.start(pupil)
    assert part.terms(pupil, seen(pupil, [0]), None) == ()


def test_elastic_sums_fisher_over_updates(pupil) -> None:
    part = Elastic(lambda_=3.0, rows=6)
    assert part.terms(pupil, seen(pupil, [0]), None) == ()
    expected = [torch.zeros_like(w) for w in pupil.model.parameters()]
    for _ in range(2):
        for row in range(6):
            loss = pupil.losses(pupil.see(pupil.batch([row]))).mean()
            gradients = torch.autograd.grad(loss, list(pupil.model.parameters()))
            expected = [e + g**2 / 6 for e, g in zip(expected, gradients, strict=True)]
        part.end(pupil)
        part, former = Elastic(lambda_=3.0, rows=6), part
        part.start(pupil, former.hand_on())
        anchor = [w.detach().clone() for w in pupil.model.parameters()]
        move(pupil, 0.05)
    weights = [w.detach() for w in pupil.model.parameters()]
    total = sum(
        float(f) * (float(w) - float(a)) ** 2
        for fs, ws, as_ in zip(expected, weights, anchor, strict=True)
        for f, w, a in zip(fs.flatten(), ws.flatten(), as_.flatten(), strict=True)
    )
    term = only(part, pupil, seen(pupil, [0]), None)
    assert term.weight == 3.0
    assert float(term.value) == pytest.approx(total / 2)


def test_anchor(pupil) -> None:
    part = Anchor(0.1)
    part.start(pupil)
    move(pupil, 0.5)
    count = sum(w.numel() for w in pupil.model.parameters())
    assert float(only(part, pupil, seen(pupil, [0]), None).value) == pytest.approx(count * 0.125)


def test_shrink_and_perturb(pupil) -> None:
    before = torch.cat([w.detach().flatten() for w in pupil.model.parameters()])
    ShrinkAndPerturb(0.5, 0.0).start(pupil)
    after = torch.cat([w.detach().flatten() for w in pupil.model.parameters()])
    assert torch.equal(after, before * 0.5)
    pupil.updates = 0
    ShrinkAndPerturb(0.5, 0.1).start(pupil)
    assert torch.equal(torch.cat([w.detach().flatten() for w in pupil.model.parameters()]), after)
    pupil.updates = 1
    ShrinkAndPerturb(1.0, 0.1).start(pupil)
    noise = torch.cat([w.detach().flatten() for w in pupil.model.parameters()]) - after
    assert 0.05 < float(noise.std()) < 0.2


def test_nearest_mean_is_what_the_means_say(pupil) -> None:
    part = NearestMean()
    trained = pupil.model[2].weight.detach().clone()
    features = pupil.see(pupil.batch(range(16))).features[0].detach()
    part.end(pupil)
    units = [[float(x) / float(f.norm()) for x in f] for f in features]
    means = []
    for c in range(CLASSES):
        mine = [u for u, y in zip(units, pupil.of, strict=True) if int(y) == c]
        mean = [sum(column) / len(mine) for column in zip(*mine, strict=True)]
        length = math.sqrt(sum(x * x for x in mean))
        means.append([x / length for x in mean])
    nearest = [min(range(CLASSES), key=lambda c: math.dist(u, means[c])) for u in units]
    assert pupil.see(pupil.batch(range(16))).scores.argmax(1).tolist() == nearest
    NearestMean().start(pupil, part.hand_on())  # the next update trains the layer as it was
    assert torch.equal(pupil.model[2].weight, trained)


@pytest.mark.parametrize("normalization", [True, False])
def test_the_loss_is_the_weighted_sum(pupil, normalization) -> None:
    updater = Updater([Replay(0.5), Dark(2.0)], loss_weight=3.0, loss_normalization=normalization)
    before = torch.zeros(6, CLASSES).double()
    new, old = seen(pupil, range(4)), seen(pupil, range(4, 10), scores=before)
    total = (
        3.0 * cross_entropy(new.scores, new.batch[1])
        + 0.5 * cross_entropy(old.scores, old.batch[1])
        + 2.0 * old.scores.square().mean().item()
    )
    expected = total / 5.5 if normalization else total
    assert updater.loss(pupil, new, old).item() == pytest.approx(expected)
    first = updater.loss(pupil, new, None).item()  # nothing remembered yet
    alone = cross_entropy(new.scores, new.batch[1])
    assert first == pytest.approx(alone if normalization else 3.0 * alone)


def test_asymmetric_chooses_among_the_classes_of_the_batch(pupil) -> None:
    updater = Updater([Replay()], asymmetric=True, loss_normalization=False)
    new, old = seen(pupil, [0, 1, 4]), seen(pupil, range(8))  # classes 0, 1, 0
    among = [
        -math.log(softmax(row[:2])[int(y)])
        for row, y in zip(new.scores.detach(), new.batch[1], strict=True)
    ]
    (first, _) = updater.terms(pupil, new, old)
    assert first.value.item() == pytest.approx(sum(among) / 3)
    (alone,) = updater.terms(pupil, new, None)  # with nothing old there is nothing to protect
    assert alone.value.item() == pytest.approx(cross_entropy(new.scores, new.batch[1]))
