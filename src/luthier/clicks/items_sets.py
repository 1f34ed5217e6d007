"""A catalogue as texts that a model reads: fields chosen, prepared, cut into parts, multiplied.

A part has a click where its item has one, and 1/k of the trust of k parts; the vector of an item
is the mean of its parts' (or what ``aggregation`` says).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from luthier.clicks.augmentation import Augmentation, augment_items
from luthier.clicks.conversion import Inputs
from luthier.clicks.images import IMAGES, is_image, name_images
from luthier.clicks.preprocessing import DatasetFieldsNormalizer, clean_text, line_from_dict
from luthier.clicks.sessions import SCHEMA, Ints, Sessions
from luthier.clicks.splitters import NoSplitter, Parts, Splitter, split_items
from luthier.errors import DataError

#: Between an item's id and the number of its part; no id has it, as it is no text.
_SEPARATOR = "\x1f"


class TextPreprocessor:
    """Texts cleaned; dicts made one line first, of all fields or of ``fields``."""

    def __init__(self, fields: Sequence[str] | None = None, separator: str = " ") -> None:
        self.fields, self.separator = fields, separator

    def __call__(self, item: Any) -> str:
        """The text of an item. Raises DataError where it is none."""
        if isinstance(item, Mapping):
            order = True if self.fields is None else self.fields
            item = line_from_dict(item, self.separator, order)
        if not isinstance(item, str):
            hint = "a preprocessor can make a text of it"
            raise DataError(f"an item is a text or a dict, not {type(item).__name__}", hint=hint)
        return clean_text(item)


class ItemsSetSplitter:
    """Cuts all items by a splitter."""

    def __init__(self, splitter: Splitter | None = None) -> None:
        self.splitter: Splitter = splitter or NoSplitter()

    def __call__(self, texts: Sequence[str]) -> Parts:
        return split_items(texts, self.splitter)


class ItemsSetAugmentationApplier:
    """Multiplies all items by an augmentation."""

    def __init__(self, augmentation: Augmentation) -> None:
        self.augmentation = augmentation

    def __call__(self, texts: Sequence[str]) -> Parts:
        return augment_items(texts, self.augmentation)


@dataclass(frozen=True)
class ItemsSet:
    """ids: of the items [n]. parts: their texts, one at least of each."""

    ids: tuple[str, ...]
    parts: Parts

    @property
    def texts(self) -> dict[str, str]:
        """Name of a part → its text. The first part of an item has the item's name."""
        return dict(zip(self.names, self.parts.texts, strict=True))

    @property
    def names(self) -> list[str]:
        """The name of each part, [p]."""
        first = np.searchsorted(self.parts.owner, self.parts.owner)
        places = (np.arange(len(self.parts.owner)) - first).tolist()
        owners = self.parts.owner.tolist()
        return [
            self.ids[owner] + (f"{_SEPARATOR}{place}" if place else "")
            for owner, place in zip(owners, places, strict=True)
        ]

    @property
    def is_whole(self) -> bool:
        """Whether every item is one text."""
        return len(self.parts.texts) == len(self.ids)

    def expand(self, inputs: Inputs) -> Inputs:
        """Inputs whose items are the parts, named as in ``names``."""
        if self.is_whole:
            return inputs
        sessions = inputs.sessions
        codes = {name: number for number, name in enumerate(self.ids)}
        code = np.array([codes.get(n, -1) for n in sessions.item_names], np.int64)
        code = code[sessions.item_codes]
        owner = self.parts.owner
        begin = np.searchsorted(owner, code)
        count = np.where(code >= 0, np.searchsorted(owner, code, "right") - begin, 1)
        impression = np.repeat(np.arange(len(code)), count)
        within = np.arange(len(impression)) - np.repeat(np.cumsum(count) - count, count)
        names = np.array([*self.names, ""], object)
        part = np.where(code[impression] >= 0, begin[impression] + within, len(names) - 1)
        return replace(
            inputs,
            sessions=_with_items(sessions, names[part], impression),
            relevance=inputs.relevance[impression],
            confidence=inputs.confidence[impression] / count[impression],
            kept=inputs.kept[impression] & (code[impression] >= 0),
        )


