"""Images of a catalogue as arrays. Pillow is loaded when the first one is read, torch never."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.errors import DataError


class ImagePreprocessor:
    """An image as uint8 [size, size, 3]: RGB, turned as its EXIF says, scaled so that the longer
    side fits, the rest filled with ``fill``. Of a path, bytes, an array or a PIL image.

    For catalogues of images; rankings to train on are of texts.
    """

    def __init__(self, size: int = 224, fill: int = 0) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise DataError(f"size is {size!r}", hint="pixels, a whole number from 1 on")
        if not 0 <= fill <= 255:
            raise DataError(f"fill is {fill!r}", hint="0 to 255")
        self.size, self.fill = size, fill

    def __call__(self, item: Any) -> NDArray[np.uint8]:
        """Raises DataError for what is no image."""
        from PIL import Image, ImageOps

        image = ImageOps.exif_transpose(_opened(item)).convert("RGB")
        scale = self.size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        found = np.full((self.size, self.size, 3), self.fill, np.uint8)
        top, left = (self.size - height) // 2, (self.size - width) // 2
        found[top : top + height, left : left + width] = np.asarray(image)
        return found


def _opened(item: Any) -> Any:
    from PIL import Image, UnidentifiedImageError

    file = str(item) if isinstance(item, str | Path) else None
    try:
        if file is not None:
            return Image.open(file)
        if isinstance(item, bytes):
            return Image.open(io.BytesIO(item))
        if isinstance(item, np.ndarray):
            return Image.fromarray(item)
    except (UnidentifiedImageError, OSError, TypeError, ValueError) as error:
        raise DataError(f"no image that can be read ({error})", file=file) from None
    if isinstance(item, Image.Image):
        return item
    raise DataError(f"an image is a path, bytes or an array, not {type(item).__name__}")
