"""Search: which values of a job's fields make the best model.

The ranges (``uniform``, ``loguniform``, …) are what ``fit(search=…)`` takes.
"""

from __future__ import annotations

from luthier.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "luthier.tuning.domains": "uniform loguniform randint lograndint choice ordinal",
        "luthier.search.spellings": "hp conditional",
        "luthier.search.spaces": "config_space",
    },
)
