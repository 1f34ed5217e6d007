"""Every loss and miner of pytorch-metric-learning by name equals a direct call."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from torch import Tensor

from luthier import registry
from luthier.errors import DataError, SpecError
from luthier.objectives import Embedded, Objective, build_objective, needs, repairs
from luthier.objectives.cards import PML
from luthier.objectives.labelled import row_tuples
from luthier.spec import ObjectiveSpec
from luthier.testing.losses import random_batch

pytestmark = pytest.mark.usefixtures("one_thread")

LOSSES = tuple(PML["losses"])
MINERS = tuple(PML["miners"])
ON_LABELS = tuple(n for n in LOSSES if PML["losses"][n]["works_on"] == "labels")
ON_TUPLES = tuple(n for n in LOSSES if PML["losses"][n].get("takes_tuples"))
MINED = tuple(n for n in LOSSES if PML["losses"][n].get("takes_miner"))
REPAIRED = tuple(n for n in LOSSES if hasattr(repairs, n))
REQUIRED = {"RankedListLoss": {"margin": 0.4, "Tn": 1}}
N, DIM, CLASSES = 8, 8, 4


def build(name: str, form: str = "labelled", **spec: Any) -> Objective:
    torch.manual_seed(0)
    options = REQUIRED.get(name, {}) | spec.pop("loss_options", {})
    made = ObjectiveSpec(loss=name, loss_options=options, **spec)
    return build_objective(made, dim=DIM, num_classes=CLASSES, form=form)


def direct(name: str, **options: Any) -> torch.nn.Module:
    """The library's own object, made without any of our code."""
    torch.manual_seed(0)
    filled: dict[str, Any] = {
        "num_classes": CLASSES, "embedding_size": DIM, "descriptors_dim": DIM, "l": DIM
    }  # fmt: skip
    taken = PML["losses"][name].get("fills", {})
    given = {k: v for k, v in filled.items() if k in taken} | REQUIRED.get(name, {}) | options
    return getattr(losses, name)(**given)  # type: ignore[no-any-return]


def batch(kind: str = "normal", seed: int = 0) -> Embedded:
    columns = random_batch("labelled", N, DIM, seed=seed, dtype=torch.float32).columns
    items = columns[0].detach()
    labels = torch.arange(N) // 2
    if kind == "one row":
        items, labels = items[:1], labels[:1]
    elif kind == "one class":
        labels = torch.zeros(N, dtype=torch.long)
    elif kind == "no two of a class":
        items, labels = items[:CLASSES], torch.arange(CLASSES)
    elif kind == "repeated items":
        items = items[[0, 0, 2, 2, 4, 4, 6, 6]]
    elif kind == "all items the same":
        items = items[[0] * N]
    return Embedded((items.clone().requires_grad_(),), labels)


