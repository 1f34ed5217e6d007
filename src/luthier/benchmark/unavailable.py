"""Why a case cannot be measured on this machine."""

from __future__ import annotations

from luthier.errors import NotFound


class Unavailable(NotFound):
    """The data, the model or the option that a case needs is not here; says why."""

    code = "benchmark_unavailable"
