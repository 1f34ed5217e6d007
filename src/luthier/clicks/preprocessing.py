"""Items as texts: what a catalogue holds made into what a model reads."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from luthier.errors import DataError, nearest

_SPACES = re.compile(r"\s+")


def clean_text(text: str) -> str:
    """NFC, runs of white space as one space, none at the ends.

    >>> clean_text("  two\\n words ")
    'two words'
    """
    return _SPACES.sub(" ", unicodedata.normalize("NFC", text)).strip()


def line_from_dict(
    item: Mapping[str, Any], separator: str = " ", order_fields: bool | Sequence[str] = True,
    ascending: bool = True, field_names: Mapping[str, str] | None = None,
    ignore_missed: bool = True,
) -> str:  # fmt: skip
    """The fields of a dict as one line, ``name: value`` each.

    order_fields: sorted by name (``ascending`` or not), as they come (False), or just these, in
    this order. field_names: other names for them. ignore_missed: fields that ``field_names`` or
    the dict lacks keep their name, or are left out; else they raise DataError.

    >>> line_from_dict({"title": "Hat", "colour": "red"}, separator="; ")
    'colour: red; title: Hat'
    """
    if isinstance(order_fields, bool):
        fields = sorted(item, reverse=not ascending) if order_fields else list(item)
    else:
        fields = [name for name in order_fields if name in item or not ignore_missed]
    names = field_names or {}
    lines = []
    for field in fields:
        if field not in item:
            raise DataError("an item lacks the field", column=field, hint=nearest(field, item))
        if names and field not in names and not ignore_missed:
            raise DataError("the field has no name in field_names", column=field)
        if item[field] is not None:
            lines.append(f"{names.get(field, field)}: {item[field]}")
    return separator.join(lines)


class DatasetFieldsNormalizer:
    """Rows of a catalogue by id: which field is the item, which its id.

    >>> DatasetFieldsNormalizer("title", "sku")([{"sku": 7, "title": "Hat"}])
    {'7': 'Hat'}
    """

    def __init__(self, item_field_name: str, id_field_name: str) -> None:
        self.item_field_name, self.id_field_name = item_field_name, id_field_name

    def __call__(
        self, rows: Iterable[Mapping[str, Any]], file: str = "catalogue"
    ) -> dict[str, Any]:
        """id → item. Raises DataError: a field lacks, or an id comes twice with other content."""
        found: dict[str, Any] = {}
        for row, fields in enumerate(rows, start=1):
            for name in (self.id_field_name, self.item_field_name):
                value = fields.get(name)
                if value is None or (isinstance(value, str) and not value):
                    hint = nearest(name, map(str, fields))
                    raise DataError("the field lacks", file=file, row=row, column=name, hint=hint)
            name, item = str(fields[self.id_field_name]), fields[self.item_field_name]
            if not np.array_equal(found.setdefault(name, item), item):  # items may be arrays
                message = f"the id {name!r} comes again with another item"
                raise DataError(message, file=file, row=row, column=self.id_field_name)
        return found
