"""Packed and chunked execution give the vectors and gradients of the padded one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from luthier.models.dropout import set_fast_dropout
from luthier.models.execution import choose, encode
from luthier.models.loading import load_text_model
from luthier.models.packed import NAME, Packing, first_position, packed
from luthier.models.tokens import Tokens, by_budget, ragged_places
from luthier.spec import ModelSpec
from luthier.testing.models import FAMILIES, tiny_text_model

WORDS = ["lemon", "banana", "a", "river", "stone", "quick", "brown", "fox", "over", "the"]
TEXTS = [" ".join(WORDS[: 1 + (i * 7) % 10]) for i in range(20)] + ["", "a " * 40]

#: Encoders of transformers whose attention can be replaced, with what a tiny one needs beyond
#: the common shape. Sliding windows are shorter than the texts, so that their edge counts.
PACKABLE = {
    "bert": {},
    "roberta": {"pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
    "camembert": {"pad_token_id": 1},
    "electra": {"embedding_size": 64},
    "albert": {"embedding_size": 32},
    "distilbert": {"dim": 64, "n_layers": 4, "n_heads": 4, "hidden_dim": 128},
    "nomic_bert": {},
    "esm": {"pad_token_id": 1, "mask_token_id": 2, "position_embedding_type": "rotary"},
    "eurobert": {"num_key_value_heads": 2, "pad_token_id": 0, "mask_token_id": 3},
    "modernbert": {
        "local_attention": 8,
        "pad_token_id": 0,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 256},
    "gpt_neox": {},
    "phi3": {"num_key_value_heads": 2, "pad_token_id": 0},
}
_SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
}
_TOKENS = {"vocab_size": 500, "bos_token_id": 1, "eos_token_id": 2}
LENGTHS = [5, 9, 9, 14, 30, 7, 8, 6, 30]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def open_model(tmp_path):
    def open_it(family: str = "bert", **options):
        path = tiny_text_model(tmp_path / family, family, **options)
        return load_text_model(ModelSpec(name=str(path)), artifact=None, device="cpu").eval()

    return open_it


def encoder_of(family: str):
    from transformers import AutoConfig, AutoModel

    own = PACKABLE[family]
    shape = {} if family in ("distilbert", "gpt2") else _SHAPE
    config = AutoConfig.for_model(family, **{**shape, **_TOKENS, **own})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModel.from_config(config).eval()


@pytest.mark.parametrize("family", PACKABLE)
def test_every_token_of_the_family_is_the_padded_ones(family: str) -> None:
    """Hidden states and the gradients of all parameters, text by text."""
    encoder = encoder_of(family)
    drawn = np.random.default_rng(0)
    ids = [drawn.integers(5, 500, n).tolist() for n in LENGTHS]
    pad = encoder.config.pad_token_id or 0
    padded = torch.full((len(ids), max(LENGTHS)), pad)
    mask = torch.zeros_like(padded)
    for row, text in enumerate(ids):
        padded[row, : len(text)] = torch.tensor(text)
        mask[row, : len(text)] = 1
    packing = Packing.of(Tokens.of(ids))
    features = packing.features(first_position(encoder), torch.device("cpu"))
    direction = torch.randn(64, generator=torch.Generator().manual_seed(1))

    def gradients(hidden):
        encoder.zero_grad(set_to_none=True)
        (hidden @ direction).tanh().sum().backward()
        return {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}

    plain = encoder(input_ids=padded, attention_mask=mask).last_hidden_state
    expected = torch.cat([plain[i, : len(ids[i])] for i in packing.order])
    wanted = gradients(expected)
    with packed(encoder, packing):
        found = encoder(
            input_ids=features["input_ids"], position_ids=features["position_ids"]
        ).last_hidden_state[0]
    assert packing.calls == 4
    torch.testing.assert_close(found, expected, atol=4e-6, rtol=1e-5)
    for name, gradient in gradients(found).items():
        assert (gradient - wanted[name]).norm() <= 1e-4 * wanted[name].norm() + 1e-6, name
    assert encoder.config._attn_implementation != NAME  # put back: it is saved with the model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "weightedmean"])
def test_vectors_are_those_of_the_plain_path(open_model, family, pooling) -> None:
    model = open_model(family, pooling=pooling)
    tokens = model.tokens(TEXTS)
    vectors = {}
    for execution in ("padded", "chunked", choose(model, tokens)[0]):
        model.execution = execution
        with torch.no_grad():
            vectors[execution] = model.embed(tokens)
        torch.testing.assert_close(vectors[execution], vectors["padded"], atol=2e-6, rtol=1e-5)
    assert set(model.calls) == set(vectors)


def test_a_generalised_mean_pools_packed_texts_too(tmp_path) -> None:
    path = tiny_text_model(tmp_path / "bert")
    spec = ModelSpec(name=str(path), options={"pooler": "GeM", "pooler_options": {"p": 2.5}})
    model = load_text_model(spec, artifact=None, device="cpu").eval()
    tokens = model.tokens(TEXTS)
    assert choose(model, tokens) == ("packed", "")
    gradients = []
    for execution in ("padded", "packed"):
        model.execution = execution
        model.zero_grad(set_to_none=True)
        model.embed(tokens).pow(2).sum().backward()
        gradients.append(model.token_embedding.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "execution"),
    [(f, "chunked" if f in ("mpnet", "t5") else "packed") for f in FAMILIES],
)
def test_the_fastest_right_way_is_chosen(open_model, family, execution) -> None:
    model = open_model(family)
    found, reason = choose(model, model.tokens(TEXTS))
    assert found == execution
    assert bool(reason) == (execution == "chunked")


@pytest.mark.parametrize("family", ["deberta-v2", "roformer", "convbert"])
def test_an_attention_of_its_own_is_noticed(family: str) -> None:
    """These compute on without ever calling the function: texts would see each other."""
    from transformers import AutoConfig, AutoModel

    encoder = AutoModel.from_config(AutoConfig.for_model(family, **_SHAPE, vocab_size=500)).eval()
    packing = Packing.of(Tokens.of([[5, 6, 7], [8, 9]]))
    with torch.no_grad(), packed(encoder, packing):
        encoder(input_ids=torch.tensor([[8, 9, 5, 6, 7]]))
    assert packing.calls == 0


def test_a_wrong_attention_is_found_by_its_numbers(open_model, monkeypatch) -> None:
    """An encoder that calls the function and does something else besides."""
    model = open_model("bert")
    import luthier.models.packed as room

    right = room.block_attention
    monkeypatch.setattr(
        room, "block_attention", lambda *a, **k: right(*a, **k | {"scale": k["scale"] * 50})
    )
    execution, reason = choose(model, model.tokens(TEXTS))
    assert execution == "chunked"
    assert "differ" in reason


@pytest.mark.parametrize("execution", ["packed", "chunked"])
def test_gradients_are_those_of_the_plain_path(open_model, execution) -> None:
    model = open_model("bert").train()
    tokens = model.tokens(TEXTS)

    def gradients(execution):
        model.execution = execution
        model.zero_grad(set_to_none=True)
        model.embed(tokens).pow(3).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients("padded")
    for name, gradient in gradients(execution).items():
        torch.testing.assert_close(gradient, plain[name], atol=2e-6, rtol=1e-4, msg=name)


def test_dropout_in_training_keeps_the_expectation(open_model) -> None:
    """Mean vectors over many draws agree, and single ones do not."""
    model = open_model("bert", dropout=0.2).train()
    tokens = model.tokens(TEXTS[:4])

    def mean(execution, draws=400):
        model.execution = execution
        set_fast_dropout(model, execution != "padded")
        with torch.no_grad():
            found = torch.stack([model.embed(tokens) for _ in range(draws)])
        return found.mean(0), found.std(0).mean() / draws**0.5

    plain, error = mean("padded")
    found, _ = mean("packed")
    assert (plain - found).abs().mean() < 3 * error
    assert not torch.equal(model.embed(tokens), model.embed(tokens))


def test_encode_packs_and_keeps_the_order(open_model) -> None:
    model = open_model("bert")
    texts = TEXTS * 4
    model.execution = "padded"
    expected = model.encode(texts)
    model.execution = None
    told: list[int] = []
    found = model.encode(texts, batch_size=1, progress=told.append)
    assert model.execution == "packed"
    assert model.calls["packed"] > 1
    assert told == sorted(told)
    assert told[-1] == len(texts)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_encode_takes_ever_smaller_batches(open_model) -> None:
    """What one needs fits into the memory that the one before has freed."""
    model = open_model("bert")
    model.execution = "packed"
    tokens = model.tokens([" ".join(["boat"] * (1 + n * 7 % 23)) for n in range(300)])
    with torch.no_grad():
        batches = [rows for rows, _ in encode(model, tokens, 1)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(300))
    sizes = [int(tokens.lengths[rows].sum()) for rows in batches]
    assert len(set(sizes)) > 5
    assert sizes == sorted(sizes, reverse=True)


def test_tokens_are_ragged_rows() -> None:
    tokens = Tokens.of([[1, 2, 3], [], [4]])
    assert tokens.total == 4
    taken = tokens.take(np.array([2, 0, 0]))
    assert taken.values.tolist() == [4, 1, 2, 3, 1, 2, 3]
    assert taken.lengths.tolist() == [1, 3, 3]
    joined = Tokens.join([tokens, taken])
    assert joined.lengths.tolist() == [3, 0, 1, 1, 3, 3]
    assert ragged_places(np.array([4]), np.array([0])).tolist() == []


def test_chunks_keep_to_their_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 200)
    for most in (1, 40, 100, 1000):
        chunks = by_budget(lengths, most)
        assert sorted(np.concatenate(chunks).tolist()) == list(range(200))
        for chunk in chunks:
            assert len(chunk) == 1 or len(chunk) * lengths[chunk].max() <= most
