"""The quick dropout is torch's in distribution, and exact where torch's is."""

from __future__ import annotations

import hashlib
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from luthier.models import attention
from luthier.models.attention import block_attention
from luthier.models.blocks import Block, Blocks, blocks_of
from luthier.models.dropout import FastDropout, _Drop, keep_mask, masked, set_fast_dropout
from luthier.models.loading import load_text_model
from luthier.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("one_thread")

#: Standard deviations that a statistic may be off: one test in a billion fails by chance, and
#: with the seeds given here none does.
_SIGMAS = 6.0


# --- masks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9, 1e-4, 0.999])
def test_the_rate_is_that_of_torch(probability: float) -> None:
    torch.manual_seed(0)
    draws = [keep_mask((500, 1001), probability) for _ in range(8)]
    count = 8 * 500 * 1001
    dropped = sum(int((~mask).sum()) for mask, _ in draws)
    rate = 1 - draws[0][1]
    assert abs(rate - probability) <= 0.5 / 65536 + 1e-12  # rounded to a 65,536th, not more
    spread = math.sqrt(count * rate * (1 - rate))
    assert abs(dropped - count * rate) < _SIGMAS * spread
    plain = sum(
        int((nn.functional.dropout(torch.ones(500, 1001), probability) == 0).sum())
        for _ in range(8)
    )
    room = _SIGMAS * math.sqrt(2) * spread + count / 65536
    assert abs(dropped - plain) < room


@pytest.mark.parametrize("probability", [0.1, 0.5])
@pytest.mark.parametrize("apart", [1, 4, 64])
def test_values_are_dropped_independently(probability: float, apart: int) -> None:
    """Chi-square over the 16 patterns of four values: of one random word, and of several."""
    torch.manual_seed(1)
    mask, kept = keep_mask((409_600,), probability)
    values = mask.numpy().reshape(-1, 4, apart).transpose(0, 2, 1).reshape(-1, 4)
    patterns = values @ np.array([8, 4, 2, 1])
    observed = np.bincount(patterns, minlength=16)
    bits = np.array([bin(pattern).count("1") for pattern in range(16)])
    expected = len(values) * kept**bits * (1 - kept) ** (4 - bits)
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    assert chi_square < 15 + _SIGMAS * math.sqrt(30)  # 15 degrees of freedom


def test_two_draws_are_independent() -> None:
    torch.manual_seed(2)
    (one, _), (two, _) = keep_mask((400_000,), 0.5), keep_mask((400_000,), 0.5)
    agree = float((one == two).float().mean())
    assert abs(agree - 0.5) < _SIGMAS * 0.5 / math.sqrt(400_000)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (0,), (2, 0, 3), (5, 7, 3)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    mask, kept = keep_mask(shape, 0.3)
    assert (mask.shape, mask.dtype) == (torch.Size(shape), torch.bool)
    assert kept == 1 - round(0.3 * 65536) / 65536


def test_the_expectation_is_exact() -> None:
    """Kept values are divided by the rate with which they really are kept, not by 1 - p."""
    values = torch.tensor([3.0], dtype=torch.float64)
    for probability in (0.1, 0.9, 1e-5, 2e-5):
        _, kept = keep_mask((1,), probability)
        kept_value = masked(values, torch.tensor([True]), kept).item()
        assert kept_value * kept + 0.0 * (1 - kept) == pytest.approx(3.0, rel=1e-15)


def test_a_tiny_probability_below_the_resolution_drops_nothing_and_scales_nothing() -> None:
    mask, kept = keep_mask((10_000,), 1e-7)
    assert kept == 1.0
    assert bool(mask.all())


# --- the module ------------------------------------------------------------------------------


def quick(probability: float = 0.3) -> FastDropout:
    return FastDropout(probability)


def test_the_same_seed_gives_the_same_mask_and_another_seed_another() -> None:
    values = torch.ones(64, 64)
    torch.manual_seed(3)
    one, state = quick()(values), torch.get_rng_state()
    two = quick()(values)
    torch.manual_seed(3)
    assert torch.equal(one, quick()(values))
    torch.set_rng_state(state)
    assert torch.equal(two, quick()(values))
    assert not torch.equal(one, two)
    torch.manual_seed(4)
    assert not torch.equal(one, quick()(values))


