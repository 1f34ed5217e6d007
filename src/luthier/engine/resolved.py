"""What a run decides once, by measuring: a resumed run must not decide anew, or its numbers
would no longer be those of the uninterrupted one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.store import atomic

#: Name of the file, in the folder of a run.
RESOLVED = "resolved.json"


class Resolved:
    """Decisions in a JSON file beside the run."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def once(self, name: str, decide: Callable[[], Any]) -> Any:
        """The decision of that name; ``decide`` (to JSON data) is asked the first time only."""
        if name not in self._known:
            self._known[name] = decide()
            atomic.write_bytes(self._file, json.dumps(self._known).encode())
        return self._known[name]
