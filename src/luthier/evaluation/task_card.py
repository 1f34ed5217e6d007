"""The model card of a model that was tuned for a task."""

from __future__ import annotations

from typing import Any

import yaml

from luthier.evaluation.card import inline, licence, listed, measured
from luthier.evaluation.page import sentence
from luthier.evaluation.report import Report

#: What the hub calls the tasks that it has no name of ours for.
_PIPELINES = {"chat-completion": "text-generation"}


def task_card(report: Report, *, task: str, auto_class: str, base_model: str) -> str:
    """README.md of the model, in Markdown with YAML front matter."""
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": _PIPELINES.get(task, task),
        "tags": ["luthier", task],
        "base_model": base_model,
        "license": "unknown",
    }
    if report.comparison:
        header["model-index"] = [{"name": report.name, "results": [_result(report, task)]}]
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
        f"# {inline(report.name)}",
        f"{inline(base_model)}, tuned by luthier for {task}. {sentence(report)}",
        "## Use\n\n" + _use(auto_class),
        measured(report),
        listed("Training", report.run),
        listed("Data", report.data),
        listed("Lineage", report.lineage),
        listed("Environment", report.environment),
        "## Licence\n\n" + licence(base_model, None),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _result(report: Report, task: str) -> dict[str, Any]:
    assert report.comparison is not None
    metrics = [
        {"type": name, "name": name, "value": round(found.value, 6)}
        for name, found in report.comparison.after.items()
    ]
    dataset = {"type": "custom", "name": str(report.lineage.get("evaluation data", "custom"))}
    return {"task": {"type": task}, "dataset": dataset, "metrics": metrics}


def _use(auto_class: str) -> str:
    reader = "AutoImageProcessor" if "Image" in auto_class else "AutoTokenizer"
    return (
        f"```python\nfrom transformers import {auto_class}, {reader}\n\n"
        f'model = {auto_class}.from_pretrained("path/to/this/folder")\n'
        f'processor = {reader}.from_pretrained("path/to/this/folder")\n```'
    )
