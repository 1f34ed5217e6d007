"""``luthier drift``: has the data changed, and does that call for an update, or for more?"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.compared import Columns, Side, read_side
from luthier.cli.output import Home, Json, print_facts, print_table, show
from luthier.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from luthier.evaluation.drift import Drift

    Vectors = NDArray[np.float64]

app = typer.Typer(rich_markup_mode=None)

_MODEL = "all-minilm-l6-v2"
#: Texts between two words of progress.
_CHUNK = 128
#: Who waits longer than this is told how far it is.
_PATIENCE_S = 2.0
#: Lines of progress are at least so far apart where there is no terminal.
_APART_S = 10.0

_KINDS = ".csv, .tsv, .jsonl, .json, .parquet, .arrow, .txt, .npy or .npz"


@app.command("drift")
def drift(
    reference: Annotated[
        str, typer.Argument(metavar="REFERENCE", help=f"What the model knows: {_KINDS}")
    ],
    new: Annotated[str, typer.Argument(metavar="NEW", help="What has come since, likewise.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help=f"What turns texts into vectors, as for `encode`; {_MODEL} if not said."
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option("--column", help="The texts or vectors; or an array of a .npz.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="The column of labels, if not called so.")
    ] = None,
    predictions: Annotated[
        str | None, typer.Option("--predictions", help="The column of a model's predicted labels.")
    ] = None,
    quality: Annotated[
        str | None, typer.Option("--quality", help="A column that scores each row; more is better.")
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option("--test", help="mmd, ks, classifier or labels; as often as wanted."),
    ] = None,
    alpha: Annotated[
        float, typer.Option("--alpha", help="The chance of a false alarm, of all tests together.")
    ] = 0.05,
    rows: Annotated[
        int, typer.Option("--rows", min=5, help="Compare a sample of so many rows of each file.")
    ] = 2_000,
    permutations: Annotated[int, typer.Option("--permutations", min=19)] = 1_000,
    most_off: Annotated[
        float,
        typer.Option("--most-off", help="Retrain from this share of rows off known ground on."),
    ] = 0.5,
    most_fall: Annotated[
        float, typer.Option("--most-fall", help="Retrain where quality fell by more than this.")
    ] = 0.1,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 32,
    device: Annotated[str | None, typer.Option("--device")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Compare new data with a reference: skip, update or retrain?

    Texts are compared by the vectors of a model, files of features as they are. The exit code
    is 0 whatever the decision, which --json holds as "decision".
    """
    from luthier import api
    from luthier.evaluation.drift import detect
    from luthier.evaluation.drift_inputs import FEWEST_ROWS, check_numbers, check_tests

    check_numbers(alpha, permutations, rows, most_off, most_fall)
    check_tests(test)
    named = Columns(column, labels, predictions, quality)
    need_data = test is None or set(test) != {"labels"}
    cache = api.connect(home).cache
    sides = [
        read_side(file, named, cache, need_data=need_data, is_new=is_new)
        for file, is_new in ((reference, False), (new, True))
    ]
    for side in sides:
        if side.rows < FEWEST_ROWS and (need_data or side.labels or side.predictions):
            message = f"{side.rows} rows are too few to tell anything"
            raise DataError(message, file=side.file, hint=f"at least {FEWEST_ROWS}")
    progress = _Progress()
    try:
        features, what = None, "labels only"
        if need_data:
            features, what = _features(
                sides, rows, seed, model, progress, (home, batch_size, device)
            )
        found = detect(
            *(features or (None, None)), tests=test,
            labels=_pair(sides, "labels"), predictions=_pair(sides, "predictions"),
            quality=_pair(sides, "quality", both=True), alpha=alpha, permutations=permutations,
            seed=seed, max_rows=rows, most_off=most_off, most_fall=most_fall, progress=progress,
        )  # fmt: skip
    finally:
        progress.end()
    found = replace(found, reference_rows=sides[0].rows, new_rows=sides[1].rows)
    files = {"reference": reference, "new": new, "compared": what}
    show({**found.to_dict(), **files}, as_json, lambda: _print(found, files))


def _pair(sides: list[Side], name: str, *, both: bool = False) -> Any:
    """Of both sides; labels and predictions may lack of the new rows, and a reference without
    them has nothing to compare them with."""
    old, new = (getattr(side, name) for side in sides)
    if old is None or (both and new is None):
        return None
    return old, new


