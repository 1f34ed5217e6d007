"""Attention's softmax: torch's own, to the bit, wherever its numbers lie."""

from __future__ import annotations

import pytest
import torch

from luthier.models.attention import _softmax

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


def _scores(keys: int, unseen: int) -> torch.Tensor:
    scores = 3 * torch.randn(24, keys, keys, generator=torch.Generator().manual_seed(keys))
    if keys > unseen:
        scores[..., keys - unseen :] = -torch.inf
    return scores
