"""Attention's arithmetic: torch's own softmax, to the bit, and its rule of what is cast."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from luthier.models.attention import _softmax, block_attention
from luthier.models.blocks import blocks_of

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (1, 2, 5, 15, 16, 17, 31, 32, 33, 64, 100, 255, 256)


@pytest.mark.parametrize("keys", LENGTHS)
@pytest.mark.parametrize("unseen", [0, 1])
def test_softmax_in_place_is_torch_s(keys: int, unseen: int) -> None:
    scores = _scores(keys, unseen)
    wanted = torch.softmax(scores, -1)
    assert torch.equal(_softmax(scores, None), wanted)
    assert torch.equal(scores, wanted)  # no second block of that size


@pytest.mark.parametrize("keys", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_softmax_of_half_precision_is_that_of_fp32_rounded_once(
    keys: int, dtype: torch.dtype
) -> None:
    scores = _scores(keys, unseen=keys // 2).to(dtype)
    wanted = torch.softmax(scores.float(), -1).to(dtype)
    room = torch.full((scores.numel() + 7,), torch.nan)
    assert torch.equal(_softmax(scores, room), wanted)
    assert room[-7:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_casts_what_torch_casts(dtype: torch.dtype) -> None:
    """Single precision becomes half, double stays what it is: so do torch's own products."""
    one = torch.randn(7, 2, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    blocks = blocks_of(np.array([3, 4]), one.device)
    plain = block_attention(one, one, one, blocks, scale=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        found = block_attention(one, one, one, blocks, scale=0.5)
        wanted = torch.bmm(one, one.transpose(1, 2)).dtype
    assert found.dtype == wanted
    assert torch.allclose(found.double(), plain.double(), atol=0.0 if dtype.itemsize == 8 else 0.02)


def _scores(keys: int, unseen: int) -> torch.Tensor:
    scores = 3 * torch.randn(24, keys, keys, generator=torch.Generator().manual_seed(keys))
    if keys > unseen:
        scores[..., keys - unseen :] = -torch.inf
    return scores
