"""Whether code that comes with a model may run here: a person says so, of this process."""

from __future__ import annotations

import os

from luthier.environment import TRUST_REMOTE_CODE

HINT = f"set {TRUST_REMOTE_CODE}=1 after you have read its code"


def trusted() -> bool:
    return os.environ.get(TRUST_REMOTE_CODE) == "1"
