"""``luthier bench continual``: real updates, cell by cell; what is finished is kept."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from luthier.benchmark import continual_page as page
from luthier.benchmark.continual import (
    SCENARIOS,
    Cell,
    Results,
    cells,
    five_updates,
    interval,
    measure,
    summaries,
)
from luthier.benchmark.continual_program import LOOKS, UPDATES, data_module_fn
from luthier.cli.main import run
from luthier.errors import NotFound, SpecError
from luthier.registry import cards
from luthier.testing.waiting import until

FACTS = {"date": "2026-01-01", "commit": "abc", "machine": "a machine", "threads": 1}


def known(updater: str, seed: int, last: float, **more) -> dict:
    """A finished cell of two updates."""
    matrix = [[0.9], [last, 0.8]]
    cell = {"data": "digits", "scenario": "class-incremental", "updater": updater, "seed": seed}
    return {**cell, "quick": False, "matrix": matrix, "average": (last + 0.8) / 2,
            "forgetting": 0.9 - last, "backward_transfer": last - 0.9, "seconds": 2.0,
            "memory_bytes": 2600, **FACTS, **more}  # fmt: skip


# --- which cells -----------------------------------------------------------------------------


def test_all_updaters_where_none_is_named() -> None:
    found = cells([], [], [], 2)
    prompted = {"L2P", "S-Prompt"}  # they are for transformers
    assert {cell.updater for cell in found} == {c.name for c in cards("updater")} - prompted
    assert {(cell.data, cell.scenario, cell.quick) for cell in found} == {
        ("digits", "class-incremental", False)
    }
    assert len({cell.name for cell in found}) == len(found)
    assert len(cells(["all"], ["all"], ["ER"], 1)) == 2 * len(SCENARIOS)


def test_what_there_is_not_is_told_together() -> None:
    with pytest.raises(SpecError) as caught:
        cells(["digit"], ["rotations"], ["ERR"], 1)
    said = str(caught.value)
    assert "did you mean 'digits'" in said
    assert "did you mean 'rotation'" in said
    assert "there is no 'ERR'" in said


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_chunks_of_a_scenario(scenario: str) -> None:
    """Five chunks, of rows that no other chunk has to validate on, and that a seed changes."""
    sizes, first = [], []
    for chunk in range(UPDATES):
        module = data_module_fn("digits", scenario, chunk, 0)
        module.prepare_data()
        module.setup()
        sizes.append((len(module.train_data()), len(module.val_data())))
        first.append(np.asarray(module.train_data()[0][0]))
    assert all(train > 200 and held_out > 40 for train, held_out in sizes)
    assert sum(train + held_out for train, held_out in sizes) == 1797
    assert first[0].shape == ((3, 8, 8) if scenario == "hue-shift" else (1, 8, 8))


def test_hues_are_those_of_the_wheel() -> None:
    """Each image is in one hue: by the colour system of the standard library."""
    import colorsys

    module = data_module_fn("digits", "hue-shift", 0, 0)
    module.setup()
    image = np.asarray(module.train_data()[0][0], dtype=float)
    bright = image[:, image.max(0) == image.max()][:, 0]
    hue, saturation, value = colorsys.rgb_to_hsv(*bright)
    assert saturation == pytest.approx(1, abs=1e-5)
    assert value == pytest.approx(image.max())
    assert hue < 0.3, "the first fifth of the hues comes first"
    lit = image.max(0) > 0.1
    hues = [colorsys.rgb_to_hsv(*pixel)[0] for pixel in image[:, lit].T]
    assert np.ptp(hues) < 1e-3


def test_looks_are_of_different_digits() -> None:
    seen = []
    for chunk in range(len(LOOKS)):
        module = data_module_fn("digits", "data-incremental", chunk, 3)
        module.setup()
        seen.append(len(module.train_data()) + len(module.val_data()))
    assert sum(seen) == 1797


# --- measuring -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[Path, list[dict]]:
    """Two real cells of one epoch."""
    file = tmp_path_factory.mktemp("continual") / "new" / "cells.json"
    wanted = cells([], [], ["FineTuning", "ER"], 1, quick=True)
    results = Results(file)
    assert measure(wanted, results, FACTS, lambda cell, done: None) == []
    return file, results.of(wanted)


def test_replay_forgets_less(measured) -> None:
    _, (plain, replay) = measured
    assert [len(row) for row in plain["matrix"]] == [1, 2, 3, 4, 5]
    assert plain["average"] == pytest.approx(np.mean(plain["matrix"][-1]))
    assert replay["average"] > plain["average"] + 0.2
    assert replay["forgetting"] < plain["forgetting"] - 0.2
    assert plain["memory_bytes"] == 0
    rows = 100 * (64 * 4 + 8)
    assert rows < replay["memory_bytes"] < 1.2 * rows


def test_a_second_call_measures_what_is_missing(measured) -> None:
    file, found = measured
    begun: list[str] = []
    results = Results(file)
    wanted = cells([], [], ["FineTuning", "ER"], 1, quick=True)
    measure(wanted, results, FACTS, lambda cell, done: begun.append(cell.name))
    assert begun == []
    assert results.of(wanted) == found


def test_whoever_is_interrupted_keeps_what_is_finished(tmp_path, measured) -> None:
    results = Results(tmp_path / "cells.json")
    one, two = cells([], [], ["FineTuning"], 2, quick=True)

    def stop(cell: Cell, done: int) -> None:
        if cell == two and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure([one, two], results, FACTS, stop)
    again = Results(tmp_path / "cells.json")
    assert list(again.known) == [one.name]
    first = {k: v for k, v in measured[1][0].items() if k != "seconds"}
    assert {k: v for k, v in again.known[one.name].items() if k != "seconds"} == first, (
        "the same seed gives the same numbers"
    )


def test_what_cannot_be_measured_stops_nothing_else(tmp_path) -> None:
    results = Results(tmp_path / "cells.json")
    wanted = cells([], [], ["L2P", "FineTuning"], 1, quick=True)
    (failed,) = measure(wanted, results, FACTS, lambda cell, done: None)
    assert failed["cell"] == wanted[0].name
    assert "LearningToPromptTransformer" in failed["reason"]
    assert list(results.known) == [wanted[1].name]


def test_a_file_that_is_none_is_told(tmp_path) -> None:
    (tmp_path / "cells.json").write_text("{}")
    with pytest.raises(NotFound, match="no file of results"):
        Results(tmp_path / "cells.json")


# --- over seeds ------------------------------------------------------------------------------


def test_an_interval_against_a_table() -> None:
    """Student's t of 4 degrees of freedom is 2.776 at 97.5%."""
    values = [0.1, 0.2, 0.3, 0.4, 0.5]
    mean, half = interval(values)
    assert mean == pytest.approx(0.3)
    spread = math.sqrt(sum((v - 0.3) ** 2 for v in values) / 4)
    assert half == pytest.approx(2.776 * spread / math.sqrt(5), rel=1e-3)
    assert math.isnan(interval([0.3])[1])