def _with_items(sessions: Sessions, names: np.ndarray, impression: Ints) -> Sessions:
    """The same searches with other results, each where the impression was that it is of."""
    lengths = np.bincount(sessions.owner[impression], minlength=len(sessions))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    none = pa.array(np.zeros(len(sessions) + 1, np.int32))
    table = sessions.table
    scores = pa.array(sessions.scores[impression], from_pandas=True)
    lists = {
        "items": pa.array(names, pa.string()),
        "positions": pa.array(sessions.positions[impression], pa.int32()),
        "scores": scores.cast(pa.float64()),
    }
    for name in SCHEMA.names:
        if name in lists:
            column = pa.ListArray.from_arrays(offsets, lists[name])
        elif name.startswith("event_"):
            column = pa.ListArray.from_arrays(
                none, pa.array([], SCHEMA.field(name).type.value_type)
            )
        else:
            continue
        table = table.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), column)
    return Sessions(table)


class TextItemSetManager:
    """From rows of a catalogue to the texts of training and of tests.

    field_normalizer: which field is the item, which its id. preprocessor: item → text.
    items_set_splitter: cuts texts into parts. augmenter: more texts of one, for training;
    ``do_augment_test`` for tests as well. aggregation: of the vectors of parts, mean, max or min.
    """

    def __init__(
        self,
        field_normalizer: DatasetFieldsNormalizer | None = None,
        items_set_splitter: ItemsSetSplitter | None = None,
        augmenter: ItemsSetAugmentationApplier | None = None,
        do_augment_test: bool = False,
        preprocessor: Callable[[Any], str] | None = None,
        aggregation: str = "mean",
    ) -> None:
        if aggregation not in ("mean", "max", "min"):
            raise DataError(f"no aggregation is called '{aggregation}'", hint="mean, max or min")
        self.field_normalizer = field_normalizer or DatasetFieldsNormalizer("item", "item_id")
        self.items_set_splitter = items_set_splitter or ItemsSetSplitter()
        self.augmenter, self.do_augment_test = augmenter, do_augment_test
        self.preprocessor = preprocessor or TextPreprocessor()
        self.aggregation = aggregation

    def catalogue(
        self, rows: Iterable[Mapping[str, Any]], file: str = "catalogue"
    ) -> dict[str, str]:
        """id → text. Raises DataError: a field lacks, an id comes twice, an item has no text, or
        is an image."""
        found = {}
        items = self.field_normalizer(rows, file)
        column = self.field_normalizer.item_field_name

        def wrong(message: str, hint: str | None = None) -> DataError:
            return DataError(message, file=file, column=column, hint=hint)

        for name, item in items.items():
            try:
                text = self.preprocessor(item)
            except DataError as error:
                if is_image(item):
                    raise wrong(f"item {name!r} is an image", IMAGES) from None
                raise wrong(f"item {name!r}: {error.message}", error.hint) from None
            if is_image(text):
                raise wrong(f"item {name!r} is an image", IMAGES)
            if not text:
                raise wrong(f"item {name!r} has no text")
            found[name] = text
        if not found:
            raise DataError("there is no item", file=file)
        if name_images(found.values()):
            name, text = next(iter(found.items()))
            raise wrong(f"items are names of images, such as {text!r:.80} of {name!r}", IMAGES)
        return found

    def items_set(self, catalogue: Mapping[str, str], *, train: bool) -> ItemsSet:
        """The texts of all items, for training or for a test."""
        parts = self.items_set_splitter(list(catalogue.values()))
        if self.augmenter is not None and (train or self.do_augment_test):
            more = self.augmenter(parts.texts)
            parts = Parts(more.texts, parts.owner[more.owner], parts.items)
        return ItemsSet(tuple(catalogue), parts)
