"""Options of a constructor or a call, as JSON data: a spec can be queued, hashed and read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator


def _plain(value: Any) -> Any:
    """JSON data, tuples made lists, numbers finite. Raises ValueError for all else."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("option names are text")
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, str):
        value.encode()  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
        return value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    raise ValueError(f"an option is a finite number, text, a list or a mapping, not {value!r:.80}")


Options = Annotated[dict[str, Any], BeforeValidator(_plain)]
