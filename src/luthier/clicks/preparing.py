"""From ranking data to what a job reads: rankings of each variant, and what is held out."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from luthier.clicks.builder import RankingData
from luthier.clicks.calculating import of_sessions
from luthier.clicks.conversion import Inputs, convert
from luthier.clicks.items_sets import ItemsSet
from luthier.clicks.mining import Mined
from luthier.clicks.propensity import Propensities, expectation_maximization, harvest
from luthier.clicks.query_rankings import ByQuery, relevance_by_query, to_query_rankings
from luthier.clicks.rankings import to_rankings
from luthier.clicks.sessions import SCHEMA, Sessions
from luthier.clicks.settings import FineTuningSettings
from luthier.clicks.sides import Sides
from luthier.clicks.splits import split_sessions
from luthier.clicks.weights import doubly_robust, weights_of
from luthier.doors.clicks_data import ClickData, Part, Variant
from luthier.errors import DataError, Problem, SpecError
from luthier.spec import Source
from luthier.store.atomic import write_bytes

if TYPE_CHECKING:
    from luthier.runs.connection import Home

#: Searched while training goes on, to follow it: what validation showed, and others up to this.
VALIDATION_INDEX = 5_000
OBJECTIVES = ("ips", "dr", "naive")


@dataclass(frozen=True)
class Debiasing:
    """propensities: None where the log says nothing of them, or nobody asked; then why is told.
    clip: the least that is divided by. robust: doubly robust relevance, rather than weights."""

    propensities: Propensities | None
    clip: float
    why: str
    robust: bool = False

    def weighted(self, inputs: Inputs) -> Inputs:
        """Inputs with the inverse propensities of their positions as weights; or with what is
        estimated of the relevance of each item to its query instead of clicks."""
        if self.propensities is None:
            return inputs
        if self.robust:
            return doubly_robust(inputs, self.propensities, self.clip)
        return inputs.weighted(weights_of(inputs.sessions, self.propensities, self.clip))

    def to_dict(self) -> dict[str, Any]:
        """For reports."""
        found = self.propensities
        if found is None:
            return {"method": None, "why": self.why}
        return {"method": found.method, "clip": self.clip, "doubly_robust": self.robust,
                "values": [round(v, 4) for v in found.values.tolist()],
                "known": found.known.tolist()}  # fmt: skip


def estimate(sessions: Sessions, objective: str, clip: float) -> Debiasing:
    """Propensities of the positions, where the log allows. Raises SpecError."""
    if objective not in OBJECTIVES:
        known = f"{', '.join(OBJECTIVES[:-1])} or {OBJECTIVES[-1]}"
        raise SpecError([Problem("objective", f"is {known}, not {objective!r}")])
    if not 0 < clip <= 1:
        raise SpecError([Problem("clip", f"is a propensity above 0, not {clip!r}")])
    if objective == "naive":
        return Debiasing(None, clip, "the objective is naive: a click counts the same anywhere")
    clicked = sessions.grades() > 0
    if int(sessions.positions.max(initial=1)) < 2:
        return Debiasing(None, clip, "every search shows one result: there is no bias to undo")
    try:
        found = harvest(sessions, clicked)
    except DataError as error:
        return Debiasing(None, clip, f"{error.message}: {error.hint}")
    if not np.isfinite(found.values).all() or (found.values <= 0).any():
        try:
            found = expectation_maximization(sessions, clicked)
        except DataError as error:
            return Debiasing(None, clip, f"{error.message}: {error.hint}")
    return Debiasing(found, clip, "", robust=objective == "dr")


@dataclass(frozen=True)
class Prepared:
    """data: what the job reads. train: the sessions without what validates. variants: URI of
    rankings → the variant. notes: what somebody should know."""

    data: ClickData
    train: Sessions
    variants: Mapping[str, Variant]
    notes: tuple[str, ...]


def prepare(
    found: RankingData,
    variants: Sequence[Variant],
    settings: FineTuningSettings,
    debiasing: Debiasing,
    home: Home,
    *,
    validation: float,
    seed: int,
    before: Sides | None = None,
) -> Prepared:
    """Write the rankings into the home's store, each variant once.

    validation: the share of training sessions that early stopping and a search go by; what the
    verdict is of has no part in either. before: what the starting model makes of it all, for the
    scores of pairs and hard negatives; without it scores are those of the search, where the log
    has them.
    Raises DataError where nothing is left to train on.
    """
    train, held, notes = validation_split(found, validation, seed)
    if found.missing:
        notes.append(f"{len(found.missing):,} items were shown that the catalogue has not, such "
                     f"as {found.missing[0]!r}: they are left out")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=home.scratch()) as folder:
        writer = _Writer(Path(folder), home)
        parts = {
            variant: _part(found, train, variant, settings, debiasing, seed, writer, before)
            for variant in variants
        }
        data = ClickData(parts)
        if held is not None:
            clicks = convert(held, confidence=_confidence(settings)).of_catalogue(found.catalogue)
            inputs = _scored(debiasing.weighted(clicks), settings, before)
            if (clicks.kept & (clicks.relevance > 0)).any():
                queries, index = _searches(clicks, found, seed)
                data = replace(
                    data,
                    eval=writer.rankings(inputs, found.test_items)[0],
                    queries=writer.pairs(queries),
                    index=writer.pairs(index),
                )
            else:
                notes.append("no click is left to validate on")
    calculated, more = of_sessions(
        settings, {"train": train, "test": held}, found.test_items, home, seed
    )
    data, notes = replace(data, calculated=calculated), [*notes, *more]
    by_uri = _remembered(data.parts, home)
    return Prepared(data, train, by_uri, tuple(notes))


def validation_split(
    found: RankingData, share: float, seed: int
) -> tuple[Sessions, Sessions | None, list[str]]:
    """Training sessions, those that validate, and notes."""
    if not 0 <= share < 1:
        raise SpecError([Problem("validation", f"is a share from 0 to below 1, not {share!r}")])
    if share == 0:
        return found.train, None, ["nothing validates: training goes to its end"]
    try:
        parts = split_sessions(
            found.train, test_size_ratio=share, by="time" if found.by == "time" else "query",
            seed=seed + 1,
        )  # fmt: skip
    except DataError as error:
        return found.train, None, [f"nothing validates ({error.message}; {error.hint})"]
    return parts.train, parts.test, []


def _part(
    found: RankingData,
    train: Sessions,
    variant: Variant,
    settings: FineTuningSettings,
    debiasing: Debiasing,
    seed: int,
    writer: _Writer,
    before: Sides | None,
) -> Part:
    only, share = variant
    if settings.rows == "queries":
        return _by_query(found, train, variant, settings, debiasing, writer)
    inputs = convert(
        train,
        not_irrelevant_only=only,
        negative_downsampling=share,
        negatives=settings.negatives,
        confidence=_confidence(settings),
        seed=seed,
    )
    inputs = _scored(debiasing.weighted(inputs).of_catalogue(found.catalogue), settings, before)
    if not (inputs.kept & (inputs.relevance > 0)).any():
        hint = "a log of items that the catalogue has, with clicks"
        raise DataError("no click is left to train on", hint=hint)
    mined = None
    if settings.mined_negatives and before is not None:
        if not found.train_items.is_whole:
            hint = "mined_negatives=0, or a catalogue without a splitter and an augmenter"
            message = "hard negatives are of items that are one text each"
            raise SpecError([Problem("mined_negatives", message, hint)])
        mined = before.mined(
            inputs, settings.mined_negatives, settings.mined_margin, settings.ranker_name
        )
    source, rows = writer.rankings(inputs, found.train_items, mined)
    return Part(source, rows)


def _by_query(
    found: RankingData,
    train: Sessions,
    variant: Variant,
    settings: FineTuningSettings,
    debiasing: Debiasing,
    writer: _Writer,
) -> Part:
    """A list of each query, by all impressions of all its sessions."""
    if variant != (True, 1.0):
        message = "rows='queries' counts every impression"
        hint = "not_irrelevant_only=True, negative_downsampling=1, or rows='sessions'"
        raise SpecError([Problem("negative_downsampling", message, hint)])
    if debiasing.robust:
        message = "is of single sessions; clicks over looks are of all of a query's"
        raise SpecError([Problem("objective", f"dr {message}", "objective='ips'")])
    if not found.train_items.is_whole:
        hint = "a catalogue without a splitter and an augmenter, or rows='sessions'"
        raise SpecError([Problem("rows", "are of items that are one text each", hint)])
    looked = debiasing.propensities
    examined = None if looked is None else looked.at(train.positions)
    relevance = relevance_by_query(train, train.grades(), examined)
    known = relevance.of_items(train.items_of(found.catalogue))
    source, rows = writer.by_query(train, known, found.train_items, settings.certainty)
    return Part(source, rows)


def _confidence(settings: FineTuningSettings) -> Any:
    return settings.confidence_calculator


def _scored(inputs: Inputs, settings: FineTuningSettings, before: Sides | None) -> Inputs:
    """With the scores of the starting model instead of those of the search."""
    if before is None:
        return inputs
    scores = before.scores(inputs.sessions, settings.ranker_name)
    sessions = inputs.sessions
    offsets = pa.array(sessions.starts, pa.int32())
    column = pa.ListArray.from_arrays(offsets, pa.array(scores, pa.float64(), from_pandas=True))
    at = SCHEMA.get_field_index("scores")
    table = sessions.table.set_column(at, SCHEMA.field("scores"), column)
    return replace(inputs, sessions=Sessions(table))


def _searches(
    inputs: Inputs, found: RankingData, seed: int
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Queries, each with what was clicked for it, and what is searched."""
    sessions, items = inputs.sessions, found.test_items
    texts: dict[str, list[str]] = {}
    for owner, text in zip(items.parts.owner.tolist(), items.parts.texts, strict=True):
        texts.setdefault(items.ids[owner], []).append(text)
    at = np.flatnonzero(inputs.kept & (inputs.relevance > 0))
    pairs = dict.fromkeys(
        zip(sessions.query_codes[sessions.owner[at]].tolist(), sessions.item_codes[at].tolist(),
            strict=True)
    )  # fmt: skip
    names, queries = sessions.item_names, sessions.query_texts
    asked = [
        {"anchor": queries[query], "positive": text}
        for query, item in pairs
        for text in texts[names[item]]
    ]
    shown = [name for name in names if name in texts]
    others = [name for name in items.ids if name not in set(shown)]
    room = max(0, VALIDATION_INDEX - len(shown))
    if len(others) > room:
        rng = np.random.default_rng(seed)
        others = [others[i] for i in sorted(rng.choice(len(others), room, replace=False))]
    index = [
        {"anchor": name, "positive": text} for name in [*shown, *others] for text in texts[name]
    ]
    return asked, index


