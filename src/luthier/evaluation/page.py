"""The report as one self-contained page: no script, no request, light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from luthier.evaluation import curves
from luthier.evaluation.measure import BY_QUERY
from luthier.evaluation.report import Report
from luthier.evaluation.retention_page import drawn
from luthier.evaluation.significance import Comparison, Interval

if TYPE_CHECKING:
    from jinja2 import Template

#: Metrics of the evaluations over epochs that are drawn, the first that is there.
_DRAWN = ("ndcg_at_k", "spearman", "val_loss")
_MARK = {"better": "▲", "worse": "▼", "no clear difference": "●"}


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    # Everything is escaped but what curves.py made, which escapes by itself.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = files("luthier.evaluation").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)


def style() -> str:
    """The style sheet of every page: light and dark."""
    return files("luthier.evaluation").joinpath("page.css").read_text(encoding="utf-8")


def page(report: Report) -> str:
    """The page as HTML. Texts of the data are escaped."""
    found = report.comparison
    return _template().render(
        report=report,
        style=style(),
        update=drawn(report.update) if report.update else None,
        comparison=found,
        mark=_MARK[found.verdict] if found else "",
        sentence=sentence(report),
        bars=_bars(report, found) if found else "",
        loss=curves.curve(report.losses, "training loss by step", smooth=True),
        rate=curves.curve(report.learning_rates, "learning rate by step"),
        evaluations=_evaluations(report),
        value=_value,
        interval=_interval,
        difference=_difference,
    )


def sentence(report: Report) -> str:
    """The verdict in one sentence, for people."""
    found = report.comparison
    if found is None:
        return "Not evaluated: no evaluation data was given, so nothing is claimed."
    name = report.metric_name(found.main)
    change = found.difference[found.main]
    figures = (
        f"{name} went from {found.before[found.main].value:.3f} to "
        f"{found.after[found.main].value:.3f} ({change.value:+.3f}, "
        f"{found.confidence:.0%} interval {change.low:+.3f} to {change.high:+.3f}, "
        f"{found.n:,} {'queries' if report.evaluation.get('kind') in BY_QUERY else 'rows'})."
    )
    verdict = {
        "better": "The tuned model is better.",
        "worse": "The tuned model is worse.",
        "no clear difference": "There is no clear difference.",
    }[found.verdict]
    few = f" {found.reason[0].upper()}{found.reason[1:]}." if "too few" in found.reason else ""
    beside = " Plain word matching (BM25) does better than both." if _bm25_above(report) else ""
    return f"{verdict} {figures}{few}{beside}"


def _bm25_above(report: Report) -> bool:
    if not report.bm25_wins or report.comparison is None or report.bm25 is None:
        return False
    main = report.comparison.main
    return report.bm25[main].value > report.comparison.before[main].value


def _bars(report: Report, found: Comparison) -> str:
    sides: list[tuple[str, str, Mapping[str, Interval]]] = [
        ("before", "before", found.before),
        ("after", "after", found.after),
    ]
    if report.bm25:
        sides.append(("BM25", "bm25", report.bm25))
    rows = [(n, c, s[found.main].value, s[found.main].low, s[found.main].high) for n, c, s in sides]
    return curves.interval_bars(rows, f"{report.metric_name(found.main)} with intervals")


def _evaluations(report: Report) -> tuple[str, str] | None:
    """The name and the curve of the main metric over the evaluations; None without any."""
    main = (report.comparison.main,) if report.comparison else ()
    drawn = (*main, *_DRAWN)
    name = next((n for n in drawn if any(n in e for e in report.evaluations)), None)
    if name is None:
        return None
    kept = [e for e in report.evaluations if e.get(name) is not None]
    points = [(float(e["step"]), float(e[name])) for e in kept]
    if report.comparison and name in report.comparison.before:
        points.insert(0, (0.0, report.comparison.before[name].value))
    title = report.metric_name(name)
    return title, curves.series(points, f"{title} over the run", "step")


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_value(v)}" for k, v in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value)) or "–"
    return str(value)


def _interval(found: Interval) -> str:
    return f"{found.low:.3f} – {found.high:.3f}"


def _difference(found: Interval) -> str:
    return f"{found.low:+.3f} to {found.high:+.3f}"
