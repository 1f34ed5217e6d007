"""The callbacks of ``fit``, under the names that Finetuner's users know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from luthier.spec import EvaluationCallback as EvaluationSpec
from luthier.spec import Source
from luthier.spec.callbacks import (
    BestModelCheckpoint,
    EarlyStopping,
    MLFlowLogger,
    TrainingCheckpoint,
    WandBLogger,
    WiSEFTCallback,
)

__all__ = [
    "BestModelCheckpoint",
    "EarlyStopping",
    "EvaluationCallback",
    "MLFlowLogger",
    "TrainingCheckpoint",
    "WandBLogger",
    "WiSEFTCallback",
]


@dataclass(frozen=True)
class EvaluationCallback:
    """Retrieval metrics before training, after each epoch, and at the end.

    ``query_data`` and ``index_data`` are anything that ``fit`` takes as data. The other
    words are those of ``luthier.spec.EvaluationCallback``.
    """

    query_data: Any
    index_data: Any = None
    batch_size: int = 8
    exclude_self: bool = True
    limit: int = 20
    distance: Literal["cosine", "dot", "euclidean"] = "cosine"
    model: str | None = None
    index_model: str | None = None
    gather_examples: bool = False

    def spec(self, to_source: Callable[[Any], Source]) -> EvaluationSpec:
        """The callback as data, once its data has a source."""
        words = {name: getattr(self, name) for name in self.__dataclass_fields__}
        words["query_data"] = to_source(self.query_data)
        if self.index_data is not None:
            words["index_data"] = to_source(self.index_data)
        return EvaluationSpec(**words)