@dataclass
class _Writer:
    """Puts files into the home's store, which knows them by their content."""

    folder: Path
    home: Home
    count: int = 0

    def rankings(
        self, inputs: Inputs, items: ItemsSet, mined: Mined | None = None
    ) -> tuple[Source, int]:
        """Rankings of inputs, and how many searches they are."""
        self.count += 1
        file = self.folder / f"rankings-{self.count}.arrow"
        to_rankings(items.expand(inputs), items.texts, file, mined=mined)
        return self._counted(file)

    def by_query(
        self, sessions: Sessions, relevance: ByQuery, items: ItemsSet, certainty: float
    ) -> tuple[Source, int]:
        """Rankings of queries, and how many they are."""
        self.count += 1
        file = self.folder / f"rankings-{self.count}.arrow"
        to_query_rankings(sessions, relevance, items.texts, file, certainty=certainty)
        return self._counted(file)

    def _counted(self, file: Path) -> tuple[Source, int]:
        with pa.memory_map(str(file)) as source:
            rows = pa.ipc.open_file(source).read_all().num_rows
        return self._put(file), rows

    def pairs(self, rows: list[dict[str, str]]) -> Source:
        """Pairs of texts."""
        from luthier.data import to_arrow

        self.count += 1
        file = self.folder / f"pairs-{self.count}.arrow"
        to_arrow(rows, file)
        return self._put(file)

    def _put(self, file: Path) -> Source:
        sha256 = self.home.store.put_blob(file)
        return Source(uri=f"blob:{sha256}", sha256=sha256)


def _remembered(parts: Mapping[Variant, Part], home: Home) -> dict[str, Variant]:
    """By URI the variant that rankings are of, kept for later iterations to know."""
    folder = home.path / "clicks" / "variants"
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Variant] = {}
    for variant, part in parts.items():
        if part.train.uri not in found:
            found[part.train.uri] = variant
            write_bytes(folder / f"{part.train.sha256}.json", json.dumps(variant).encode())
    return found


def known_variant(home: Home, uri: str) -> Variant | None:
    """The variant that rankings in this home are of, where they were made here."""
    file = home.path / "clicks" / "variants" / f"{uri.removeprefix('blob:')}.json"
    if not uri.startswith("blob:") or not file.is_file():
        return None
    only, share = json.loads(file.read_text())
    return bool(only), float(share)
