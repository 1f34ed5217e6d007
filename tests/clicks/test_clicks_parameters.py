"""Embedding Studio's parameters, settings, losses, calculators and accumulators."""

import numpy as np
import pytest

from luthier import clicks
from luthier.clicks import (
    COSINE_SIMILARITY,
    DOT_PRODUCT,
    EUCLIDEAN_DISTANCE,
    CosineProbMarginRankingLoss,
    DistanceShift,
    EarlyStopping,
    ExamplesType,
    FineTuningParams,
    FineTuningSettings,
    MetricsAccumulator,
    ProbMarginRankingLoss,
    ScoredInputs,
    dummy_confidences,
)
from luthier.clicks.accumulators import accumulated
from luthier.errors import SpecError

PARAMS = {
    "num_fixed_layers": 1, "query_lr": 1e-4, "items_lr": 5e-4, "query_weight_decay": 0.0,
    "items_weight_decay": 1e-5, "margin": 0.2, "not_irrelevant_only": True,
    "negative_downsampling": 0.5,
}  # fmt: skip


def test_every_public_name_is_there():
    assert all(getattr(clicks, name) is not None for name in clicks.__all__)
    with pytest.raises(AttributeError):
        _ = clicks.Nothing


def test_the_defaults_of_parameters_are_embedding_studios():
    params = FineTuningParams(**PARAMS)
    assert params.min_abs_difference_threshold == 0.0
    assert params.max_abs_difference_threshold == 1.0
    assert params.examples_order == [ExamplesType.all_examples]
    assert FineTuningParams(**PARAMS, examples_order=[7, "hard_all"]).examples_order == [
        ExamplesType.medium_negative, ExamplesType.hard_all,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"query_lrs": 1}, "FineTuningParams has no such field.*did you mean 'query_lr'"),
        ({"negative_downsampling": 0}, "negative_downsampling: .*greater than 0"),
        ({"negative_downsampling": 1.5}, "less than or equal to 1"),
        ({"query_lr": 0}, "query_lr"),
        ({"num_fixed_layers": -1}, "num_fixed_layers"),
        ({"examples_order": [12]}, "no type of examples is 12"),
        ({"min_abs_difference_threshold": 1.0}, "min_abs_difference_threshold is below"),
        ({"margin": float("nan")}, "margin"),
    ],
)
def test_wrong_parameters_are_told_by_name(changes, said):
    with pytest.raises(SpecError, match=said):
        FineTuningParams(**{**PARAMS, **changes})


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(SpecError) as error:
        FineTuningParams(query_lr="fast")
    fields = {problem.field for problem in error.value.problems}
    assert fields == set(PARAMS)


