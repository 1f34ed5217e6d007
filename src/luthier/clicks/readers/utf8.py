"""Bytes as they should be: a file whose bytes that are no UTF-8 are marked, so that the row that
has them can be told from the others."""

from __future__ import annotations

import codecs
import io
from pathlib import Path
from typing import Any

#: Stands for bytes that are none: a noncharacter, which no text has.
MARK = "\uffff"
_BLOCK = 1 << 20


def _marked(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return MARK, error.end


codecs.register_error("luthier-mark", _marked)


class MarkedFile(io.RawIOBase):
    """A file as UTF-8, with ``MARK`` in the place of what is not."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._decoder = codecs.getincrementaldecoder("utf-8")("luthier-mark")
        self._pending = b""
        self._done = False

    def readable(self) -> bool:
        """True: io asks."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes, as many as fit."""
        while not self._pending and not self._done:
            data = self._file.read(_BLOCK)
            self._done = not data
            self._pending = self._decoder.decode(data, final=self._done).encode()
        size = min(len(buffer), len(self._pending))
        buffer[:size] = self._pending[:size]
        self._pending = self._pending[size:]
        return size

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
