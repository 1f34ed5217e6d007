"""Texts in batches of like length, and vectors back in the order of the texts. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from luthier.errors import DataError

#: Told the number of texts done so far.
Progress = Callable[[int], None]


def check_texts(texts: Sequence[str], batch_size: int) -> None:
    """Raises DataError for a single string, for the first item that is not one, and for a
    batch of nothing."""
    if isinstance(texts, str):
        raise DataError("a list of texts is needed, not one text", hint="encode([text])")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise DataError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
    for row, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise DataError(f"is not a text but {type(text).__name__}", row=row)


def encode_in_batches(
    texts: Sequence[str],
    batch_size: int,
    vectors: Callable[[list[str]], np.ndarray],
    progress: Progress | None,
) -> np.ndarray:
    """Call ``vectors`` on batches, longest texts first so that a batch has little padding.

    Returns float32 [n, d] in the order of ``texts``, of which there is at least one.
    """
    order = np.argsort([-len(text) for text in texts], kind="stable")
    found: np.ndarray | None = None
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        part = vectors([texts[i] for i in rows])
        if found is None:
            found = np.empty((len(texts), part.shape[1]), dtype=np.float32)
        found[rows] = part
        if progress:
            progress(start + len(rows))
    if found is None:
        raise ValueError("no text to encode")
    return found