# --- features -------------------------------------------------------------------------------


def _features(
    sides: list[Side], rows: int, seed: int, model: str | None, progress: _Progress,
    means: tuple[str | None, int, str | None],
) -> tuple[tuple[Vectors, Vectors], str]:  # fmt: skip
    """The vectors of a sample of both sides, and what they are, for people."""
    picks = [_sample(side, rows, seed) for side in sides]
    if model is None and sides[0].features is not None and sides[1].features is not None:
        return (sides[0].features[picks[0]], sides[1].features[picks[1]]), sides[0].feature_name
    texts = [_texts(side, picked, model) for side, picked in zip(sides, picks, strict=True)]
    from luthier.cli.encode import open_encoder

    name = model or _MODEL
    home, batch_size, device = means
    progress(f"loading {name}", 0.0)
    encoder = open_encoder(name, home, batch_size, device, False)
    vectors = _encoded(encoder, [*texts[0], *texts[1]], progress)
    border = len(texts[0])
    return (vectors[:border], vectors[border:]), f"{sides[0].text_name} by {name}"


def _texts(side: Side, picked: NDArray[np.int64], model: str | None) -> list[str]:
    if side.texts is None:
        why = "--model turns texts into vectors" if model else "the other file holds texts"
        raise DataError(f"holds features and no texts, but {why}", file=side.file)
    return [side.texts[i] for i in picked.tolist()]


def _sample(side: Side, rows: int, seed: int) -> NDArray[np.int64]:
    import numpy as np

    if side.rows <= rows:
        return np.arange(side.rows)
    return np.sort(np.random.default_rng(seed).choice(side.rows, rows, replace=False))


def _encoded(encoder: Any, texts: list[str], progress: _Progress) -> Vectors:
    import numpy as np

    from luthier import inference

    parts = []
    for start in range(0, len(texts), _CHUNK):
        progress("encoding", start / len(texts))
        parts.append(inference.encode(encoder, texts[start : start + _CHUNK]))
    return np.concatenate(parts).astype(np.float64)


# --- for people -----------------------------------------------------------------------------


class _Progress:
    """What is being done, on stderr, once it has taken longer than a moment."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._shown = False

    def __call__(self, stage: str, share: float) -> None:
        now = time.monotonic()
        if share >= 1 or now - self._start < _PATIENCE_S:
            return
        if self._terminal:
            print(f"\r\033[K{stage} {share:.0%}", end="", file=sys.stderr, flush=True)
        elif not self._shown or now - self._last >= _APART_S:
            print(f"{stage} {share:.0%}", file=sys.stderr, flush=True)
            self._last = now
        self._shown = True

    def end(self) -> None:
        """Take the line back."""
        if self._shown and self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _print(found: Drift, files: dict[str, str]) -> None:
    print_facts(
        {
            "decision": found.decision,
            "because": found.reason,
            "reference": _rows(files["reference"], found.reference_rows, found.reference_used),
            "new": _rows(files["new"], found.new_rows, found.new_used),
            "compared": files["compared"],
            "off known ground": f"{found.ground.off:.1%} of the new rows" if found.ground else None,
            "note": "\n".join(found.notes),
        }
    )
    print()
    columns = ["test", "statistic", "p", "threshold", "changed", "would have noticed"]
    lines = [
        [f.test, f.statistic, f.p, f.threshold, f.changed, str(f.smallest)] for f in found.findings
    ]
    print_table(columns, lines)
    _print_labels(found)


def _rows(file: str, rows: int, used: int) -> str:
    sampled = f", a sample of {used:,} compared" if used < rows else ""
    return f"{Path(file).name}, {rows:,} rows{sampled}"


def _print_labels(found: Drift) -> None:
    """Which labels moved most, and where they are not known, where they must be."""
    for finding in found.findings:
        if finding.changed and "moved" in finding.detail:
            moved = finding.detail["moved"].items()
            lines = [[name, f"{old:.1%}", f"{new:.1%}"] for name, (old, new) in moved]
            print()
            print_table([finding.test, "reference", "new"], lines)
    if found.shares:
        most = sorted(found.shares.items(), key=lambda item: -item[1][0])[:10]
        lines = [[name, f"{s:.1%}", f"{low:.1%} to {high:.1%}"] for name, (s, low, high) in most]
        print()
        print_table(["label", "estimated share", "95% interval"], lines)
