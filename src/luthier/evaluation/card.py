"""The model card: README.md of a tuned model, in Markdown with YAML front matter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from luthier.evaluation.measure import BY_QUERY
from luthier.evaluation.page import sentence
from luthier.evaluation.report import Report
from luthier.evaluation.significance import Interval

_USE = """\
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
embeddings = model.encode(["a text", "another text"])
```

or `luthier.encode(luthier.get_model("path/to/this/folder"), ["a text"])`."""


def model_card(
    report: Report,
    *,
    base_model: str,
    license: str | None = None,
    language: str | None = None,
    library: str = "sentence-transformers",
) -> str:
    """The card. ``license`` is the base model's, by which the tuned weights are bound too;
    None says that it is not known."""
    header: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "sentence-similarity",
        "tags": ["luthier", "sentence-transformers", "feature-extraction"],
        "base_model": base_model,
        "license": license or "unknown",
    }
    if language:
        header["language"] = language
    if report.comparison:
        header["model-index"] = _index(report)
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
        f"# {inline(report.name)}",
        f"{inline(base_model)}, tuned by luthier. {sentence(report)}",
        f"## Use\n\n{_USE}",
        measured(report),
        listed("Training", report.run),
        listed("Data", report.data),
        listed("Lineage", report.lineage),
        listed("Environment", report.environment),
        "## Licence\n\n" + licence(base_model, license),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _index(report: Report) -> list[dict[str, Any]]:
    assert report.comparison is not None
    searched = report.evaluation.get("kind") in BY_QUERY
    kind = "retrieval" if searched else "similarity"
    metrics = [
        {"type": name, "name": report.metric_name(name), "value": round(found.value, 6)}
        for name, found in report.comparison.after.items()
    ]
    dataset = {"type": "custom", "name": str(report.lineage.get("evaluation data", "custom"))}
    task = {"type": kind, "name": "Information Retrieval" if kind == "retrieval" else "Similarity"}
    return [
        {"name": report.name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}
    ]


def measured(report: Report) -> str:
    """Metrics before and after, with intervals; empty where nothing was measured."""
    found = report.comparison
    if found is None:
        return ""
    sides = {"before": found.before, "after": found.after, "difference": found.difference}
    if report.bm25:
        sides["BM25"] = dict(report.bm25)
    lines = [f"| metric | {' | '.join(sides)} |", f"|---|{'---|' * len(sides)}"]
    for name in found.after:
        cells = (_cell(s[name], "+" if n == "difference" else "") for n, s in sides.items())
        lines.append(f"| {report.metric_name(name)} | {' | '.join(cells)} |")
    shown = {
        k: v
        for k, v in report.evaluation.items()
        if k not in ("notes", "set_id", "kind", "less_is_better")
    }
    counts = found.counts
    below = (
        f"In brackets: {found.confidence:.0%} intervals, paired bootstrap over {found.n:,} items, "
        f"{found.resamples:,} resamples. {counts.wins:,} won, {counts.losses:,} lost, "
        f"{counts.ties:,} tied (sign test p = {counts.p:.2g}). "
        f"Measured with {', '.join(f'{k} {v}' for k, v in shown.items())}."
    )
    notes = "".join(f"\n- {inline(note)}" for note in report.evaluation.get("notes", ()))
    return "## Evaluation\n\n" + "\n".join(lines) + f"\n\n{below}" + (notes and f"\n{notes}")


def _cell(found: Interval, sign: str) -> str:
    return f"{found.value:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def listed(title: str, facts: Mapping[str, Any]) -> str:
    """A section with one line a fact."""
    if not facts:
        return ""
    return f"## {title}\n\n" + "\n".join(f"- {inline(k)}: {inline(v)}" for k, v in facts.items())


def licence(base_model: str, license: str | None) -> str:
    """What binds the tuned weights."""
    if license is None:
        return f"The licence of {inline(base_model)} is not known here: look it up before use."
    return f"The base model, {inline(base_model)}, is licensed under {inline(license)}."


def inline(value: object) -> str:
    """One line of Markdown that shows the value as it is, markup and all."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(str(value).split()))