def quietly(name: str, **options: Any) -> torch.nn.Module:
    """``direct`` where the library's own deprecated calls are not the point."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return direct(name, **options)


def call(loss: torch.nn.Module, items: Tensor, *rest: Any, **named: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own deprecated indexing
        value: Tensor = loss(items, *rest, **named)
    return value


def same(ours: Tensor, mine: Tensor, expected: Tensor, theirs: Tensor) -> None:
    """Value and gradient."""
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-7)
    ours.backward()
    expected.backward()
    assert mine.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in ON_LABELS if n != "ManifoldLoss"])
@pytest.mark.parametrize("seed", range(2))
def test_losses_on_labels(name: str, seed: int) -> None:
    ours, theirs = batch(seed=seed), batch(seed=seed)
    expected = call(quietly(name), theirs.columns[0], theirs.labels)
    same(build(name)(ours), ours.columns[0], expected, theirs.columns[0])


def test_manifold_loss_takes_labels_for_meta_classes() -> None:
    ours, theirs = batch(), batch()
    assert theirs.labels is not None
    given = {"K": 3}
    expected = direct("ManifoldLoss", **given)(theirs.columns[0], indices_tuple=theirs.labels % 3)
    value = build("ManifoldLoss", loss_options=given)(ours)
    same(value, ours.columns[0], expected, theirs.columns[0])


def test_vicreg_on_pairs() -> None:
    ours = random_batch("pairs", N, DIM, dtype=torch.float32)
    theirs = random_batch("pairs", N, DIM, dtype=torch.float32)
    expected = losses.VICRegLoss()(theirs.columns[0], ref_emb=theirs.columns[1])
    same(build("VICRegLoss", "pairs")(ours), ours.columns[1], expected, theirs.columns[1])
    one = Embedded(tuple(c[:1].detach().requires_grad_() for c in ours.columns))
    assert build("VICRegLoss", "pairs")(one).item() == 0


@pytest.mark.parametrize("name", ON_TUPLES)
def test_losses_on_triplets(name: str) -> None:
    ours = random_batch("triplets", N, DIM, dtype=torch.float32)
    theirs = random_batch("triplets", N, DIM, dtype=torch.float32)
    n = torch.arange(N)
    tuples = (n, n + N, torch.cat([n, n]), torch.cat([n + 2 * N, n + 3 * N]))
    made = getattr(repairs, name, None) or getattr(losses, name)
    expected = made()(torch.cat(theirs.columns), None, tuples)
    same(build(name, "triplets")(ours), ours.columns[0], expected, theirs.columns[0])


def test_triplets_by_the_equation() -> None:
    """Each anchor meets its own positive and its own negatives, and nobody else's."""
    given = random_batch("triplets", 5, DIM)
    total, count = 0.0, 0
    for i in range(5):
        unit = [torch.nn.functional.normalize(c[i], dim=0) for c in given.columns]
        for negative in unit[2:]:
            near, far = (unit[0] - unit[1]).norm().item(), (unit[0] - negative).norm().item()
            violation = max(0.0, near - far + 0.05)
            total, count = total + violation, count + (violation > 0)
    value = build("TripletMarginLoss", "triplets")(given).item()
    assert value == pytest.approx(total / count, rel=1e-6)
    assert [len(part) for part in row_tuples(given)] == [5, 5, 10, 10]


KINDS = ("one row", "one class", "no two of a class", "repeated items", "all items the same")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ON_LABELS)
def test_batches_that_say_little_are_finite(name: str, kind: str) -> None:
    given, loss = batch(kind), build(name)
    value = loss(given)
    value.backward()
    assert math.isfinite(value.item())
    assert given.columns[0].grad is not None
    assert bool(given.columns[0].grad.isfinite().all())


@pytest.mark.parametrize("name", ["TripletMarginLoss", "NTXentLoss", "SupConLoss"])
@pytest.mark.parametrize("kind", ["one row", "no two of a class"])
def test_no_valid_tuple_gives_zero(name: str, kind: str) -> None:
    given = batch(kind)
    value = build(name)(given)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", MINERS)
@pytest.mark.parametrize("loss", ["TripletMarginLoss", "MultiSimilarityLoss", "ArcFaceLoss"])
def test_miners(name: str, loss: str) -> None:
    ours, theirs = batch(), batch()
    made, mined = build(loss, miner=name), direct(loss)
    torch.manual_seed(3)
    value = made(ours)
    torch.manual_seed(3)
    tuples = getattr(miners, name)()(theirs.columns[0], theirs.labels)
    expected = mined(theirs.columns[0], theirs.labels, tuples)
    count = len(tuples[0]) if len(tuples) == 3 else len(tuples[0]) + len(tuples[2])
    assert made.stats["mined"] == count
    if count:
        same(value, ours.columns[0], expected, theirs.columns[0])
    else:
        assert value.item() == 0


@pytest.mark.parametrize("name", MINERS)
@pytest.mark.parametrize("kind", KINDS)
def test_miners_on_batches_that_say_little(name: str, kind: str) -> None:
    given = batch(kind)
    value = build("TripletMarginLoss", miner=name)(given)
    value.backward()
    assert math.isfinite(value.item())
    assert given.columns[0].grad is not None
    assert bool(given.columns[0].grad.isfinite().all())


@pytest.mark.parametrize("name", MINED)
def test_every_loss_takes_a_miner_when_its_card_says_so(name: str) -> None:
    given, loss = batch(), build(name, miner="BatchHardMiner")
    loss(given).backward()
    assert loss.stats["mined"] > 0


