"""Shift detectors with the shape of Renate's: ``fit(reference)``, then ``score(new)`` as often as
wanted. A score is 1 - p: near 1 where the new data is from another distribution.

Renate's words are kept (``renate.shift``, version 0.5): feature_extractor, batch_size,
num_preprocessing_workers, device, num_permutations. Data may be an array [n, …], or a dataset of
torch, of whose items the first entry is taken where they are tuples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from luthier.errors import DataError
from luthier.evaluation.drift_inputs import FEWEST_ROWS, matrix
from luthier.evaluation.two_sample import Array, kolmogorov_smirnov, mmd


class ShiftDetector:
    """What the detectors share: the way from data to features.

    feature_extractor: from a batch to its features [b, …]: a torch module, which gets tensors on
    ``device`` and computes no gradients, or any function of arrays; None takes the data itself.
    batch_size, num_preprocessing_workers: how data is read; neither changes the result.
    """

    def __init__(
        self,
        feature_extractor: Callable[[Any], Any] | None = None,
        batch_size: int = 32,
        num_preprocessing_workers: int = 0,
        device: str = "cpu",
    ) -> None:
        self._extractor = feature_extractor
        self._batch_size = batch_size
        self._workers = num_preprocessing_workers
        self._device = device
        self._reference: Array | None = None

    def fit(self, dataset: Any) -> None:
        """Keep the features of the reference. Raises DataError for fewer than 5 rows."""
        self._reference = self._features(dataset, "reference")

    def score(self, dataset: Any) -> float:
        """1 - p of the test that the data is from the reference's distribution.

        Raises DataError before ``fit``, for fewer than 5 rows and for features of another width.
        """
        if self._reference is None:
            raise DataError("the detector has no reference yet", hint="fit(reference) first")
        new = self._features(dataset, "new rows")
        if new.shape[1] != self._reference.shape[1]:
            widths = f"{new.shape[1]} features a row, the reference {self._reference.shape[1]}"
            raise DataError(f"the new rows have {widths}")
        return 1.0 - self._p(self._reference, new)

    def _p(self, reference: Array, new: Array) -> float:
        raise NotImplementedError

    def _features(self, dataset: Any, side: str) -> Array:
        parts = [self._extracted(batch) for batch in self._batches(dataset)]
        if sum(len(part) for part in parts) < FEWEST_ROWS:
            raise DataError("too few rows", file=side, hint=f"at least {FEWEST_ROWS}")
        return matrix(np.concatenate([part.reshape(len(part), -1) for part in parts]), side)

    def _batches(self, dataset: Any) -> Iterator[Any]:
        if isinstance(dataset, np.ndarray | list):
            rows = np.asarray(dataset)
            for start in range(0, len(rows), self._batch_size):
                yield rows[start : start + self._batch_size]
            return
        from torch import Tensor  # only for who hands over torch's own data
        from torch.utils.data import DataLoader

        if isinstance(dataset, Tensor):
            for start in range(0, len(dataset), self._batch_size):
                yield dataset[start : start + self._batch_size]
            return
        loader: Any = DataLoader(dataset, self._batch_size, num_workers=self._workers)
        for batch in loader:
            yield batch[0] if isinstance(batch, list | tuple) else batch

    def _extracted(self, batch: Any) -> Array:
        found = batch if self._extractor is None else self._computed(batch)
        if hasattr(found, "detach"):
            found = found.detach().float().cpu().numpy()
        return np.asarray(found)

    def _computed(self, batch: Any) -> Any:
        assert self._extractor is not None
        if not hasattr(self._extractor, "parameters"):
            return self._extractor(batch.numpy() if hasattr(batch, "detach") else batch)
        import torch

        module: Any = self._extractor
        learning = module.training
        module.to(self._device).eval()  # dropout would be noise between the two sides
        try:
            with torch.no_grad():
                return module(torch.as_tensor(batch).to(self._device))
        finally:
            module.train(learning)


class MMDCovariateShiftDetector(ShiftDetector):
    """Maximum mean discrepancy with an RBF kernel and the median heuristic (Gretton et al. 2012),
    by ``num_permutations`` permutations drawn with ``seed``. See ``two_sample.mmd``."""

    def __init__(
        self,
        feature_extractor: Callable[[Any], Any] | None = None,
        num_permutations: int = 1_000,
        batch_size: int = 32,
        num_preprocessing_workers: int = 0,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__(feature_extractor, batch_size, num_preprocessing_workers, device)
        if num_permutations < 1:
            raise DataError(f"num_permutations is at least 1, not {num_permutations}")
        self._permutations, self._seed = num_permutations, seed

    def _p(self, reference: Array, new: Array) -> float:
        return mmd(reference, new, permutations=self._permutations, seed=self._seed).p


class KolmogorovSmirnovCovariateShiftDetector(ShiftDetector):
    """A Kolmogorov-Smirnov test a feature, corrected for their number (Rabanser et al., Failing
    Loudly, NeurIPS 2019). See ``two_sample.kolmogorov_smirnov``."""

    def _p(self, reference: Array, new: Array) -> float:
        return float(kolmogorov_smirnov(reference, new).adjusted.min())