def test_means_over_seeds() -> None:
    found = summaries([known("ER", 0, 0.5), known("ER", 1, 0.7), known("DER", 0, 0.8)])
    er, der = found
    assert (er["updater"], er["seeds"], der["seeds"]) == ("ER", 2, 1)
    assert er["matrix"] == [[0.9], [pytest.approx(0.6), 0.8]]
    assert er["average"] == pytest.approx(0.7)
    accuracy = er["curves"]["average"]
    assert [point[:2] for point in accuracy] == [[1, 0.9], [2, pytest.approx(0.7)]]
    assert accuracy[1][2] == pytest.approx(12.706 * math.sqrt(0.005) / math.sqrt(2), rel=1e-3)
    assert [point[:2] for point in er["curves"]["forgetting"]] == [[2, pytest.approx(0.3)]]


# --- what is shown ---------------------------------------------------------------------------


class _Svgs(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.requests: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.requests += [value for name, value in attrs if name in ("src", "href")]
        assert tag not in ("script", "link", "img")


def test_a_page_that_needs_nothing_else(measured) -> None:
    text = page.html([*measured[1], known("ER", 0, 0.5), known("ER", 1, 0.7)])
    parser = _Svgs()
    parser.feed(text)
    assert parser.requests == []
    drawings = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.S)]
    cells_drawn = [len(d.findall("rect")) for d in drawings if d.findall("rect")]
    assert sorted(cells_drawn) == [3, 15, 15]
    assert "prefers-color-scheme: dark" in text
    assert "±" in text
    assert text.count("Renate&#x27;s</text>") == 1, "of ER only: what is quick is not compared"