@pytest.mark.parametrize("kind", ["easy", "semihard", "hard", "all"])
def test_kinds_of_triplets(kind: str) -> None:
    """By the definition, in plain Python; PML's default margin is 0.2."""
    given = batch()
    spec = {"miner": "TripletMarginMiner", "miner_options": {"type_of_triplets": kind}}
    loss = build("TripletMarginLoss", **spec)
    loss(given)
    items = torch.nn.functional.normalize(given.columns[0].detach(), dim=1)
    assert given.labels is not None
    labels, count = given.labels.tolist(), 0
    for a in range(N):
        for p in range(N):
            for n in range(N):
                if a == p or labels[a] != labels[p] or labels[a] == labels[n]:
                    continue
                gap = ((items[a] - items[n]).norm() - (items[a] - items[p]).norm()).item()
                wanted = {"easy": gap > 0.2, "semihard": 0 < gap <= 0.2, "hard": gap <= 0}
                count += wanted.get(kind, gap <= 0.2)
    assert loss.stats == {"mined": count}


@pytest.mark.parametrize(
    ("name", "distance"), [(n, d) for n in ON_LABELS for d in PML["losses"][n]["distances"]]
)
def test_distances_by_name(name: str, distance: str) -> None:
    if name == "ManifoldLoss":
        theirs: torch.nn.Module = repairs.ManifoldLoss(
            l=DIM, distance=getattr(distances, distance)()
        )
    given, other = batch(), batch()
    value = build(name, loss_options={"distance": distance})(given)
    if name == "ManifoldLoss":
        torch.manual_seed(0)
        made = getattr(distances, distance)()
        theirs: torch.nn.Module = repairs.ManifoldLoss(l=DIM, distance=made)
    else:
        theirs = quietly(name, distance=getattr(distances, distance)())
    expected = call(theirs, other.columns[0], other.labels)
    same(value, given.columns[0], expected, other.columns[0])


def test_distances_have_options() -> None:
    given = batch()
    options = {
        "distance": "LpDistance",
        "distance_options": {"p": 1, "normalize_embeddings": False},
    }
    expected = direct(
        "ContrastiveLoss", distance=distances.LpDistance(p=1, normalize_embeddings=False)
    )(given.columns[0], given.labels)
    assert build("ContrastiveLoss", loss_options=options)(given).item() == expected.item()
    without_name = {"distance_options": {"p": 1, "normalize_embeddings": False}}
    assert build("ContrastiveLoss", loss_options=without_name)(given).item() == expected.item()
    mined = build("ContrastiveLoss", miner="PairMarginMiner", miner_options=options)
    miner = miners.PairMarginMiner(distance=distances.LpDistance(p=1, normalize_embeddings=False))
    tuples = miner(given.columns[0], given.labels)
    mined(given)
    assert mined.stats["mined"] == len(tuples[0]) + len(tuples[2])


REDUCED = [(n, r) for n in ON_LABELS for r in PML["losses"][n].get("reducers", ())]
REDUCER_OPTIONS: dict[str, dict[str, Any]] = {
    "ThresholdReducer": {"low": 0.01},
    "ClassWeightedReducer": {"weights": [1.0, 2.0, 0.5, 4.0]},
}


@pytest.mark.parametrize(("name", "reducer"), REDUCED)
def test_reducers_by_name(name: str, reducer: str) -> None:
    options = REDUCER_OPTIONS.get(reducer, {})
    given, other = batch(), batch()
    spec: dict[str, Any] = {"reducer": reducer, "reducer_options": options}
    value = build(name, loss_options=spec)(given)
    if "weights" in options:
        options = {"weights": torch.tensor(options["weights"])}
    made = getattr(reducers, reducer)(**options)
    expected = call(quietly(name, reducer=made), other.columns[0], other.labels)
    same(value, given.columns[0], expected, other.columns[0])


