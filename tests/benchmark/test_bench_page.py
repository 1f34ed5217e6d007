"""The page of the benchmarks: merged, ordered, and what is written by hand is kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from luthier.benchmark import page
from luthier.benchmark.cases import CASES, find_cases
from luthier.benchmark.machine import commit, machine, machine_id
from luthier.benchmark.summary import _ratio
from luthier.errors import NotFound

DOCS = Path(__file__).parents[2] / "docs"
SIDE = {"peak_mb": 700.0, "start_s": 5.0, "loss": 1.25, "samples_per_s": 80.0, "mfu": 0.5}


def result(name, median, precision="fp32"):
    """A result as ``summarize`` makes it, with the fields that the page reads."""
    case = find_cases([name])[0]
    return {
        "case": name,
        "group": case.group,
        "title": case.title,
        "kind": case.kind,
        "precision": precision,
        "model": "tiny",
        "max_seq_length": 64,
        "threads": 2,
        "load": {"tokens": 60, "padded_tokens": 100},
        "sides": {
            "luthier": SIDE | {"tokens_per_s": 1000.0},
            "sentence-transformers": SIDE | {"tokens_per_s": 1000.0 / median},
        },
        "ratios": {"sentence-transformers": {"median": median, "least": 2.0, "greatest": 9.0}},
    }


def test_results_are_merged_and_a_newer_one_replaces_the_older(tmp_path):
    file = tmp_path / "benchmarks.md"
    here = {"CPU": "one"}
    page.write([result("short", 3.0)], here, "aaa", file)
    page.write([result("skewed-32", 7.0), result("short", 2.5, "bf16")], here, "bbb", file)
    page.write([result("short", 4.0)], here, "ccc", file)
    text = file.read_text()
    assert "**3.00**" not in text
    shown = [text.index(word) for word in ("**7.00**", "**2.50**", "**4.00**")]
    assert shown == sorted(shown)  # as the cases are listed, then by precision
    known = json.loads(file.with_suffix(".json").read_text())
    assert {k: v["commit"] for k, v in known["results"].items()} == {
        "short/bf16": "bbb",
        "short/fp32": "ccc",
        "skewed-32/fp32": "bbb",
    }
    assert "40% padding" in text


def test_a_machine_that_no_result_is_of_is_forgotten(tmp_path):
    file = tmp_path / "benchmarks.md"
    page.write([result("short", 3.0)], {"CPU": "one"}, "aaa", file)
    page.write([result("short", 3.0)], {"CPU": "two"}, "aaa", file)
    known = json.loads(file.with_suffix(".json").read_text())
    assert list(known["machines"].values()) == [{"CPU": "two"}]


def test_each_case_says_where_it_was_measured(tmp_path):
    file = tmp_path / "benchmarks.md"
    page.write([result("short", 3.0)], {"CPU": "one"}, "aaa", file)
    page.write([result("skewed-32", 7.0), result("short", 2.0, "bf16")], {"CPU": "two"}, "b", file)
    text = file.read_text()
    one, two = (machine_id({"CPU": name}) for name in ("one", "two"))
    assert re.search(rf"machine `{one}`, [-0-9]+, commit aaa: short fp32[;.]", text)
    assert re.search(rf"machine `{two}`, [-0-9]+, commit b: skewed-32 fp32, short bf16[;.]", text)


def test_what_is_written_by_hand_stays(tmp_path):
    file = tmp_path / "benchmarks.md"
    page.write([], {}, "aaa", file)
    file.write_text(file.read_text() + "\n## Where a target is missed\n")
    page.write([result("short", 3.0)], {"CPU": "one"}, "aaa", file)
    assert file.read_text().endswith("\n## Where a target is missed\n")
    assert file.read_text().count(page.MARK) == 1


def test_the_page_is_what_its_data_says():
    known = json.loads((DOCS / "benchmarks.json").read_text())
    assert (DOCS / "benchmarks.md").read_text().startswith(page.text(known) + page.MARK)


def test_a_ratio_is_of_each_round():
    ratio = _ratio([6.0, 8.0, 30.0], [1.0, 2.0, 3.0])
    assert ratio == {"median": 6.0, "least": 4.0, "greatest": 10.0}


def test_cases_are_found_by_name():
    assert find_cases([]) == list(CASES)
    assert len({case.name for case in CASES}) == len(CASES)
    with pytest.raises(NotFound, match="skewed-32"):
        find_cases(["skewd-32"])


def test_a_machine_has_a_name_that_depends_on_its_facts():
    facts = machine()
    assert facts["torch"]
    assert machine_id(facts) == machine_id(dict(facts))
    assert machine_id(facts) != machine_id(facts | {"CPU": "another"})
    assert commit(None).startswith("luthier ")
