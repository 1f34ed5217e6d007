"""Attention in one call for texts of any lengths: torch's nested tensors, here on the CPU, where
torch computes them text by text; on a GPU the same call takes its kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from luthier.models import attention
from luthier.models.attention import block_attention
from luthier.models.blocks import blocks_of
from luthier.models.loading import load_text_model
from luthier.models.ragged import Ragged
from luthier.spec import ModelSpec
from luthier.testing.models import tiny_text_model

LENGTHS = np.array([1, 3, 3, 4, 9, 30])
HEADS, WIDTH, SCALE = 4, 8, 0.3

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # torch says so of its own way on CPUs
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
]


@pytest.fixture
def kernels(monkeypatch) -> Ragged:
    """New to everything, and in use on this machine."""
    fresh = Ragged()
    fresh.devices = frozenset({"cpu"})
    monkeypatch.setattr(attention, "ragged", fresh)
    return fresh


def given(dtype=torch.float32) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    shape = int(LENGTHS.sum()), HEADS, WIDTH
    return [torch.randn(shape, generator=random).to(dtype).requires_grad_(True) for _ in range(3)]


def one_by_one(query, key, value, *, causal=False):
    """Each text alone."""
    texts = zip(*(t.split(LENGTHS.tolist()) for t in (query, key, value)), strict=True)
    parts = []
    for text in texts:
        q, k, v = (t.transpose(0, 1)[None] for t in text)
        out = functional.scaled_dot_product_attention(q, k, v, scale=SCALE, is_causal=causal)
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def attended(tensors, **options):
    return block_attention(
        *tensors, blocks_of(LENGTHS, torch.device("cpu")), scale=SCALE, **options
    )


def same(found, wanted, tensors, atol: float) -> None:
    """Outputs, and gradients along one direction."""
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(4)).to(found)
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)
    for one, other in zip(
        torch.autograd.grad(found, tensors, direction),
        torch.autograd.grad(wanted, tensors, direction),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 3e-6), (torch.bfloat16, 5e-2)])
def test_texts_at_once_are_attended_to_as_each_alone(kernels, dtype, atol) -> None:
    tensors = given(dtype)
    found = attended(tensors)
    assert (kernels.calls, kernels.refused) == (1, {})
    assert found.dtype == dtype
    same(found, one_by_one(*tensors), tensors, atol)
    attended(tensors)
    assert kernels.calls == 2


def test_under_autocast_the_kernel_is_that_of_the_lower_precision(kernels) -> None:
    tensors = given()
    with torch.autocast("cpu", torch.bfloat16):
        found = attended(tensors)
    assert found.dtype == torch.bfloat16
    assert kernels.calls == 1
    same(found.float(), one_by_one(*tensors), tensors, 6e-2)


def test_what_torch_refuses_goes_by_blocks(kernels, caplog) -> None:
    """Its way on CPUs knows no causal texts."""
    tensors = given()
    found = attended(tensors, causal=True)
    same(found, one_by_one(*tensors, causal=True), tensors, 3e-6)
    assert kernels.calls == 0
    (reason,) = kernels.refused.values()
    assert "refuse" in reason
    assert reason in caplog.text
    attended(tensors)  # another kind of input has a proof of its own
    assert kernels.calls == 1


def test_a_kernel_that_is_wrong_is_not_used(kernels, monkeypatch) -> None:
    def seeing_all(query, key, value, texts, scale, dropout, causal):
        q, k, v = (t.transpose(0, 1)[None] for t in (query, key, value))
        return functional.scaled_dot_product_attention(q, k, v, scale=scale)[0].transpose(0, 1)

    monkeypatch.setattr("luthier.models.ragged._attend", seeing_all)
    tensors = given()
    same(attended(tensors), one_by_one(*tensors), tensors, 3e-6)
    assert kernels.calls == 0
    assert "differ by" in next(iter(kernels.refused.values()))


def test_a_kernel_with_wrong_gradients_is_not_used(kernels, monkeypatch) -> None:
    def without_keys(query, key, value, texts, scale, dropout, causal):
        return one_by_one(query, 2 * key - key.detach(), value)

    monkeypatch.setattr("luthier.models.ragged._attend", without_keys)
    tensors = given()
    same(attended(tensors), one_by_one(*tensors), tensors, 3e-6)
    assert kernels.calls == 0


def test_too_little_memory_is_no_refusal(kernels, monkeypatch) -> None:
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr("luthier.models.ragged._attend", full)
        with pytest.raises(torch.OutOfMemoryError):
            attended(given())
    assert kernels.refused == {}
    attended(given())
    assert kernels.calls == 1


def test_a_window_goes_by_blocks(kernels) -> None:
    attended(given(), window=5)
    assert (kernels.calls, kernels.refused) == (0, {})
    attended(given(), window=30)  # sees all
    assert kernels.calls == 1


def test_dropout_keeps_the_expectation_and_a_proof_draws_nothing(kernels) -> None:
    tensors = given()
    torch.manual_seed(5)
    first = attended(tensors, dropout=0.3)
    torch.manual_seed(5)
    again = attended(tensors, dropout=0.3)
    assert kernels.calls == 2
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    with torch.no_grad():
        mean = torch.stack([attended(tensors, dropout=0.3) for _ in range(600)]).mean(0)
    assert not torch.equal(first, attended(tensors, dropout=0.3))
    torch.testing.assert_close(mean, one_by_one(*tensors), rtol=0, atol=0.25)


def test_without_gradients_and_in_inference(kernels) -> None:
    tensors = given()
    with torch.inference_mode():
        found = attended([t * 1 for t in tensors])
    assert (kernels.calls, kernels.refused) == (1, {})
    torch.testing.assert_close(found, one_by_one(*tensors).detach(), rtol=0, atol=3e-6)


def test_an_encoder_runs_so_in_each_layer(kernels, tmp_path) -> None:
    path = tiny_text_model(tmp_path / "bert", "bert")
    model = load_text_model(ModelSpec(name=str(path)), artifact=None, device="cpu").eval()
    tokens = model.tokens(["a lemon", "the quick brown fox", "stone", "a river over the stone"])
    results = {}
    for execution in ("padded", "packed"):
        model.execution = execution
        model.zero_grad(set_to_none=True)
        vectors = model.embed(tokens)
        vectors.tanh().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results[execution] = [vectors.detach(), *gradients]
    assert kernels.calls == model.layers
    for one, other in zip(results["packed"], results["padded"], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)