#: Options that show only beside others.
TOGETHER: dict[tuple[str, str], dict[str, Any]] = {
    ("PNPLoss", "b"): {"variant": "Ib"},
    ("PNPLoss", "alpha"): {"variant": "Dq"},
    ("MarginLoss", "nu"): {"learn_beta": True},
    ("HistogramLoss", "delta"): {},
}
CHANGED: dict[tuple[str, str], Any] = {
    ("TripletMarginLoss", "triplets_per_anchor"): 1,
    ("TripletMarginLoss", "swap"): True,
    ("TripletMarginLoss", "smooth_loss"): True,
    ("MarginLoss", "triplets_per_anchor"): 1,
    ("MarginLoss", "nu"): 0.1,
    ("HistogramLoss", "n_bins"): 4,
    ("HistogramLoss", "delta"): 0.5,
    ("ManifoldLoss", "lambdaC"): 5.0,
    ("ManifoldLoss", "alpha"): 0.3,
    ("ManifoldLoss", "margin"): 0.3,
    ("ManifoldLoss", "K"): 5,
    ("PNPLoss", "variant"): "Ds",
    ("RankedListLoss", "alpha"): 0.9,
    ("RankedListLoss", "imbalance"): 0.2,
    ("DynamicSoftMarginLoss", "min_val"): -3.0,
    ("DynamicSoftMarginLoss", "num_bins"): 4,
    ("ThresholdConsistentMarginLoss", "margin_minus"): -0.3,
    ("ThresholdConsistentMarginLoss", "lambda_minus"): 2.0,
    ("SoftTripleLoss", "centers_per_class"): 3,
    ("SubCenterArcFaceLoss", "sub_centers"): 2,
}
#: These change the gradient or the next step, not this value.
LATER = {
    ("DynamicSoftMarginLoss", "momentum"),
    ("MarginLoss", "learn_beta"),
    ("MarginLoss", "num_classes"),
}
OPTIONS = [
    (name, option)
    for name in LOSSES
    for option in [*PML["losses"][name]["options"], *PML["losses"][name].get("required", ())]
    if (name, option) not in LATER
]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_every_option_acts(name: str, option: str) -> None:
    """A changed option changes the loss: none is taken and forgotten."""
    entry = PML["losses"][name]
    rows = entry["works_on"] == "rows"
    form = "pairs" if rows else "labelled"
    given = random_batch("pairs", N, DIM, dtype=torch.float32)
    if not rows:  # classes that overlap a little: something on either side of every margin
        labels = torch.arange(N) // 2
        centres = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(1))
        items = (given.columns[0] + centres[labels]).detach().requires_grad_()
        given = Embedded((items,), labels)
    beside = TOGETHER.get((name, option), {})
    default = {**entry["options"], **REQUIRED.get(name, {})}[option]
    if (name, option) in CHANGED:
        changed = CHANGED[name, option]
    else:
        changed = default * 1.5 if isinstance(default, float) else default + 1
    plain = build(name, form, loss_options=beside)(given).item()
    other = build(name, form, loss_options={**beside, option: changed})(given).item()
    assert plain != other


def test_margin_loss_learns_its_boundary() -> None:
    plain = build("MarginLoss")
    assert list(plain.parameters()) == []
    learned = build("MarginLoss", loss_options={"learn_beta": True, "num_classes": "auto"})
    (beta,) = learned.parameters()
    assert beta.shape == (CLASSES,)
    learned(batch()).backward()
    assert beta.grad is not None
    assert needs(ObjectiveSpec(loss="MarginLoss", loss_options={"learn_beta": True})).learns
    assert not needs(ObjectiveSpec(loss="MarginLoss")).learns


def test_dynamic_soft_margin_resumes_and_steps() -> None:
    """Its histogram is state: a loss that is saved and loaded goes on as if it had not been."""
    options = {"momentum": 0.5}
    loss = build("DynamicSoftMarginLoss", loss_options=options)
    first = loss(batch(seed=1))
    first.backward()
    state = {k: v.clone() for k, v in loss.state_dict().items()}
    assert set(state) == {"loss.hist_"}
    second = loss(batch(seed=2))
    second.backward()  # in the library: through the graph of the first step, an error
    other = build("DynamicSoftMarginLoss", loss_options=options)
    other.load_state_dict(state)
    assert other(batch(seed=2)).item() == second.item()
    assert build("DynamicSoftMarginLoss")(batch(seed=2)).item() != second.item()


