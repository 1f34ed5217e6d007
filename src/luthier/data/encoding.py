"""Files as UTF-8 bytes, whatever encoding they are in."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from luthier.data.csv_rows import count_lines
from luthier.errors import DataError, nearest

#: Read at a time. pyarrow parses a block in one piece, so this bounds the memory.
PIECE_BYTES = 4 << 20

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def utf8_pieces(path: Path, encoding: str, file: str) -> Iterator[bytes]:
    """The file's text as pieces of UTF-8, without its byte order mark.

    UTF-8 itself is passed on unchecked (the parsers know the row and column); any other
    encoding is checked here. Raises DataError with the row for bytes that do not decode.
    """
    name = _codec(encoding, file)
    with open(path, "rb") as source:
        first = source.read(PIECE_BYTES)
        if name in ("utf-8", "utf-8-sig"):
            for mark, meant in _MARKS.items():
                if first.startswith(mark):
                    raise DataError(
                        f"the file is in {meant.upper()}, not in UTF-8",
                        file=file, hint=f"csv_options: encoding='{meant}'",
                    )  # fmt: skip
            yield first.removeprefix(codecs.BOM_UTF8)
            while piece := source.read(PIECE_BYTES):
                yield piece
            return
        decoder = codecs.getincrementaldecoder(name)()
        line, piece, begun = 1, first, False
        while True:
            text = _decode(decoder, piece, name, file, line)
            if not begun and text:
                text, begun = text.removeprefix("\ufeff"), True
            try:
                encoded = text.encode("utf-8")
            except UnicodeEncodeError as error:
                at = line + text.count("\n", 0, error.start)
                raise DataError("half of a surrogate pair", file=file, row=at) from None
            yield encoded
            line += count_lines(encoded, 0, len(encoded))
            if not piece:
                return
            piece = source.read(PIECE_BYTES)


def _codec(encoding: str, file: str) -> str:
    try:
        info = codecs.lookup(encoding)
    except (LookupError, ValueError, UnicodeError):
        hint = nearest(
            encoding, ["utf-8", "utf-16", "latin-1", "cp1252", "iso8859-15", "shift_jis"]
        )
        raise DataError(f"no encoding is called {encoding!r}", file=file, hint=hint) from None
    if not info._is_text_encoding or info.incrementaldecoder is None:
        raise DataError(f"{encoding!r} is not an encoding of text", file=file)
    return info.name


def _decode(
    decoder: codecs.IncrementalDecoder, piece: bytes, name: str, file: str, line: int
) -> str:
    state = decoder.getstate()
    try:
        return decoder.decode(piece, final=not piece)
    except UnicodeError as error:
        decoder.reset()
        decoder.setstate(state)
        decoder.errors = "replace"
        before = decoder.decode(piece, final=not piece).partition("\ufffd")[0]
        row = line + before.count("\n")
        reason = getattr(error, "reason", str(error))
        raise DataError(
            f"the bytes are not {name}: {reason}", file=file, row=row,
            hint="csv_options: encoding='…' names the file's encoding",
        ) from None  # fmt: skip
