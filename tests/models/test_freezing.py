"""The lowest layers, or all below the head, do not train; training can start above them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.errors import ModelError, SpecError
from luthier.models.freezing import embed_above, fixed_output, fixed_part
from luthier.models.loading import load_text_model
from luthier.models.text import TextModel, evaluating
from luthier.models.tokens import ragged_places
from luthier.spec import ModelSpec
from luthier.testing.models import FAMILIES, tiny_text_model

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["banana", "a lemon is not a banana", "", "to be or not to be " * 9, "Größe 42!", "lemon"]
PACKABLE = ("bert", "roberta", "distilbert", "electra", "modernbert", "llama")


def load(folder: Path, **spec: object) -> TextModel:
    return load_text_model(
        ModelSpec(name=str(folder), **spec),  # type: ignore[arg-type]
        artifact=None,
        device="cpu",
    )


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {f: tiny_text_model(root / f, f, layers=4, dropout=0.1, seed=3) for f in FAMILIES}


class Kept:
    """States in memory, at the precision that is asked for."""

    def __init__(self, model: TextModel, texts, dtype: torch.dtype) -> None:
        self.part = fixed_part(model)
        tokens = model.tokens(texts)
        with evaluating(model), torch.no_grad():
            states, order = fixed_output(model, tokens)
        self._states = states.to(dtype).float()
        lengths = np.ones_like(order) if self.part == "backbone" else tokens.lengths[order]
        self._lengths, self._starts = np.empty_like(lengths), np.empty_like(lengths)
        self._lengths[order], self._starts[order] = lengths, np.cumsum(lengths) - lengths
        self.tokens = replace(tokens, stored=np.arange(len(tokens)))

    def states(self, texts):
        return self._states[ragged_places(self._starts[texts], self._lengths[texts])]


def gradients(model: TextModel, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.cosine_similarity(vectors[:-1], vectors[1:]).mul(
        torch.arange(1.0, len(vectors))
    ).sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    assert found.keys() == expected.keys() != set()
    off = sum(float((found[n] - expected[n]).square().sum()) for n in expected)
    return (off / sum(float(g.square().sum()) for g in expected.values())) ** 0.5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 3])
def test_only_what_lies_above_trains(families, family, count) -> None:
    if family == "albert":
        with pytest.raises(ModelError, match=r"num_fixed_layers is .*4 layers share"):
            load(families[family], num_fixed_layers=count)
        return
    model, whole = load(families[family], num_fixed_layers=count), load(families[family])
    trained = {n for n, p in whole.named_parameters() if p.requires_grad}
    for name, parameter, depth in model.depths():
        assert parameter.requires_grad == (depth > count and name in trained), name
    assert 0 < sum(p.requires_grad for p in model.parameters()) < len(trained)


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_what_is_fixed_knows_no_dropout(families, family) -> None:
    """So that a text has the same states in every epoch, with a store and without one."""
    model = load(families[family], num_fixed_layers=2).train()
    layers = list(model.encoder.get_submodule(model.layer_list))
    seen = []
    layers[2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        first, second = (model.embed(model.tokens(TEXTS)) for _ in range(2))
    assert torch.equal(*seen)
    assert not torch.equal(first, second)
    assert [any(m.training for m in layer.modules()) for layer in layers] == [0, 0, 1, 1]
    with evaluating(model):
        assert not any(m.training for m in model.modules())
    assert [layer.training for layer in layers] == [False, False, True, True]


@pytest.mark.parametrize("family", PACKABLE)
@pytest.mark.parametrize("count", [1, 3])
def test_starting_above_equals_the_whole(families, family, count) -> None:
    model = load(families[family], num_fixed_layers=count).train()
    model.execution = "packed"
    exact, half = Kept(model, TEXTS, torch.float32), Kept(model, TEXTS, torch.float16)
    assert exact.part == "layers"
    torch.manual_seed(5)
    plain = model.embed(exact.tokens)
    expected = gradients(model, plain)
    for kept, tolerance in ((exact, 1e-6), (half, 1e-3)):
        torch.manual_seed(5)  # the layers above draw the same dropout
        vectors = embed_above(model, kept.tokens, kept)
        assert (vectors - plain).norm() / plain.norm() < tolerance
        assert error(gradients(model, vectors), expected) < tolerance


def test_starting_above_computes_nothing_below(families) -> None:
    model = load(families["bert"], num_fixed_layers=3)
    model.execution = "packed"
    kept = Kept(model, TEXTS, torch.float32)
    ran = []
    for index, layer in enumerate(model.encoder.encoder.layer):
        layer.attention.register_forward_hook(lambda *_, index=index: ran.append(index))
    embed_above(model, kept.tokens, kept)
    assert ran == [3]
    model.embed(model.tokens(TEXTS))
    assert ran == [3, 0, 1, 2, 3]


@pytest.mark.parametrize("family", ["bert", "mpnet", "t5"])
@pytest.mark.parametrize("execution", ["packed", "chunked"])
def test_a_head_starts_from_pooled_vectors(families, family, execution) -> None:
    if execution == "packed" and family != "bert":
        return
    model = load(families[family], freeze=True, output_dim=8).train()
    model.execution = execution
    kept = Kept(model, TEXTS, torch.float32)
    assert kept.part == "backbone"
    plain, vectors = model.embed(kept.tokens), embed_above(model, kept.tokens, kept)
    torch.testing.assert_close(vectors, plain, atol=1e-6, rtol=1e-5)
    expected = gradients(model, plain)
    assert error(gradients(model, embed_above(model, kept.tokens, kept)), expected) < 1e-5


def test_all_layers_and_a_head_is_a_fixed_backbone(families) -> None:
    model = load(families["bert"], num_fixed_layers=4, output_dim=8).train()
    assert fixed_part(model) == "backbone"
    assert not model.encoder.training


def test_a_model_that_trains_whole_has_no_fixed_part(families) -> None:
    model = load(families["bert"]).train()
    assert fixed_part(model) is None
    assert all(m.training for m in model.modules())


def test_a_truncated_step_leaves_no_trace(families) -> None:
    """Layers compute again when a step above the fixed part has failed."""
    model = load(families["bert"], num_fixed_layers=2).eval()
    model.execution = "packed"
    kept = Kept(model, TEXTS, torch.float32)
    before = model.embed(kept.tokens)

    def fail(*_: object) -> None:
        raise MemoryError

    hook = model.encoder.encoder.layer[3].register_forward_hook(fail)
    with pytest.raises(MemoryError):
        embed_above(model, kept.tokens, kept)
    hook.remove()
    assert torch.equal(model.embed(kept.tokens), before)
    assert not any("forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize(
    ("spec", "kind", "said"),
    [
        ({"num_fixed_layers": 5}, ModelError, "num_fixed_layers is 5, and the model has 4 layers"),
        (
            {"num_fixed_layers": 1, "freeze": True, "output_dim": 8},
            SpecError,
            "freeze already fixes the whole encoder",
        ),
        ({"options": {"num_fixed_layers": 1}}, SpecError, "a field of its own"),
    ],
)
def test_what_cannot_be_is_refused(families, spec, kind, said) -> None:
    with pytest.raises(kind, match=said):
        load(families["bert"], **spec)


@pytest.mark.real
def test_minilm_starts_above_as_well_as_below() -> None:
    model = load_text_model(
        ModelSpec(name="all-minilm-l6-v2", num_fixed_layers=3), artifact=None, device="cpu"
    ).train()
    model.execution = "packed"
    kept = Kept(model, TEXTS, torch.float16)
    torch.manual_seed(5)
    expected = gradients(model, model.embed(kept.tokens))
    torch.manual_seed(5)
    assert error(gradients(model, embed_above(model, kept.tokens, kept)), expected) < 1e-3