def test_forward_and_backward_use_the_same_mask() -> None:
    values = torch.randn(33, 17, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(33, 17, dtype=torch.float64)
    torch.manual_seed(5)
    out = quick(0.4)(values)
    (gradient,) = torch.autograd.grad(out, values, weights)
    torch.manual_seed(5)
    mask, kept = keep_mask((33, 17), 0.4)
    expected = torch.tensor(
        [
            [float(v) / kept if m else 0.0 for v, m in zip(row, keeps, strict=True)]
            for row, keeps in zip(values.tolist(), mask.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )
    assert torch.allclose(out, expected, rtol=1e-14)
    assert torch.allclose(gradient, weights * mask / kept, rtol=1e-14)


def test_gradients_of_dropout() -> None:
    values = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)

    def drop(given: Tensor) -> Tensor:
        torch.manual_seed(6)  # the same function each time it is called
        return _Drop.apply(given, 0.3)

    assert torch.autograd.gradcheck(drop, (values,))


def test_evaluation_and_probability_zero_change_nothing_and_draw_nothing() -> None:
    values = torch.randn(8, 8)
    before = torch.get_rng_state()
    assert quick().eval()(values) is values
    assert torch.equal(quick(0.0).train()(values), values)
    assert torch.equal(before, torch.get_rng_state())


def test_all_is_dropped_where_the_probability_is_one() -> None:
    out = nn.Dropout(1.0)(torch.ones(9))
    assert torch.equal(quick(1.0)(torch.ones(9)), out)


def test_bf16_stays_bf16() -> None:
    values = torch.ones(4096, dtype=torch.bfloat16, requires_grad=True)
    out = quick(0.5)(values)
    out.backward(torch.ones_like(out))
    assert out.dtype == values.grad.dtype == torch.bfloat16
    assert set(out.tolist()) == {0.0, 2.0}
    assert torch.equal(out, values.grad)


def test_inputs_that_do_not_lie_in_order() -> None:
    values = torch.randn(16, 12).T
    torch.manual_seed(7)
    out = quick()(values)
    torch.manual_seed(7)
    mask, kept = keep_mask((12, 16), 0.3)
    assert torch.allclose(out, values * mask / kept)


# --- in a model -------------------------------------------------------------------------------


def test_a_model_becomes_quick_and_plain_again(tiny_dropout_model: Path, tmp_path: Path) -> None:
    spec = ModelSpec(name=str(tiny_dropout_model))
    model = load_text_model(spec, artifact=None, device="cpu")
    model.save(tmp_path / "plain")
    found = set_fast_dropout(model, True)
    assert found == sum(type(m) is FastDropout for m in model.modules()) > 0
    assert set_fast_dropout(model, True) == 0  # again changes nothing
    model.save(tmp_path / "quick")
    assert digests(tmp_path / "quick") == digests(tmp_path / "plain")
    assert set_fast_dropout(model, False) == found
    assert not any(isinstance(m, FastDropout) for m in model.modules())


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# --- of attention weights ----------------------------------------------------------------------

#: Texts of one length share a block, and so do texts of lengths that differ little.
LENGTHS = ([1, 1, 1], [4, 4], [2, 5])
BLOCKS = Blocks(
    Block.of(start, np.array(lengths), torch.device("cpu"))
    for start, lengths in zip((0, 3, 11), LENGTHS, strict=True)
)
TOKENS, HEADS, WIDTH, P = 18, 2, 3, 0.35


def heads(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(TOKENS, HEADS, WIDTH, dtype=torch.float64, generator=random, requires_grad=True)
        for _ in range(3)
    )
    return query, key, value


def oracle(query: Tensor, key: Tensor, value: Tensor, causal: bool, window: int | None) -> Tensor:
    """Text by text, head by head, token by token, with the masks of the same seed."""
    out = torch.zeros_like(query)
    first = 0
    for lengths in LENGTHS:
        mask, kept = keep_mask((len(lengths), HEADS, max(lengths), max(lengths)), P)
        for text, length in enumerate(lengths):
            for head in range(HEADS):
                for i in range(length):
                    seen = [
                        j
                        for j in range(length)
                        if not (causal and j > i) and (window is None or abs(i - j) < window)
                    ]
                    scores = torch.stack(
                        [(query[first + i, head] * key[first + j, head]).sum() for j in seen]
                    )
                    weights = torch.softmax(0.7 * scores, 0)
                    for weight, j in zip(weights, seen, strict=True):
                        if mask[text, head, i, j]:
                            out[first + i, head] += weight / kept * value[first + j, head]
            first += length
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 2, 4])
def test_attention_with_dropout(causal: bool, window: int | None) -> None:
    torch.manual_seed(8)
    out = block_attention(*heads(8), BLOCKS, scale=0.7, dropout=P, causal=causal, window=window)
    torch.manual_seed(8)
    with torch.no_grad():
        expected = oracle(*heads(8), causal, window)
    assert torch.allclose(out, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 2])
