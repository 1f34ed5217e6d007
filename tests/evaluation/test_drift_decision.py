"""Skip, update or retrain: each decision, its reason, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from luthier.errors import DataError
from luthier.evaluation.detectors import (
    KolmogorovSmirnovCovariateShiftDetector,
    MMDCovariateShiftDetector,
)
from luthier.evaluation.drift import Drift, Finding, decide, detect
from luthier.evaluation.ground import Ground
from luthier.evaluation.power import SmallestShift


@pytest.fixture(scope="module")
def known():
    return np.random.default_rng(100).normal(size=(300, 6))


@pytest.fixture(scope="module")
def same():
    return np.random.default_rng(21).normal(size=(200, 6))


def test_nothing_changed_skip(known, same):
    found = detect(known, same, tests=["mmd", "ks", "classifier"])
    assert found.decision == "skip"
    assert [f.test for f in found.findings] == ["mmd", "ks", "classifier"]
    assert not any(f.changed for f in found.findings)
    assert all(f.threshold == pytest.approx(0.05 / 3) for f in found.findings)
    assert "200 new rows" in found.reason
    assert "would go unnoticed" in found.reason


def test_a_few_rows_say_how_little_they_tell(known):
    few = detect(known, known[:20] + 0.01).findings[0].smallest.shift
    many = detect(known, known[:200] + 0.01).findings[0].smallest.shift
    assert few > 2 * many
    none = detect(np.eye(5), np.eye(5) + 0.01, tests=["ks"], alpha=0.02)
    assert none.decision == "skip"
    assert "of 5 new rows such as these none would have been noticed" in none.reason


def test_a_change_on_known_ground_is_an_update(known):
    near = np.random.default_rng(2).normal(size=(200, 6)) * 0.5 + 0.3
    found = detect(known, near)
    assert found.decision == "update"
    assert found.ground.off < 0.1
    assert "lie where the reference has rows" in found.reason


def test_new_ground_is_a_reason_to_retrain(known, same):
    found = detect(known, same + 8)
    assert found.decision == "retrain"
    assert "100% of the new rows lie where the reference has none" in found.reason
    part = np.concatenate([same[:150], same[150:] + 8])
    assert detect(known, part).decision == "update"
    assert detect(known, part, most_off=0.2).decision == "retrain"


def test_ground_needs_a_test_of_features_that_saw_a_change():
    """Of a handful of rows some lie apart by chance."""

    def found(test, p):
        return Finding(test, 1.0, p, 0.05, SmallestShift(None, "", None))

    apart = Ground(0.6, 1, 1.0)
    labels, seen, unseen = found("labels", 0.01), found("mmd", 0.01), found("mmd", 0.4)
    assert decide([labels, unseen], apart, 9, 0.5, 0.1)[0] == "update"
    assert decide([labels, seen], apart, 9, 0.5, 0.1)[0] == "retrain"
    assert decide([labels], apart, 9, 0.5, 0.1)[0] == "retrain"
    assert decide([unseen], apart, 9, 0.5, 0.1)[0] == "skip"


def test_labels_alone(known):
    rng = np.random.default_rng(3)
    old = rng.choice(list("ab"), 200)
    found = detect(None, None, labels=(old, rng.choice(list("ab"), 200)))
    assert (found.decision, found.ground) == ("skip", None)
    found = detect(None, None, labels=(old, rng.choice(list("ab"), 200, p=[0.9, 0.1])))
    assert found.decision == "update"
    assert "not asked, for want of features" in found.reason
    found = detect(None, None, labels=(old, rng.choice(list("abc"), 200, p=[0.2, 0.2, 0.6])))
    assert found.decision == "retrain"
    assert found.findings[0].detail["unseen_classes"] == ["c"]


def test_a_fall_of_quality(known, same):
    rng = np.random.default_rng(4)
    good = (rng.random(300) < 0.9).astype(float)
    found = detect(known, same, quality=(good, (rng.random(200) < 0.6).astype(float)))
    assert found.decision == "retrain"
    assert "is more than the 0.1 allowed" in found.reason
    slightly = detect(known, same, quality=(rng.normal(1, 0.1, 300), rng.normal(0.95, 0.1, 200)))
    assert slightly.decision == "update"
    better = detect(known, same, quality=(rng.normal(1, 0.1, 300), rng.normal(1.5, 0.1, 200)))
    assert better.decision == "skip"


def test_predictions_beside_labels_are_the_quality():
    true = ["cat", "dog"] * 100
    found = detect(None, None, labels=(true, true), predictions=(true, true[1:] + true[:1]))
    quality = found.findings[-1]
    assert quality.test == "quality"
    assert (quality.detail["before"], quality.detail["after"]) == (1.0, 0.0)
    assert found.decision == "retrain"


def test_new_labels_are_estimated_from_predictions():
    rng = np.random.default_rng(5)
    true = rng.choice(["cat", "dog"], 400)
    new = rng.choice(["cat", "dog"], 400, p=[0.1, 0.9])
    found = detect(None, None, labels=(true, None), predictions=(true, new))
    assert found.findings[0].test == "predictions"
    assert found.shares["dog"][0] == pytest.approx((new == "dog").mean())
    always = ["cat"] * 400
    blind = detect(None, None, labels=(true, None), predictions=(always, always))
    assert blind.shares is None
    assert "do not tell the classes apart" in blind.notes[0]


def test_the_same_call_gives_the_same_answer_and_survives_json(known, same):
    words = {"tests": ["mmd", "ks", "classifier"], "max_rows": 150, "seed": 7}
    found = detect(known, same, **words)
    assert found == detect(known, same, **words)
    assert (found.reference_rows, found.reference_used, found.new_used) == (300, 150, 150)
    assert Drift.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    other = detect(known, same, **{**words, "seed": 8})
    assert other.findings[0].statistic != found.findings[0].statistic


def test_the_scale_of_a_feature_does_not_matter(known, same):
    units = np.array([1e-6, 1e3, 1, 1, 1, 1e9])
    plain, scaled = detect(known, same), detect(known * units, same * units)
    assert scaled.findings[0].statistic == pytest.approx(plain.findings[0].statistic, abs=1e-9)
    assert scaled.ground.off == plain.ground.off


def test_false_alarms_of_the_whole_gate_stay_below_alpha():
    """60 gates of three tests each: at most 5% and three standard errors."""
    rng = np.random.default_rng(6)
    alarms = 0
    for seed in range(60):
        x, y = rng.normal(size=(40, 3)), rng.normal(size=(30, 3))
        found = detect(x, y, tests=["mmd", "ks", "classifier"], permutations=99, seed=seed)
        alarms += found.decision != "skip"
    assert alarms / 60 <= 0.05 + 3 * (0.05 * 0.95 / 60) ** 0.5


def bad(rows, row, column, value):
    rows = rows.copy()
    rows[row, column] = value
    return rows


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"tests": ["mdm"]}, "did you mean 'mmd'"),
        ({"tests": ["labels"]}, "no labels to compare"),
        ({"tests": []}, "nothing to compare"),
        ({"alpha": 0}, "alpha is a probability"),
        ({"permutations": 3}, "too few"),
        ({"permutations": 19, "alpha": 0.01}, "permutations of at least 99"),
        ({"max_rows": 2}, "at least 5"),
        ({"most_off": 0.0}, "most_off"),
        ({"most_fall": float("nan")}, "most_fall"),
        ({"quality": ([1.0] * 10, [[1.0, 2.0]] * 10)}, "one number a row"),
        ({"labels": (["a"] * 10, ["a"] * 10), "predictions": (["a"] * 9, None)}, "10 labels"),
        ({"labels": (["a"] * 10, ["a"] * 3)}, "3 rows are too few"),
    ],
)
def test_what_cannot_be_done_is_said(known, same, words, says):
    with pytest.raises(DataError, match=says):
        detect(known, same, **words)


def test_features_that_are_none_are_named_by_side_row_and_column(known, same):
    with pytest.raises(DataError, match="new rows, row 8, column 3: nan"):
        detect(known, bad(same, 7, 2, np.nan))
    with pytest.raises(DataError, match="reference, row 1, column 6: inf"):
        detect(bad(known, 0, 5, np.inf), same)
    with pytest.raises(DataError, match="6 features a row, the new rows 5"):
        detect(known, same[:, :5])
    with pytest.raises(DataError, match="new rows: 4 rows are too few"):
        detect(known, same[:4])
    with pytest.raises(DataError, match="as many in each row"):
        detect(known, [[1.0], [1.0, 2.0]])
    with pytest.raises(DataError, match="one side only"):
        detect(known, None)
    with pytest.raises(DataError, match="the test mmd needs features"):
        detect(None, None, tests=["mmd"], labels=(["a"] * 9, ["a"] * 9))


# --- detectors with Renate's shape ----------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [MMDCovariateShiftDetector, KolmogorovSmirnovCovariateShiftDetector]
)
def test_a_detector_scores_high_where_something_changed(kind, known, same):
    detector = kind()
    with pytest.raises(DataError, match="no reference yet"):
        detector.score(same)
    detector.fit(known)
    assert detector.score(same) < 0.95
    assert detector.score(same + 1) > 0.99
    with pytest.raises(DataError, match="5 features a row, the reference 6"):
        detector.score(same[:, :5])


def test_a_detector_reads_torchs_data_through_a_module(known, same, one_thread):
    import torch
    from torch.utils.data import TensorDataset

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Dropout(0.5))
    labels = torch.zeros(300)
    tensors = torch.tensor(known, dtype=torch.float32)
    module.train()
    detector = MMDCovariateShiftDetector(module, num_permutations=199, batch_size=64)
    detector.fit(TensorDataset(tensors, labels))
    assert module.training
    new = torch.tensor(same, dtype=torch.float32)
    plain = MMDCovariateShiftDetector(num_permutations=199)
    with torch.no_grad():
        plain.fit(module[0](tensors))
        expected = plain.score(module[0](new))
    assert detector.score(TensorDataset(new)) == detector.score(new) == expected
    assert detector.score(new + 2) == pytest.approx(1 - 1 / 200)


def test_a_detector_takes_any_function_of_arrays(known, same):
    detector = KolmogorovSmirnovCovariateShiftDetector(lambda rows: rows[:, :1] ** 2)
    detector.fit(known)
    assert detector.score(-known) == pytest.approx(0.0)
    assert detector.score(same * 3) > 0.99
