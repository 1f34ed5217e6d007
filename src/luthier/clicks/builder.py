"""``FineTuningBuilder``: everything that a training on clicks is made of, put together.

``prepare_data`` goes from sessions with events to sessions that are split, and items that are
texts; a builder adds settings and parameters; ``luthier.clicks.tuning.run`` trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.clicks.accumulators import MetricsAccumulator
from luthier.clicks.converters import (
    ClickstreamSessionConverter,
    QueryRetriever,
    SessionWithEvents,
    TextQueryRetriever,
    TrainTestSplitter,
)
from luthier.clicks.items_sets import ItemsSet, TextItemSetManager
from luthier.clicks.loaders import DataLoader
from luthier.clicks.parameters import FineTuningParams
from luthier.clicks.preprocessing import DatasetFieldsNormalizer
from luthier.clicks.sessions import Sessions
from luthier.clicks.settings import FineTuningSettings
from luthier.clicks.splits import Overlap, Split
from luthier.errors import DataError, Problem, SpecError


@dataclass(frozen=True)
class RankingData:
    """Sessions, split, and the items that they show.

    train, test: sessions. overlap: what both know. catalogue: id → text of every item.
    train_items, test_items: the texts of items, cut and multiplied as asked for. missing: how
    many different items were shown that the catalogue has not, the first of them by name.
    """

    train: Sessions
    test: Sessions
    overlap: Overlap
    by: str
    catalogue: Mapping[str, str]
    train_items: ItemsSet
    test_items: ItemsSet
    missing: tuple[str, ...] = ()
    aggregation: str = "mean"


def prepare_data(
    clickstream_sessions: Sessions | Iterable[SessionWithEvents],
    converter: ClickstreamSessionConverter,
    splitter: TrainTestSplitter,
    query_retriever: QueryRetriever,
    loader: DataLoader,
    items_set_manager: TextItemSetManager,
) -> RankingData:
    """Convert, load the items, split. Raises DataError that names what is wrong."""
    if not isinstance(clickstream_sessions, Sessions):
        clickstream_sessions = list(clickstream_sessions)
    sessions = converter.convert(clickstream_sessions)
    sessions = converter.queries(sessions, query_retriever)
    items = converter.items(clickstream_sessions)
    rows = loader.load(items)
    if not rows and (others := loader.load()):
        hint = f"the log has {sessions.item_names[0]!r}, a row is {others[0]!r:.100}"
        raise DataError("no item of the log is in the catalogue", file=loader.file, hint=hint)
    catalogue = items_set_manager.catalogue(rows, loader.file)
    return ranking_data(splitter.split(sessions), catalogue, items_set_manager)


def ranking_data(
    split: Split, catalogue: Mapping[str, str], manager: TextItemSetManager
) -> RankingData:
    """The parts of a split with the items as texts. Raises DataError where the catalogue has none
    of the items that were shown."""
    shown = set(split.train.item_names) | set(split.test.item_names)
    missing = sorted(shown - set(catalogue))
    if len(missing) == len(shown):
        known = next(iter(catalogue), None)
        hint = f"the log has {missing[0]!r}, the catalogue {known!r}"
        raise DataError("no item of the log is in the catalogue", hint=hint)
    return RankingData(
        train=split.train,
        test=split.test,
        overlap=split.overlap,
        by=split.by,
        catalogue=catalogue,
        train_items=manager.items_set(catalogue, train=True),
        test_items=manager.items_set(catalogue, train=False),
        missing=tuple(missing),
        aggregation=manager.aggregation,
    )


@dataclass
class FineTuningBuilder:
    """A training on clicks, ready to run; the fields are Embedding Studio's.

    ranking_data: of ``prepare_data``. initial_params: name → choices of a search, or plain values
    for one training. initial_max_evals: trials of the search. experiments_manager: where
    iterations are kept, None without. starting_params: sets of parameters that earlier iterations
    found best; they are tried first. model, artifact: what training starts from, where the
    caller of ``run`` does not say.
    """

    fine_tuning_settings: FineTuningSettings
    initial_params: Mapping[str, Any] | FineTuningParams
    ranking_data: RankingData
    data_loader: DataLoader | None = None
    query_retriever: QueryRetriever = field(default_factory=TextQueryRetriever)
    clickstream_sessions_converter: ClickstreamSessionConverter = field(
        default_factory=ClickstreamSessionConverter
    )
    clickstream_sessions_splitter: TrainTestSplitter = field(default_factory=TrainTestSplitter)
    dataset_fields_normalizer: DatasetFieldsNormalizer | None = None
    items_set_manager: TextItemSetManager | None = None
    accumulators: Sequence[MetricsAccumulator] = ()
    experiments_manager: Any = None
    initial_max_evals: int | None = None
    starting_params: Sequence[Mapping[str, Any]] = ()
    model: str | None = None
    artifact: str | None = None

    def __post_init__(self) -> None:
        problems = []
        if not isinstance(self.fine_tuning_settings, FineTuningSettings):
            problems.append(Problem("fine_tuning_settings", "are FineTuningSettings"))
        if not isinstance(self.ranking_data, RankingData):
            hint = "what luthier.clicks.prepare_data(…) returns"
            problems.append(Problem("ranking_data", "are RankingData", hint))
        if not isinstance(self.initial_params, Mapping | FineTuningParams):
            problems.append(Problem("initial_params", "are choices by name, or FineTuningParams"))
        evals = self.initial_max_evals
        if evals is not None and (isinstance(evals, bool) or not isinstance(evals, int)
                                  or evals < 1):  # fmt: skip
            message = f"is a whole number from 1 on, not {evals!r}"
            problems.append(Problem("initial_max_evals", message))
        if problems:
            raise SpecError(problems)

    def build(self, **words: Any) -> Any:
        """Train, and say what came of it: ``luthier.clicks.tuning.run(self, **words)``."""
        from luthier.clicks.tuning import run

        return run(self, **words)
