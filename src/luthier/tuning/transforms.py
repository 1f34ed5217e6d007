"""What scenarios do to inputs: turn images, permute features, read hues. On tensors in bulk."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.batches.arithmetic import derive, permutation
from luthier.errors import DataError

#: Images whose hues are computed at once: 1,000 of 32 x 32 are 12 MB.
_HUE_PIXELS = 1 << 20


class Rotation:
    """Turns images counterclockwise about their centre; what comes from outside is 0.

    degrees: the angle. interpolation: "nearest" (as torchvision turns by default) or "bilinear".
    Images: tensors (…, h, w) of any type, or PIL images. Quarter turns that keep the shape are
    exact.
    """

    def __init__(
        self, degrees: float, interpolation: Literal["nearest", "bilinear"] = "nearest"
    ) -> None:
        self.degrees = degrees
        self.interpolation = interpolation

    def __call__(self, image: Any) -> Any:
        if isinstance(image, Tensor):
            if image.dim() not in (2, 3):
                raise DataError(
                    f"an input of the shape {tuple(image.shape)} is no image",
                    hint="rotation needs (height, width) or (channels, height, width)",
                )
            return self.many(image[None])[0]
        if hasattr(image, "rotate"):
            from PIL.Image import Resampling

            method = Resampling.NEAREST if self.interpolation == "nearest" else Resampling.BILINEAR
            return image.rotate(self.degrees, resample=method)
        raise DataError(
            f"a {type(image).__name__} is no image",
            hint="rotation needs tensors (channels, height, width), or PIL images",
        )

    def many(self, images: Tensor) -> Tensor:
        """Images (n, h, w) or (n, c, h, w), turned."""
        if images.dim() not in (3, 4):
            raise DataError(
                f"inputs of the shape {tuple(images.shape[1:])} are no images",
                hint="rotation needs (height, width) or (channels, height, width)",
            )
        quarters, rest = divmod(self.degrees, 90)
        height, width = images.shape[-2:]
        if not rest and (height == width or not quarters % 2):
            return torch.rot90(images, int(quarters) % 4, dims=(-2, -1))
        flat = images[:, None] if images.dim() == 3 else images
        real = flat if flat.is_floating_point() else flat.to(torch.float32)
        grid = self._grid(height, width).to(real)
        turned = F.grid_sample(
            real,
            grid.expand(len(real), -1, -1, -1),
            mode=self.interpolation,
            padding_mode="zeros",
            align_corners=False,
        )
        if not images.is_floating_point():
            turned = turned.round()
        return turned.reshape(images.shape).to(images.dtype)

    def _grid(self, height: int, width: int) -> Tensor:
        """Where each pixel comes from, (1, h, w, 2) in -1..1 over the whole image."""
        angle = math.radians(self.degrees)
        cos, sin = math.cos(angle), math.sin(angle)
        y = (torch.arange(height, dtype=torch.float64) + 0.5 - height / 2)[:, None]
        x = (torch.arange(width, dtype=torch.float64) + 0.5 - width / 2)[None]
        from_x, from_y = cos * x - sin * y, sin * x + cos * y
        return torch.stack([from_x * 2 / width, from_y * 2 / height], dim=-1)[None]


class Permutation:
    """Puts the features of an input (of any shape, of ``size`` numbers) into a random order.

    The order is a function of seed and number alone: the same on every machine, and however many
    others there are. Number 0 leaves all as it is.
    """

    def __init__(self, size: int, seed: int, number: int) -> None:
        order = permutation(derive("permutation", seed, number), size)
        self.order = torch.from_numpy(np.arange(size) if number == 0 else order.astype(np.int64))

    def __call__(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise DataError(
                f"the input is a {type(x).__name__}, not a tensor",
                hint="a permutation of features needs tensors",
            )
        return self.many(x[None])[0]

    def many(self, inputs: Tensor) -> Tensor:
        """Inputs (n, …), each in the same order."""
        flat = inputs.flatten(1) if inputs.dim() > 1 else inputs[:, None]
        if flat.shape[1] != len(self.order):
            raise DataError(
                f"an input has {flat.shape[1]} features, input_dim says {len(self.order)}",
                hint=f"input_dim={tuple(inputs.shape[1:])}",
            )
        return flat[:, self.order].reshape(inputs.shape)


def hues(images: Tensor) -> Tensor:
    """The hue of each pixel of RGB images (n, 3, h, w), (n, h, w) in 0..1; grey pixels have 0.

    Smith 1978, Color Gamut Transform Pairs; bytes are taken as 0..255, fractions as 0..1.
    """
    if images.dim() != 4 or images.shape[1] != 3:
        raise DataError(
            f"inputs of the shape {tuple(images.shape[1:])} are no RGB images",
            hint="hue needs (3, height, width)",
        )
    real = images.to(torch.float32)
    top = 1.0 if images.is_floating_point() else 255.0
    if len(real) and not (real.min() >= 0 and real.max() <= top):
        raise DataError(
            f"pixels go from {real.min():g} to {real.max():g}, not from 0 to {top:g}",
            hint="give images as they are before they are normalised",
        )
    red, green, blue = real.unbind(1)
    most, least = real.amax(1), real.amin(1)
    span = torch.where(most > least, most - least, 1.0)
    sixths = torch.where(
        red == most,
        (green - blue) / span,
        torch.where(green == most, 2 + (blue - red) / span, 4 + (red - green) / span),
    )
    return torch.where(most > least, (sixths / 6) % 1, 0.0)


def dominant_hues(images: Tensor, bins: int = 100) -> Tensor:
    """The lower edge of the fullest of equal bins over the circle of hues, of each image of
    (n, 3, h, w): (n,) float32 in 0..1. Of bins as full as each other the first."""
    if images.dim() != 4:
        hues(images)  # raises
    at_once = max(1, _HUE_PIXELS // max(1, images.shape[-1] * images.shape[-2]))
    found = []
    for start in range(0, len(images), at_once):
        part = images[start : start + at_once]
        places = (hues(part).flatten(1) * bins).long().clamp(max=bins - 1)
        counts = torch.zeros(len(part), bins, dtype=torch.int64)
        counts.scatter_add_(1, places, torch.ones_like(places))
        found.append(counts.argmax(1))
    return torch.cat(found).to(torch.float32) / bins if found else torch.empty(0)