def test_dynamic_soft_margin_at_the_end_of_its_histogram() -> None:
    far = torch.zeros(3, DIM)
    far[0, 0], far[1, 0], far[2, 0] = 1, -1, 1  # d_pos - d_neg = 2, beyond the last bin
    given = Embedded((far.requires_grad_(),), torch.tensor([0, 0, 1]))
    assert math.isfinite(build("DynamicSoftMarginLoss")(given).item())


def test_smooth_ap_sorts_its_batch() -> None:
    given = batch()
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    assert given.labels is not None
    mixed = Embedded((given.columns[0][order],), given.labels[order])
    loss = build("SmoothAPLoss")
    assert loss(mixed).item() == pytest.approx(loss(given).item(), rel=1e-6)
    unequal = Embedded((given.columns[0][:7],), given.labels[:7])
    assert loss(unequal).item() == 0


class TestRepairs:
    """Each repair is needed still. One that fails here may go: the library has been mended."""

    def test_histogram(self) -> None:
        given = batch("repeated items")
        with pytest.raises((RuntimeError, IndexError)):
            call(losses.HistogramLoss(), given.columns[0], given.labels)

    def test_tuplet_margin(self) -> None:
        given = batch("repeated items")
        losses.TupletMarginLoss()(given.columns[0], given.labels).backward()
        assert given.columns[0].grad is not None
        assert not bool(given.columns[0].grad.isfinite().all())

    def test_nca(self) -> None:
        given = batch("no two of a class")
        assert not math.isfinite(losses.NCALoss()(given.columns[0], given.labels).item())

    def test_smooth_ap(self) -> None:
        given = batch()
        assert given.labels is not None
        with pytest.raises(ValueError, match="same number of elements"):
            losses.SmoothAPLoss()(given.columns[0][:7], given.labels[:7])

    def test_dynamic_soft_margin(self) -> None:
        loss = losses.DynamicSoftMarginLoss()
        loss(batch(seed=1).columns[0], batch().labels).backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            loss(batch(seed=2).columns[0], batch().labels).backward()

    @pytest.mark.parametrize("name", ["LargeMarginSoftmaxLoss", "SphereFaceLoss"])
    def test_whole_margins(self, name: str) -> None:
        with pytest.raises(DeprecationWarning):
            direct(name)

    def test_all_are_used(self) -> None:
        for name in REPAIRED:
            assert registry.find("loss", name).target == f"luthier.objectives.repairs:{name}"


def test_labels_outside_the_classes_are_data_errors() -> None:
    loss = build("ArcFaceLoss")
    with pytest.raises(DataError, match="outside the 4 classes"):
        loss(Embedded((torch.randn(2, DIM),), torch.tensor([0, 4])))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"loss": "PNPLoss", "loss_options": {"variant": "X"}}, "is one of 'Ds'"),
        ({"loss": "ManifoldLoss", "loss_options": {"lambdaC": -1}}, "only non-negative values"),
        (
            {"loss": "RankedListLoss", "loss_options": {"margin": 1, "Tn": 1, "imbalance": 2}},
            "between 0 and 1",
        ),
        ({"loss": "HistogramLoss", "loss_options": {"n_bins": 3, "delta": 0.1}}, "must satisfy"),
        (
            {"miner": "BatchEasyHardMiner", "miner_options": {"pos_strategy": "semihard"}},
            "cannot both be",
        ),
        (
            {
                "loss": "ArcFaceLoss",
                "loss_options": {
                    "reducer": "ClassWeightedReducer",
                    "reducer_options": {"weights": [1, 2]},
                },
            },
            "one weight for each of the 4 classes",
        ),
        (
            {
                "loss": "MatryoshkaLoss",
                "loss_options": {"loss": "ArcFaceLoss", "matryoshka_dims": [99]},
            },
            "wider than the model",
        ),
    ],
)
def test_what_the_library_refuses_is_a_spec_error(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        build_objective(ObjectiveSpec(**spec), dim=DIM, num_classes=CLASSES, form="labelled")


def test_a_class_loss_without_classes_is_refused() -> None:
    with pytest.raises(SpecError, match="needs data with classes"):
        build_objective(ObjectiveSpec(loss="ArcFaceLoss"), dim=4, num_classes=0, form="labelled")
