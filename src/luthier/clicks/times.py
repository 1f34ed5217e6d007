"""Times of any age and spelling, as seconds since 1970 in UTC."""

from __future__ import annotations

import datetime
import math
from typing import Any

#: From these magnitudes on a number is no longer seconds, milliseconds, microseconds. As seconds
#: the first is the year 5138, as milliseconds it is March 1973: logs are between the two.
_MILLI, _MICRO, _NANO = 1e11, 1e14, 1e17


def seconds(value: Any) -> float:
    """Seconds since 1970 of a number (s, ms, µs or ns, by its size), digits, ISO 8601 text or
    a datetime; NaN for None and for an empty text. Times without a zone are UTC.

    Raises ValueError with a text for people.

    >>> seconds(1_700_000_000) == seconds("1700000000000") == seconds("2023-11-14T22:13:20Z")
    True
    """
    if value is None or value == "":
        return math.nan
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is no time")
    if isinstance(value, int | float):
        return _scaled(float(value))
    if isinstance(value, datetime.datetime):
        return _of(value)
    if isinstance(value, str):
        text = value.strip()
        try:
            return _scaled(float(text))
        except ValueError:
            pass
        try:
            return _of(datetime.datetime.fromisoformat(text))
        except ValueError:
            raise ValueError(f"{value!r} is no time: a number or ISO 8601 is one") from None
    raise ValueError(f"{value!r} is no time")


def _scaled(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError(f"{number} is no time")
    size = abs(number)
    for limit, unit in ((_NANO, 1e9), (_MICRO, 1e6), (_MILLI, 1e3)):
        if size >= limit:
            return number / unit
    return number


def _of(when: datetime.datetime) -> float:
    return (when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp()
