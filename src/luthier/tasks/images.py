"""Images in rows: bytes, base64, files, or ``{"bytes", "path"}`` as the datasets library has."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.errors import MissingExtra
from luthier.tasks.values import Unfit

_HINT = "bytes, base64, or the path of a file, relative to the file of the rows"


def image(value: Any, folder: Path | None) -> Any:
    """A PIL image in RGB. Raises Unfit for what is no image, MissingExtra without Pillow.

    A path is understood from ``folder``; None understands only whole paths.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if value is None or value == "":
        raise Unfit("the image is missing")
    if isinstance(value, str):
        return _decoded(*_of_text(value, folder))
    if not isinstance(value, bytes):
        raise Unfit(f"{value!r:.40} is not an image", _HINT)
    return _decoded(value, "these bytes")


def _of_text(value: str, folder: Path | None) -> tuple[bytes, str]:
    """The bytes that a text stands for, and what to call them."""
    if value.startswith("data:"):
        return _of_base64(value.partition(",")[2]), "the data URL"
    if len(value) < 1024:
        path = Path(value) if folder is None else folder / value
        try:
            return path.read_bytes(), f"the file {value}"
        except (OSError, ValueError) as error:
            if "." in value or len(value) < 64:
                reason = getattr(error, "strerror", None) or str(error)
                raise Unfit(f"the file {value} cannot be read: {reason}", _HINT) from None
    return _of_base64(value), "the base64 text"


def _of_base64(value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Unfit(f"{value!r:.40} is neither a file nor base64", _HINT) from None


def _decoded(content: bytes, what: str) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtra("reading images", "tasks") from error
    try:
        with warnings.catch_warnings():
            # a picture that would fill the memory is refused, not warned of
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as opened:
                return opened.convert("RGB")
    except UnidentifiedImageError:
        raise Unfit(f"{what}: not an image of a known format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombWarning,
            Image.DecompressionBombError) as error:  # fmt: skip
        raise Unfit(f"{what}: the image does not decode ({error})") from None