def test_tables_have_renate_beside_it() -> None:
    text = page.markdown([known("ER", 0, 0.5), known("ER", 1, 0.7), known("L2-SP", 0, 0.1)])
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[0] == "| updater | accuracy | forgetting | seconds | memory | Renate |"
    assert lines[1].startswith("| ER | 0.700 ± ")
    assert lines[1].endswith("| 2.0 | 3 kB | 0.910 |")
    assert lines[2] == "| L2-SP | 0.450 | 0.800 | 2.0 | 3 kB | – |"
    assert "a machine" in text


def test_names_are_escaped() -> None:
    assert "<b>" not in page.html([known("<b>", 0, 0.5)])


def test_results_are_merged_into_the_documentation(tmp_path) -> None:
    target = tmp_path / "continual-benchmark.md"
    page.merge([known("ER", 0, 0.5), known("DER", 0, 0.6)], target)
    target.write_text(target.read_text() + "\nBy hand.\n")
    page.merge([known("ER", 0, 0.7)], target)
    text = target.read_text()
    assert text.endswith("\nBy hand.\n")
    assert "| ER | 0.750 | 0.200 |" in text
    assert "| DER | 0.700 |" in text
    assert len(json.loads(target.with_suffix(".json").read_text())) == 2


# --- the command -----------------------------------------------------------------------------


def test_the_command(tmp_path, capsys) -> None:
    words = ["bench", "continual", "--quick", "FineTuning", "--output", str(tmp_path)]
    assert run([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["summaries"][0]["seeds"] == 1
    assert {f.name for f in tmp_path.iterdir()} == {
        "cache", "cells.json", "continual.html", "continual.md", "continual.json",
    }  # fmt: skip
    assert run(words) == 0
    shown = capsys.readouterr()
    assert "1 of 1 are measured already" in shown.err
    assert "FineTuning" in shown.out
    assert run(["bench", "continual", "--quick", "--write"]) == 2
    assert run(["bench", "continual", "Er", "--seeds", "1"]) == 2


def test_cases_need_no_verb(capsys) -> None:
    assert run(["bench", "--list"]) == 0
    plain = capsys.readouterr().out
    assert run(["bench", "peers", "--list"]) == 0
    assert capsys.readouterr().out == plain
    assert "embed" in plain or "case" in plain.lower()


def test_ctrl_c_and_on(tmp_path, capsys) -> None:
    words = [sys.executable, "-m", "luthier", "bench", "continual", "--quick", "FineTuning",
             "--seeds", "2", "--output", str(tmp_path)]  # fmt: skip
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    until(lambda: (tmp_path / "cells.json").exists() or process.poll() is not None, 120)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    kept = json.loads((tmp_path / "cells.json").read_text())["cells"]
    if process.returncode == 0:  # it was quicker than the signal
        assert len(kept) == 2
        return
    assert process.returncode == 130
    assert "1 of 2 are kept" in said
    assert run(words[3:]) == 0
    assert "1 of 2 are measured already" in capsys.readouterr().err
    both = json.loads((tmp_path / "cells.json").read_text())["cells"]
    assert len(both) == 2
    name = next(iter(kept))
    assert both[name] == kept[name]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("updater", sorted({cell.updater for cell in cells([], [], [], 1)}))
def test_every_updater_in_every_scenario(updater, scenario) -> None:
    found = five_updates(Cell("digits", scenario, updater, 0, quick=True))
    assert 0 <= found["average"] <= 1
    assert len(found["matrix"]) == UPDATES
