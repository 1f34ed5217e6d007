"""Where data comes from, and how it is to be read."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

#: The shapes that training data can have, each with the roles of its columns.
#: labelled: text, label        pairs: anchor, positive
#: triplets: anchor, positive, negative_1, negative_2, …
#: scored:   sentence1, sentence2, score in 0..1
#: margin:   anchor, positive, negative_1, margin (a teacher's score difference)
#: rankings: query, and lists a row: items, relevance, if there are weight, score, irrelevant
Form = Literal["labelled", "pairs", "triplets", "scored", "margin", "rankings"]


class Frozen(BaseModel):
    """Immutable, strict about names, no silent coercion of unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Source(Frozen):
    """A file, a URL, or data that was handed over in memory and put in the store.

    ``uri`` is an absolute path, an fsspec URL, or ``blob:<sha256>`` for stored data.
    ``sha256`` is the content at submit time, when it could be read then: a run whose data
    has changed since is refused instead of training on something else.
    """

    uri: str
    sha256: str | None = None


class CSVOptions(Frozen):
    """How to read a CSV file.

    size: read this many rows only. sampling_rate: keep this share of the rows (0..1).
    dialect: auto, excel, excel-tab or unix. encoding: a Python codec name.
    delimiter: the character between cells, where dialect auto cannot tell.
    is_labeled: two columns are item and label rather than a pair.
    header: whether the first row holds names; None looks for known names.
    columns: role to column name or number (from 1), where names do not tell.
    convert_to_blob, create_point_clouds, point_cloud_size: for images and meshes.
    """

    size: int | None = Field(default=None, ge=1)
    sampling_rate: float | None = Field(default=None, gt=0, le=1)
    dialect: Literal["auto", "excel", "excel-tab", "unix"] = "auto"
    delimiter: str | None = None
    encoding: str = "utf-8"
    is_labeled: bool = False
    header: bool | None = None
    columns: dict[str, str | int] | None = None
    convert_to_blob: bool = True
    create_point_clouds: bool = True
    point_cloud_size: int = Field(default=2048, ge=1)
