"""Images of a catalogue: as arrays, and told from texts. Pillow is loaded when the first one is
read, torch never.

Trainings on clicks are of texts. No encoder of images can be tuned by this version (they are in
``luthier models`` with the reason), so a catalogue of images is refused when it is handed over,
rather than that names of files are taken for what is on them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.errors import DataError

#: What is one word and ends as files of images do, or is an image by itself.
_NAME = re.compile(
    r"\S+\.(jpe?g|png|gif|webp|bmp|tiff?|avif|heic|svg)([?#]\S*)?|data:image/\S+", re.IGNORECASE
)
#: How files of JPEG, PNG, GIF, BMP, TIFF and WebP begin.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
IMAGES = "trainings on clicks are of texts: give a caption, by --item-field or a preprocessor"


def is_image(item: Any) -> bool:
    """Whether an item is the pixels or the bytes of an image.

    >>> is_image(b"\\x89PNG...")
    True
    """
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item[:4]).startswith(_BEGINNINGS)
    if isinstance(item, np.ndarray):
        return item.ndim in (2, 3)
    return hasattr(item, "tobytes") and hasattr(item, "mode")  # Pillow's


def name_images(texts: Collection[str]) -> bool:
    """Whether most of these texts are names, URLs or data of images, and no words.

    >>> name_images(["hats/1.jpg", "https://shop/2.PNG?w=90"]), name_images(["a red hat.jpg"])
    (True, False)
    """
    return bool(texts) and sum(bool(_NAME.fullmatch(t)) for t in texts) * 2 > len(texts)


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
