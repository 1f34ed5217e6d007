"""Whether an update forgot: the interval, the shares, the budgets and the stability gap."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from luthier.evaluation.forgetting import forward_transfer, kept, over_budget, stability
from luthier.evaluation.heat_map import curves_of, heat_map
from luthier.evaluation.report import Report, read_report, write_report


def test_shares_of_each_chunk_by_hand() -> None:
    before = np.array([1, 1, 1, 1, 1, 1, 0, 0] * 5, dtype=float)
    after = np.array([1, 0, 0, 0, 1, 1, 1, 0] * 5, dtype=float)
    found = kept(before, after, np.array([0, 0, 0, 0, 1, 1, 1, 1] * 5))
    assert found.lost == pytest.approx((0.75, -0.25))
    assert found.mean == pytest.approx(0.25)
    assert found.change.value == pytest.approx(-2 / 8)
    assert found.verdict == "forgot"


def test_of_losses_the_relative_rise() -> None:
    rng = np.random.default_rng(0)
    before = rng.uniform(0.5, 1.5, 60)
    found = kept(before, before * 1.2, np.zeros(60, int), "loss")
    assert found.lost[0] == pytest.approx(0.2)
    assert found.verdict == "forgot"
    assert kept(before, before * 0.8, np.zeros(60, int), "loss").verdict == "kept"


def test_the_interval_against_a_slow_bootstrap() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.integers(0, 2, 80).astype(float), rng.integers(0, 2, 80).astype(float)
    found = kept(before, after, np.zeros(80, int))
    gain = after - before
    means = [np.mean([gain[i] for i in rng.integers(0, 80, 80)]) for _ in range(4000)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.change.low == pytest.approx(low, abs=0.02)
    assert found.change.high == pytest.approx(high, abs=0.02)


def test_the_verdict_is_as_rare_as_it_says() -> None:
    """Rows that change by chance alone are said to be forgotten one time in forty."""
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(300):
        right = rng.random((2, 100)) < 0.8
        found = kept(right[0].astype(float), right[1].astype(float), np.zeros(100, int))
        wrong += found.verdict == "forgot"
    assert wrong <= 18  # 7.5 are expected; as many as these less than one time in a thousand


def test_few_rows_tell_nothing() -> None:
    found = kept(np.ones(10), np.zeros(10), np.zeros(10, int))
    assert found.verdict == "nothing to compare"
    assert "too few" in found.reason
    assert found.lost == (1.0,), "a budget still counts what there is"
    assert kept(None, None, np.empty(0)).verdict == "nothing to compare"


def test_budgets() -> None:
    found = kept(np.ones(40), np.r_[np.ones(30), np.zeros(10)], np.repeat([0, 1], 20))
    assert over_budget(found, None, None) == []
    assert over_budget(found, 0.25, 0.5) == [], "as much as is allowed is allowed"
    assert len(over_budget(found, 0.2, None)) == 1
    (said,) = over_budget(found, None, 0.4)
    assert said == "chunk 2 lost 50.0%, 40.0% is allowed for each"


def test_the_stability_gap_by_hand() -> None:
    curve = [
        {"step": 5, "by_chunk": [0.5, 0.9]},
        {"step": 10, "by_chunk": [0.7, 0.2]},
        {"step": 15, "by_chunk": [0.9, 0.8]},
    ]
    found = stability([0.9, 0.8], curve)
    assert found["by_chunk"] == pytest.approx([0.4, 0.6])
    assert found["gap"] == pytest.approx(0.5)
    assert found["step"] == 10
    assert found["end"] == pytest.approx(0.0)
    of_losses = stability([1.0], [{"step": 1, "by_chunk": [3.0]}], "loss")
    assert of_losses["gap"] == pytest.approx(2.0)
    assert stability([], curve) is None
    assert stability([0.9], []) is None


def test_forward_transfer_by_hand() -> None:
    matrix = [[0.9, 0.3, 0.1], [0.8, 0.9, 0.4], [0.7, 0.8, 0.9]]
    found = forward_transfer(matrix, [0.1, 0.1, 0.2])
    assert found == pytest.approx(((0.3 - 0.1) + (0.4 - 0.2)) / 2)
    assert forward_transfer([[2.0, 3.0], [1.0, 1.0]], [3.0, 4.0], less_is_better=True) == 1.0
    assert forward_transfer([[0.9]], [0.1]) is None


# --- drawings --------------------------------------------------------------------------------


def test_a_heat_map_has_a_square_for_each_score() -> None:
    drawn = ElementTree.fromstring(heat_map([[1.0], [0.25, 0.5], [0.0, None, 0.75]], "a <b>"))
    squares = drawn.findall("rect")
    assert len(squares) == 5
    shares = [float(square.get("fill-opacity")) for square in squares]
    assert shares[0] > shares[4] > shares[2] > shares[1] > shares[3]
    assert drawn.get("aria-label") == "a <b>"
    texts = [t.text for t in drawn.findall("text")]
    assert texts[:4] == ["chunk 1", "2", "3", "update 1"]
    assert ".25" in texts
    assert heat_map([], "nothing") == ""
    worst, best = (
        float(s.get("fill-opacity"))
        for s in ElementTree.fromstring(heat_map([[4.0, 1.0]], "l", less_is_better=True)).findall(
            "rect"
        )
    )
    assert best > worst


def test_curves_have_bands_and_names() -> None:
    points = [(1.0, 0.5, 0.4, 0.6), (2.0, 0.7, 0.6, 0.8)]
    drawn = ElementTree.fromstring(
        curves_of([("a&b", points), ("c", [(1.0, 0.7, 0.7, 0.7)]), ("d", [])], "two", "update")
    )
    assert len(drawn.findall("polygon")) == 1
    assert len(drawn.findall("polyline")) == 2
    names = [t for t in drawn.findall("text") if t.text in ("a&b", "c")]
    heights = [float(t.get("y")) for t in names]
    assert abs(heights[0] - heights[1]) >= 12, "names do not lie on one another"
    assert curves_of([("a", [(1.0, float("nan"), 0.0, 0.0)])], "none", "x") == ""


UPDATE = {
    "score": "correct", "matrix": [[0.9], [0.6, 0.8]], "by_chunk": [0.6, 0.8], "before": [0.9, 0.0],
    "average": 0.7, "forgetting": 0.3, "backward_transfer": -0.3, "lost": 0.3, "gained": 0.0,
    "notes": [], "verdict": "forgot", "reason": "-0.300 <over> 90 rows", "promoted": False,
    "reasons": ["earlier chunks lost 30.0% on average, 10.0% is allowed"],
    "earlier": {"mean": 0.3, "p": 0.001}, "probe": None, "drift": None,
    "stability": {"gap": 0.5, "by_chunk": [0.5], "step": 3, "end": 0.3,
                  "curve": [{"step": 3, "by_chunk": [0.4]}, {"step": 6, "by_chunk": [0.6]}]},
    "bytes": {"memory": 2600},
}  # fmt: skip


def test_the_page_of_an_update(tmp_path) -> None:
    write_report(tmp_path, Report("a run", update=UPDATE))
    text = (tmp_path / "report.html").read_text()
    assert "Not promoted: earlier chunks lost 30.0%" in text
    assert "&lt;over&gt;" in text
    assert "2,600 bytes" in text
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(drawings) == 3
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert read_report(tmp_path / "report.json").update == UPDATE
    write_report(tmp_path, Report("a run"))
    assert "What was kept" not in (tmp_path / "report.html").read_text()
