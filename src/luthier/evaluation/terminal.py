"""The report for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.evaluation.page import sentence
from luthier.evaluation.significance import Interval

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from luthier.evaluation.examples import Example
    from luthier.evaluation.report import Report
    from luthier.evaluation.significance import Comparison

#: The page has all metrics, the terminal the first of them.
_LINES = 5
_COLOUR = {"better": "green", "worse": "red", "no clear difference": "yellow"}


def terminal_table(report: Report) -> Group:
    """Before, after, difference and BM25 with intervals, wins and losses, and the verdict."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    found = report.comparison
    if found is None:
        return Group(Text(sentence(report), style="yellow"))
    table = Table(title_justify="left", title=_title(report))
    table.add_column("metric")
    for name in ("before", "after", "difference", *(["BM25"] if report.bm25 else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for metric in _distinct(found):
        cells = [_cell(found.before[metric]), _cell(found.after[metric])]
        cells.append(_change(found.difference[metric]))
        if report.bm25:
            cells.append(_cell(report.bm25[metric]))
        style = "bold" if metric == found.main else ""
        table.add_row(report.metric_name(metric), *cells, style=style)
    counts = found.counts
    tally = f"{counts.wins:,} wins, {counts.losses:,} losses, {counts.ties:,} ties"
    caption = Text(f"{tally} (sign test p = {counts.p:.2g})", style="dim")
    verdict = Text(sentence(report), style=_COLOUR[found.verdict])
    return Group(table, caption, verdict)


def example_table(example: Example, results: int = 5) -> Table:
    """One query with its top results before and after; ✓ marks what is relevant."""
    from rich.table import Table
    from rich.text import Text

    title = Text.assemble((example.query, "bold"), (f"  {example.why}", "dim"))
    table = Table(title=title, title_justify="left", expand=True)
    table.add_column("", justify="right")
    table.add_column(f"before (place {example.rank_before:,})", ratio=1)
    table.add_column(f"after (place {example.rank_after:,})", ratio=1)
    for i in range(min(results, max(len(example.before), len(example.after)))):
        cells = [
            Text(f"{'✓ ' if side[i].relevant else ''}{side[i].text}", _style(side[i].relevant))
            if i < len(side)
            else Text()
            for side in (example.before, example.after)
        ]
        table.add_row(str(i + 1), *cells)
    return table


def _style(relevant: bool) -> str:
    return "green" if relevant else ""


def _distinct(found: Comparison) -> list[str]:
    """The metrics worth a line: where each query has one answer, MAP is MRR over again."""
    kept: list[str] = []
    for metric in list(found.after)[:_LINES]:
        same = (found.after[k] == found.after[metric] for k in kept)
        before = (found.before[k] == found.before[metric] for k in kept)
        if not any(a and b for a, b in zip(same, before, strict=True)):
            kept.append(metric)
    return kept


def _title(report: Report) -> str:
    measured = report.evaluation
    sizes = {
        k: v
        for k, v in measured.items()
        if k in ("queries", "texts searched", "pairs", "triplets", "rows")
    }
    return ", ".join(f"{value:,} {name}" for name, value in sizes.items())


def _cell(found: Interval) -> str:
    """Two lines, so that the table fits a terminal of 80 columns."""
    return f"{found.value:.3f}\n[dim]{found.low:.3f}–{found.high:.3f}[/]"


def _change(found: Interval) -> str:
    return f"{found.value:+.3f}\n[dim]{found.low:+.3f} to {found.high:+.3f}[/]"