def test_the_defaults_of_settings_are_embedding_studios():
    settings = FineTuningSettings(loss_func=CosineProbMarginRankingLoss())
    golden = {
        "metric_calculators": None, "ranker": COSINE_SIMILARITY, "is_similarity": True,
        "confidence_calculator": dummy_confidences, "step_size": 500, "gamma": 0.9,
        "num_epochs": 10, "batch_size": 1, "test_each_n_inputs": -1,
    }  # fmt: skip
    assert {name: getattr(settings, name) for name in golden} == golden


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_epoch": 3}, "did you mean 'num_epochs'"),
        ({"ranker": DOT_PRODUCT, "is_similarity": False}, "the ranker is a similarity"),
        ({"ranker": EUCLIDEAN_DISTANCE}, "the ranker is a distance"),
        ({"ranker": max}, "one of COSINE_SIMILARITY"),
        ({"loss_func": "TripletMarginLoss"}, "does not take rankings"),
        ({"loss_func": "LambdaLos"}, "did you mean 'LambdaLoss'"),
        ({"loss_func": 3}, "a loss of luthier.clicks"),
        ({"gamma": None}, "given together"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_settings_are_told_by_name(changes, said):
    with pytest.raises(SpecError, match=said):
        FineTuningSettings(**{"loss_func": CosineProbMarginRankingLoss(), **changes})


@pytest.mark.parametrize(
    ("asked", "rows", "steps"),
    [(-1, 100, None), (0, 100, None), (1, 100, None), (1.0, 100, None), (0.5, 100, 6), (40, 9, 5),
     (0.001, 10, 1), (2, 10, 1)],
)  # fmt: skip
def test_test_each_n_inputs_is_a_share_a_count_or_an_epoch(asked, rows, steps):
    settings = FineTuningSettings(
        loss_func=ProbMarginRankingLoss(), test_each_n_inputs=asked, batch_size=4,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    assert settings.eval_steps(rows) == steps


POSITIVE, NEGATIVE = np.array([0.5, 0.3, 0.9]), np.array([0.2, 0.6, 0.1])


@pytest.mark.parametrize(
    ("loss", "margin", "golden"),
    [(ProbMarginRankingLoss, 0.05, 0.448421), (CosineProbMarginRankingLoss, 0.05, 0.333333),
     (ProbMarginRankingLoss, 1.0, 0.667952), (CosineProbMarginRankingLoss, 1.0, 1.0)],
)  # fmt: skip
def test_golden_values_of_the_margin_losses(loss, margin, golden):
    import torch

    made = loss(base_margin=margin)
    assert made(POSITIVE, NEGATIVE) == pytest.approx(golden, abs=1e-6)
    tensors = torch.tensor(POSITIVE), torch.tensor(NEGATIVE)
    assert made(*tensors).item() == pytest.approx(golden, abs=1e-6)
    turned = made(NEGATIVE, POSITIVE, is_similarity=False)  # of distances: less is nearer
    assert turned == pytest.approx(golden, abs=1e-6)
    assert made(POSITIVE[:0], NEGATIVE[:0]) == 0.0


def test_the_golden_values_are_those_that_train():
    """The card's loss, which a worker trains with, of the same pairs."""
    import torch

    from luthier.objectives.lists import Lists
    from luthier.objectives.objective import Embedded
    from luthier.registry import find

    angles = np.arccos(np.stack([POSITIVE, NEGATIVE], 1).reshape(-1))
    items = torch.tensor(np.stack([np.cos(angles), np.sin(angles)], 1))
    queries = torch.tensor([[1.0, 0.0]], dtype=torch.float64).repeat(3, 1)
    rows = torch.arange(3).repeat_interleave(2)
    lists = Lists(
        rows, torch.arange(6), torch.tensor([1.0, 0.0] * 3, dtype=torch.float64),
        torch.ones(6, dtype=torch.float64), torch.arange(3),
    )  # fmt: skip
    for loss in (ProbMarginRankingLoss(base_margin=0.05), CosineProbMarginRankingLoss(0.05)):
        trained = find("loss", loss.name).load()(**loss.options)
        found = trained(Embedded((queries, items), lists=lists)).item()
        assert found == pytest.approx(loss(POSITIVE, NEGATIVE), abs=1e-6)


def test_early_stopping_as_the_seed_configures_it():
    stop = EarlyStopping(monitor="val_loss", patience=3, strict=False, verbose=False, mode="min")
    assert stop.measured_as == "val_loss"
    assert EarlyStopping(monitor="test_loss").measured_as == "val_loss"
    with pytest.raises(SpecError, match=r"patience.*\n.*mode"):
        EarlyStopping(patience=0, mode="lowest")


def _slow_shift(scored):
    """By loops: the definition."""
    t = 1 if scored.is_similarity else -1
    good, bad = [], []
    for n, irrelevant in enumerate(scored.irrelevant):
        rows = range(scored.starts[n], scored.starts[n + 1])
        moved = {r: t * (scored.after[r] - scored.before[r]) for r in rows}
        if irrelevant:
            bad.append(np.mean([-moved[r] for r in rows]))
        elif any(scored.clicked[r] for r in rows):
            good.append(np.mean([moved[r] for r in rows if scored.clicked[r]]))
    return {"x_not_irrelevant_dist_shift": np.mean(good), "x_irrelevant_dist_shift": np.mean(bad)}


@pytest.mark.parametrize("is_similarity", [True, False])
def test_distance_shift_is_its_definition(is_similarity):
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 6, 40)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    irrelevant = rng.random(40) < 0.3
    clicked = (rng.random(starts[-1]) < 0.5) & ~np.repeat(irrelevant, lengths)
    scored = ScoredInputs(
        rng.random(starts[-1]), rng.random(starts[-1]), clicked, starts, irrelevant, is_similarity
    )
    found = {value.name: value.value for value in DistanceShift()(scored, "x")}
    assert found == pytest.approx(_slow_shift(scored))


def test_accumulators_of_a_history():
    made = [
        MetricsAccumulator("train_loss", calc_mean=True, calc_sliding=True, calc_min=True,
                           calc_max=True, window_size=2),
        MetricsAccumulator("test_loss"),
    ]  # fmt: skip
    evaluations = [{"step": 2, "val_loss": 5.0}, {"step": 4, "val_loss": 4.0}]
    found = accumulated(made, [4.0, 2.0, 3.0, 7.0], evaluations)
    assert found["train_loss"] == {
        "train_loss": [4, 2, 3, 7], "mean_train_loss": [4, 3, 3, 4],
        "sliding_train_loss": [4, 3, 2.5, 5], "min_train_loss": [4, 2, 2, 2],
        "max_train_loss": [4, 4, 4, 7],
    }  # fmt: skip
    assert found["test_loss"] == {"test_loss": [5.0, 4.0]}
    with pytest.raises(SpecError, match=r"nothing measured it.*train_loss, val_loss"):
        accumulated([MetricsAccumulator("accuracy")], [1.0], evaluations)
    with pytest.raises(SpecError, match="window_size"):
        MetricsAccumulator("x", window_size=0)
