"""The report says what was measured, in three forms, and lets no text of the data act."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from rich.console import Console

from luthier.errors import DataError
from luthier.evaluation import curves
from luthier.evaluation.card import model_card
from luthier.evaluation.measure import evaluate
from luthier.evaluation.page import page, sentence
from luthier.evaluation.ranking import Relevance
from luthier.evaluation.report import Report, build_report, read_report, write_report
from luthier.evaluation.sets import RetrievalSet, ScoredSet
from luthier.evaluation.terminal import example_table, terminal_table

HOSTILE = "<script>alert('x')</script> & \"quoted\" {{ 7*7 }} [bold]markup[/] | `code`"
N = 60


def retrieval_set(n=N):
    queries = tuple(f"query {i} {HOSTILE if i % 2 else ''}" for i in range(n))
    index = tuple(f"document {i} {HOSTILE}" for i in range(n))
    notes = (f"a note {HOSTILE}",)
    relevance = Relevance.of_lists([[i] for i in range(n)])
    return RetrievalSet(queries, index, relevance, np.full(n, -1), notes)


def encoder(found, noise, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(len(found.queries), 16))
    table = dict(zip(found.queries, base, strict=True))
    table |= dict(zip(found.index, base + noise * rng.normal(size=base.shape), strict=True))
    return lambda texts: np.stack([table[text] for text in texts])


@pytest.fixture(scope="module")
def report():
    found = retrieval_set()
    return build_report(
        f"a-run {HOSTILE}",
        before=evaluate(encoder(found, 1.5), found),
        after=evaluate(encoder(found, 0.6), found),
        evaluation_set=found,
        resamples=500,
        run={"model": HOSTILE, "steps": 20},
        data={"rows": 3840, "roles": ["anchor", "positive"], "lengths": {"mean": 11.25}},
        losses=[2.0 / (i + 1) for i in range(20)] + [math.nan],
        learning_rates=[1e-4] * 21,
        evaluations=[{"epoch": 1, "step": 10, "ndcg_at_k": 0.7}],
        environment={"device": "cpu", "seconds": 3.2},
        lineage={"evaluation data": HOSTILE, "artifact": None},
    )


class Reader(HTMLParser):
    """Collects tags, checks that they close, and keeps the text."""

    VOID = frozenset({"meta", "br", "line", "circle", "polyline"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.urls = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.urls += [v for k, v in attrs if k in ("src", "href", "action", "data", "srcset")]
        assert not [k for k, _ in attrs if k.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


def test_the_page_is_self_contained_and_escapes_what_it_quotes(report):
    html = page(report)
    reader = read(html)
    assert not {"script", "link", "img", "iframe", "object", "form", "a"} & set(reader.tags)
    assert not reader.urls
    assert "url(" not in html
    assert "@import" not in html
    assert "http" not in re.sub(r"http-equiv", "", html)
    assert "<script" not in html
    text = "".join(reader.text)
    assert HOSTILE in text  # shown as it is, template braces included
    assert "49" not in re.findall(r"\{\{.*?\}\}", text)


def test_the_page_shows_the_proof(report):
    reader = read(page(report))
    text = " ".join("".join(reader.text).split())
    found = report.comparison
    assert found.verdict == "better"
    assert "The tuned model is better." in text
    for side in (found.before, found.after, report.bm25):
        assert f"{side['ndcg_at_k'].value:.3f}" in text
    assert "nDCG@10" in text
    assert reader.tags.count("svg") == 4  # intervals, loss, learning rate, evaluations
    assert len(report.examples) >= 4
    assert "prefers-color-scheme: dark" in page(report)


def test_json_and_html_are_written_and_read_back(report, tmp_path):
    write_report(tmp_path, report)
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(text)["losses"][-1] is None  # NaN is no JSON
    again = read_report(tmp_path / "report.json")
    assert again.to_dict() == report.to_dict()
    assert again.comparison == report.comparison
    assert again.examples == report.examples
    assert page(again) == (tmp_path / "report.html").read_text(encoding="utf-8")
    with pytest.raises(DataError, match="format 7"):
        Report.from_dict({"format": 7})


def test_examples_show_failures_and_queries_that_nobody_chose(report):
    reasons = [example.why for example in report.examples]
    assert reasons.count("one of the greatest gains") == 2
    assert reasons.count("drawn at random") == 3
    assert len({example.query for example in report.examples}) == len(report.examples)
    for example in report.examples:
        shown = [place for place, result in enumerate(example.after, 1) if result.relevant]
        assert len(example.after) == 5
        assert shown == ([example.rank_after] if example.rank_after <= 5 else [])
    gain = report.examples[0]
    assert gain.rank_after < gain.rank_before


def test_the_greatest_loss_is_among_the_examples():
    found = retrieval_set()
    worse = build_report(
        "r",
        before=evaluate(encoder(found, 0.6), found),
        after=evaluate(encoder(found, 1.5), found),
        evaluation_set=found,
        resamples=500,
    )
    assert worse.comparison.verdict == "worse"
    reasons = [example.why for example in worse.examples]
    assert reasons.count("the greatest loss") == 1
    assert "The tuned model is worse." in sentence(worse)


def test_bm25_is_named_when_it_wins():
    found = RetrievalSet(
        tuple(f"alpha{i} beta" for i in range(30)),
        tuple(f"alpha{i} gamma" for i in range(30)),
        Relevance.of_lists([[i] for i in range(30)]),
        np.full(30, -1),
    )
    random = evaluate(encoder(found, 50), found)
    report = build_report("r", before=random, after=random, evaluation_set=found, resamples=200)
    assert report.bm25["ndcg_at_k"].value == 1.0
    assert "BM25) does better than both" in sentence(report)


def test_scored_data_has_its_own_report():
    rng = np.random.default_rng(0)
    target = rng.uniform(size=50)
    texts = tuple(map(str, range(50)))
    found = ScoredSet(texts, tuple(f"other {t}" for t in texts), target)

    def encode(noise):
        angle = np.arccos(np.clip(target + noise * rng.normal(size=50), -1, 1))
        table = dict.fromkeys(texts, (1.0, 0.0))
        table |= {f"other {t}": (np.cos(a), np.sin(a)) for t, a in zip(texts, angle, strict=True)}
        return lambda asked: np.array([table[t] for t in asked])

    report = build_report(
        "r",
        before=evaluate(encode(2.0), found),
        after=evaluate(encode(0.05), found),
        evaluation_set=found,
        resamples=500,
    )
    assert report.bm25 is None
    assert report.comparison.verdict == "better"
    text = "".join(read(page(report)).text)
    assert "Spearman" in text
    assert "50 rows" in text
    assert "similarity" in model_card(report, base_model="b")


def test_without_evaluation_data_nothing_is_claimed(tmp_path):
    report = build_report("r", losses=[1.0, 0.5])
    write_report(tmp_path, report)
    assert "nothing is claimed" in page(report)
    assert "model-index" not in model_card(report, base_model="base")
    console = Console(record=True, width=100, file=(tmp_path / "out").open("w"))
    console.print(terminal_table(report))
    console.file.close()
    assert "nothing is claimed" in console.export_text()


def test_the_terminal_form(report, tmp_path):
    with (tmp_path / "out").open("w") as sink:
        console = Console(record=True, width=80, file=sink)
        console.print(terminal_table(report))
        console.print(example_table(report.examples[0]))
    text = console.export_text()
    found = report.comparison
    after = found.after["ndcg_at_k"]
    assert "nDCG@10" in text
    assert f"{after.value:.3f}" in text
    assert f"{after.low:.3f}–{after.high:.3f}" in text
    assert "…" not in text  # nothing is cut at 80 columns
    assert "MAP" not in text  # one answer a query: MAP is MRR over again
    assert f"{found.counts.wins:,} wins" in text
    assert "✓ document" in text
    assert "[bold]markup[/]" in text


def test_the_model_card_is_markdown_with_readable_front_matter(report):
    card = model_card(report, base_model="org/base", license="apache-2.0", language="en")
    _, front, body = card.split("---\n", 2)
    header = yaml.safe_load(front)
    assert header["base_model"] == "org/base"
    assert header["license"] == "apache-2.0"
    metrics = header["model-index"][0]["results"][0]["metrics"]
    after = report.comparison.after
    assert {m["type"]: m["value"] for m in metrics} == {
        name: pytest.approx(found.value, abs=1e-6) for name, found in after.items()
    }
    assert "<script>" not in body
    assert "| nDCG@10 |" in body
    assert "licensed under apache-2.0" in body
    assert "not known" in model_card(report, base_model="org/base")


def test_curves_of_all_sizes():
    for values in ([], [1.0], [2.0, 2.0], [math.nan], list(np.linspace(5, 1e-9, 5000))):
        svg = curves.curve(values, "label", smooth=True)
        read(svg)
        assert "nan" not in svg
        finite = [v for v in values if math.isfinite(v)]
        assert bool(svg) == bool(finite)
    drawn = curves.curve([float(i) for i in range(5000)], "label")
    assert len(re.search(r'points="([^"]*)"', drawn)[1].split()) <= 300


def test_ticks_hold_the_values_between_them():
    rng = np.random.default_rng(0)
    for _ in range(300):
        low, high = np.sort(rng.normal(size=2) * 10.0 ** rng.integers(-8, 8))
        ticks = curves._ticks(low, high)
        step = ticks[1] - ticks[0]
        assert ticks[0] <= low + 1e-6 * step
        assert high - 1e-6 * step <= ticks[-1]
        assert 2 <= len(ticks) <= 7


def test_reading_a_report_loads_no_torch(tmp_path, report):
    write_report(tmp_path, report)
    code = (
        "import sys; from pathlib import Path\n"
        "from luthier.evaluation.report import read_report\n"
        "from luthier.evaluation.terminal import terminal_table\n"
        "terminal_table(read_report(Path(sys.argv[1])))\n"
        "print(sorted({'torch', 'transformers', 'scipy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "report.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
