"""An encoder as an updater sees it: rows are pairs, triplets or labelled texts, and what the
model says of a row is its vectors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.batches.arithmetic import Rows
from luthier.data.remembered import bytes_of, keep
from luthier.engine.device import Device
from luthier.engine.learner import EmbeddingLearner, TextBatch
from luthier.engine.pupil import RowPupil
from luthier.updaters.updater import Seen

if TYPE_CHECKING:
    from luthier.data import Dataset
    from luthier.objectives import Objective

#: Cosines are multiplied by it before a softmax: sentence-transformers' scale for ranking.
_SCALE = 20.0


@dataclass(frozen=True)
class SeenTexts(Seen):
    """scores (n, roles · d): the vectors of a row side by side, each of length sqrt(d), so that
    the mean square of a difference is 2 - 2 cos, whatever the width. columns: the vectors as the
    model gave them, one (n, d) a role."""

    columns: tuple[Tensor, ...] = ()


class EmbeddingPupil(EmbeddingLearner, RowPupil):
    """An encoder under an objective, the remembered rows before the new ones.

    The objective is one number for a batch: new rows and remembered ones have each their own.
    """

    def __init__(
        self, model: Any, objective: Objective, dataset: Dataset, device: Device, *,
        old: int = 0, per_class: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(model, objective, dataset, device)
        self.counted(old, len(dataset) - old)
        self.per_class = per_class if dataset.form == "labelled" else 0

    # --- what an updater asks -----------------------------------------------------------------

    def see(self, batch: TextBatch, model: nn.Module | None = None) -> SeenTexts:
        with self.device.autocast():
            columns = self.embed_columns(batch, self.model if model is None else model)
        sides = [F.normalize(column, dim=1) * column.shape[1] ** 0.5 for column in columns]
        return SeenTexts(batch, torch.cat(sides, dim=1), columns=tuple(columns))

    def losses(self, seen: Seen, allowed: Tensor | None = None) -> Tensor:
        assert isinstance(seen, SeenTexts)
        return self.compare(seen.columns, seen.batch)

    def certainty(self, seen: Seen) -> Tensor:
        """How near a row is to what is true: of pairs and triplets the softmax of the cosine to
        their own positive among all positives and negatives of the batch; of scores the
        negative error of the cosine; of classes how much nearer a text is to its own."""
        assert isinstance(seen, SeenTexts)
        columns, batch = [F.normalize(c, dim=1) for c in seen.columns], seen.batch
        own = (columns[0] * columns[1]).sum(1) if len(columns) > 1 else None
        if batch.targets is not None and own is not None:
            targets = batch.targets.to(own)
            if len(columns) > 2:  # a teacher's margin
                own = own - (columns[0] * columns[2]).sum(1)
            found: Tensor = -(own - targets).abs()
            return found
        if own is not None:
            found = columns[0] @ torch.cat(columns[1:]).T * _SCALE
            return found.softmax(1).diagonal()
        same = batch.labels[:, None] == batch.labels[None]
        same = same.to(columns[0].device)
        cosines = columns[0] @ columns[0].T
        others = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        return _mean(cosines, others) - _mean(cosines, ~same)

    def labels(self, seen: Seen) -> Tensor | None:
        return None  # vectors are no logits, whatever the rows are called

    # --- what an update asks ------------------------------------------------------------------

    def labels_of(self, rows: Rows) -> Rows | None:
        if self._labels is None:
            return None
        found: Rows = self._labels.numpy()[rows]
        return found

    def bytes_of(self, rows: Rows) -> Rows:
        return bytes_of(self.dataset)[rows]

    def classes(self) -> list[int]:
        return []

    def features_of(self, batch: TextBatch) -> Tensor:
        """The vectors of rows (n, d); of pairs both beside one another."""
        return self.see(batch).scores

    def remember(self, rows: Rows) -> RememberedTexts:
        """These rows, raw."""
        return RememberedTexts(self.dataset, rows)


@dataclass(frozen=True)
class RememberedTexts:
    """Rows of a data set."""

    dataset: Dataset
    rows: Rows

    def save(self, folder: Path, name: str) -> None:
        """Write ``name.arrow``."""
        keep(self.dataset, self.rows, folder / f"{name}.arrow")


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """The mean of the chosen values of each row, 0 where none is chosen."""
    return (values * where).sum(1) / where.sum(1).clamp(min=1)