def test_gradients_of_attention_with_dropout(causal: bool, window: int | None) -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        torch.manual_seed(9)
        return block_attention(
            query, key, value, BLOCKS, scale=0.7, dropout=P, causal=causal, window=window
        )

    assert torch.autograd.gradcheck(attend, heads(9))


def test_attention_with_dropout_in_bf16() -> None:
    query, key, value = (t.detach().bfloat16().requires_grad_() for t in heads(10))
    torch.manual_seed(10)
    out = block_attention(query, key, value, BLOCKS, scale=0.7, dropout=P)
    out.sum().backward()
    torch.manual_seed(10)
    with torch.no_grad():
        expected = oracle(*(t.double() for t in (query, key, value)), False, None)
    assert out.dtype == query.grad.dtype == torch.bfloat16
    assert torch.allclose(out.double(), expected, atol=0.05)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 2, 4])
def test_attention_without_dropout(
    causal: bool, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal, with its gradients, whether texts share blocks or each has one of its own, in matrix
    products or by torch's fused kernel."""
    lengths = np.concatenate(LENGTHS)
    starts = np.cumsum(lengths) - lengths
    alone = Blocks(
        Block.of(int(s), np.array([n]), torch.device("cpu"))
        for s, n in zip(starts, lengths, strict=True)
    )
    found, used = [], []
    right = attention.functional.scaled_dot_product_attention

    def fused(*given: Any, **words: Any) -> Tensor:
        used.append(limit)
        return right(*given, **words)

    monkeypatch.setattr(attention.functional, "scaled_dot_product_attention", fused)
    for limit, blocks in itertools.product((5, 4), (alone, BLOCKS)):
        monkeypatch.setattr(attention, "_BY_PRODUCTS", {True: limit, False: 0})
        given = heads(11)
        out = block_attention(*given, blocks, scale=0.7, causal=causal, window=window)
        found.append((out, *torch.autograd.grad(out.sin().sum(), given)))
    assert set(used) == {4}  # the longest text has five tokens
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert torch.allclose(one, other, rtol=1e-12, atol=1e-14)


def test_rows_of_heads_are_those_of_the_tokens() -> None:
    """Each head of each token has a row, in the order of its block's matrices, and no other."""
    rows = torch.arange(float(TOKENS * HEADS * WIDTH)).view(TOKENS, HEADS, WIDTH)
    layout = BLOCKS.layout(HEADS)
    found = layout.by_head(rows)
    expected, vain = [], []
    first = 0
    for lengths in LENGTHS:
        start = first
        for length in lengths:
            for head in range(HEADS):
                for place in range(max(lengths)):
                    vain += [len(expected)] if place >= length else []
                    expected.append(rows[first + place if place < length else start, head])
            first += length
    assert torch.equal(found, torch.stack(expected))
    assert layout.vain is not None
    assert sorted(layout.vain.tolist()) == vain
    assert torch.equal(layout.by_token(found, HEADS), rows)
    assert BLOCKS.layout(HEADS) is layout


def test_lengths_share_a_block_where_padding_costs_less() -> None:
    lengths = np.sort(np.random.default_rng(0).integers(4, 256, 64))
    blocks = blocks_of(lengths, torch.device("cpu"))
    assert blocks[0].start == 0
    assert all(one.stop == other.start for one, other in itertools.pairwise(blocks))
    assert blocks[-1].stop == lengths.sum()
    assert sum(block.texts for block in blocks) == len(lengths)
    computed = sum(block.texts * block.longest**2 for block in blocks)
    assert len(blocks) < len(np.unique(lengths)) / 2
    assert computed < 1.5 * (lengths**2).sum()
    assert len(blocks_of(np.sort(lengths % 20 + 4), torch.device("cpu"))) == 1
