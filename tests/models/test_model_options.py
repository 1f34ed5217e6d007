"""Each model option acts, and acts as its formula says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from luthier.errors import ModelError, SpecError
from luthier.models.loading import load_text_model, open_text_model
from luthier.models.pooling import GeM
from luthier.models.text import TextModel
from luthier.spec import ModelSpec
from luthier.testing.models import tiny_text_model

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["banana", "a lemon is not a banana", "to be or not to be " * 30]


def load(folder: Path, artifact: Path | None = None, **spec: Any) -> TextModel:
    job = ModelSpec(name=str(folder), artifact="abcd" if artifact else None, **spec)
    return load_text_model(job, artifact=artifact, device="cpu")


def token_vectors(model: TextModel) -> list[np.ndarray]:
    """The vectors of each text's tokens, without padding: float64 [tokens, d]."""
    found = []
    for text in TEXTS:
        with torch.no_grad():
            out = model.encoder.eval()(**model.tokenize([text])).last_hidden_state[0]
        found.append(out.double().numpy())
    return found


def gem(tokens: np.ndarray, p: float, eps: float) -> list[float]:
    pooled = []
    for dimension in range(tokens.shape[1]):
        total = 0.0
        for token in range(tokens.shape[0]):
            total += max(tokens[token][dimension], eps) ** p
        pooled.append((total / tokens.shape[0]) ** (1 / p))
    return pooled


ORACLES = {
    "mean": lambda t: t.mean(0),
    "cls": lambda t: t[0],
    "max": lambda t: t.max(0),
    "last": lambda t: t[-1],
    "mean_sqrt_len": lambda t: t.sum(0) / np.sqrt(len(t)),
    "weighted_mean": lambda t: (
        sum((i + 1) * x for i, x in enumerate(t)) / sum(range(1, len(t) + 1))
    ),
    "GeM": lambda t: gem(t, 3, 1e-6),
}


@pytest.mark.parametrize("pooler", ORACLES)
def test_poolers(tiny_model: Path, tmp_path: Path, pooler: str) -> None:
    model = load(tiny_model, options={"pooler": pooler})
    expected = np.array([ORACLES[pooler](tokens) for tokens in token_vectors(model)])
    found = model.encode(TEXTS, normalize=False)  # one batch: padding must not count
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "saved")
    assert (
        open_text_model(tmp_path / "saved", device="cpu").encode(TEXTS) == model.encode(TEXTS)
    ).all()


@pytest.mark.parametrize(("p", "eps"), [(1, 1e-6), (2.5, 0.5), (40, 1e-6), (0.5, 1e-3)])
def test_gem_follows_its_equation_and_survives_saving(
    tiny_model: Path, tmp_path: Path, p: float, eps: float
) -> None:
    options = {"pooler": "GeM", "pooler_options": {"p": p, "eps": eps}}
    model = load(tiny_model, options=options)
    expected = np.array([gem(tokens, p, eps) for tokens in token_vectors(model)])
    found = model.encode(TEXTS, normalize=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "saved")
    again = open_text_model(tmp_path / "saved", device="cpu")
    assert (again.encode(TEXTS, normalize=False) == found).all()
    # sentence-transformers runs a class that is not its own only when it is told to trust it.
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    np.testing.assert_allclose(theirs.encode(TEXTS), found, atol=1e-6)


def test_gem_has_the_gradient_of_its_equation() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(3, 5, 4, dtype=torch.float32).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    module = GeM(4, p=3, eps=1e-2)
    module({"token_embeddings": tokens, "attention_mask": mask})[
        "sentence_embedding"
    ].sum().backward()
    plain = tokens.detach().double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(3):
        kept = plain[row][mask[row].bool()].clamp(min=1e-2)
        total = total + kept.pow(3).mean(0).pow(1 / 3).sum()
    total.backward()
    assert tokens.grad is not None
    assert plain.grad is not None
    torch.testing.assert_close(tokens.grad.double(), plain.grad, rtol=1e-4, atol=1e-6)


def test_gem_is_finite_where_powers_are_not() -> None:
    tokens = torch.tensor([[[1e-30, 50.0], [-3.0, 49.0]]], requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.int64)
    out = GeM(2, p=100)({"token_embeddings": tokens, "attention_mask": mask})["sentence_embedding"]
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert tokens.grad is not None
    assert torch.isfinite(tokens.grad).all()
    assert out[0, 1].item() == pytest.approx(50 * ((1 + 0.98**100) / 2) ** 0.01, rel=1e-5)


def test_max_seq_length_cuts(tiny_model: Path) -> None:
    model = load(tiny_model, options={"max_seq_length": 6})
    assert model.max_length == 6
    assert model.tokenize(TEXTS)["input_ids"].shape == (3, 6)
    whole = load(tiny_model).encode(TEXTS)
    cut = model.encode(TEXTS)
    np.testing.assert_allclose(cut[0], whole[0], atol=1e-6)  # short enough for both
    assert abs(cut[2] - whole[2]).max() > 1e-3


def test_more_tokens_than_positions_are_refused(tiny_model: Path) -> None:
    with pytest.raises(SpecError, match="positions for 64 tokens"):
        load(tiny_model, options={"max_seq_length": 65})


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet"])
def test_a_tokenizer_that_allows_too_much_is_limited_to_the_positions(
    tmp_path: Path, family: str
) -> None:
    """RoBERTa and its kin lose positions up to their padding index: here 0, in MPNet 1."""
    folder = tiny_text_model(tmp_path / family, family)
    limit = {"bert": 64, "roberta": 65, "mpnet": 64}[family]
    file = folder / "tokenizer_config.json"
    file.write_text(file.read_text().replace('"model_max_length": 64', '"model_max_length": 9999'))
    assert "9999" in file.read_text()
    model = load(folder)
    assert model.max_length == limit
    assert np.isfinite(model.encode(["banana " * 500])).all()
    with pytest.raises(SpecError, match=f"positions for {limit}"):
        load(folder, options={"max_seq_length": limit + 1})


def test_dropout_sets_every_probability(tiny_dropout_model: Path, tmp_path: Path) -> None:
    def spread(model: TextModel) -> float:
        model.train()
        torch.manual_seed(1)
        features = model.tokenize(TEXTS)
        with torch.no_grad():
            return float((model(features) - model(features)).abs().max())

    assert spread(load(tiny_dropout_model)) > 0.01
    none = load(tiny_dropout_model, options={"dropout": 0.0})
    assert spread(none) == 0
    much = load(tiny_dropout_model, options={"dropout": 0.7})
    assert spread(much) > spread(load(tiny_dropout_model))
    assert (much.encode(TEXTS) == none.encode(TEXTS)).all()
    much.save(tmp_path / "saved")
    assert spread(open_text_model(tmp_path / "saved", device="cpu")) == spread(much)


@pytest.mark.parametrize("family", ["distilbert", "modernbert", "llama", "t5", "albert"])
def test_dropout_acts_in_every_family(tmp_path: Path, family: str) -> None:
    model = load(tiny_text_model(tmp_path / family, family), options={"dropout": 0.5}).train()
    features = model.tokenize(TEXTS)
    with torch.no_grad():
        assert (model(features) != model(features)).any()


def test_attention_implementation(tiny_model: Path) -> None:
    eager = load(tiny_model, options={"attn_implementation": "eager"})
    sdpa = load(tiny_model, options={"attn_implementation": "sdpa"})
    assert eager.encoder.config._attn_implementation == "eager"
    assert sdpa.encoder.config._attn_implementation == "sdpa"
    np.testing.assert_allclose(eager.encode(TEXTS), sdpa.encode(TEXTS), atol=1e-6)


def test_weights_are_float32_whatever_the_file_holds(tmp_path: Path) -> None:
    folder = tiny_text_model(tmp_path / "half")
    SentenceTransformer(str(folder), device="cpu").half().save(str(folder), create_model_card=False)
    model = load(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# --- heads ------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
def test_the_head_is_a_two_layer_perceptron_before_normalisation(
    tmp_path: Path, normalize: bool
) -> None:
    folder = tiny_text_model(tmp_path / "model", normalize=normalize)
    torch.manual_seed(5)
    model = load(folder, output_dim=8)
    assert model.dim == 8
    pooled = np.array([t.mean(0) for t in token_vectors(model)])
    if normalize:  # the final normalisation moved behind the head
        kinds = [type(m).__name__ for m in model.sentence_transformer]
        assert kinds == ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    weights = [
        (m.linear.weight.detach().double().numpy(), m.linear.bias.detach().double().numpy())
        for m in model.sentence_transformer
        if type(m).__name__ == "Dense"
    ]
    (w1, b1), (w2, b2) = weights
    expected = np.maximum(pooled @ w1.T + b1, 0) @ w2.T + b2
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(model.encode(TEXTS, normalize=False), expected, atol=1e-5)


def test_the_head_follows_torchs_seed(tiny_model: Path) -> None:
    def head(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return load(tiny_model, output_dim=8).sentence_transformer[2].linear.weight

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


def test_freezing_trains_the_head_only(tiny_model: Path) -> None:
    model = load(tiny_model, output_dim=8, freeze=True)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {n for n, _ in model.named_parameters() if ".linear." in n}
    assert len(trainable) == 4
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(model.tokenize(TEXTS)).square().sum().backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == trainable


def test_an_artifact_keeps_its_head(tiny_model: Path, tmp_path: Path) -> None:
    first = load(tiny_model, output_dim=8)
    first.save(tmp_path / "artifact")
    same = load(tiny_model, artifact=tmp_path / "artifact", output_dim=8, freeze=True)
    assert len(list(same.sentence_transformer.children())) == 4
    assert (same.encode(TEXTS) == first.encode(TEXTS)).all()
    assert sum(p.requires_grad for p in same.parameters()) == 4
    unasked = load(tiny_model, artifact=tmp_path / "artifact")
    assert unasked.dim == 8
    with pytest.raises(ModelError, match="head of width 8, not 16"):
        load(tiny_model, artifact=tmp_path / "artifact", output_dim=16)


def test_an_artifact_without_a_head_can_be_given_one(tiny_model: Path, tmp_path: Path) -> None:
    load(tiny_model).save(tmp_path / "artifact")
    assert load(tiny_model, artifact=tmp_path / "artifact", output_dim=8).dim == 8
    with pytest.raises(ModelError, match="has no head"):
        load(tiny_model, artifact=tmp_path / "artifact", freeze=True)


def test_an_artifact_is_used_even_where_the_pretrained_model_is_gone(
    tiny_model: Path, tmp_path: Path
) -> None:
    load(tiny_model).save(tmp_path / "artifact")
    spec = ModelSpec(name=str(tmp_path / "gone"))
    model = load_text_model(spec, artifact=tmp_path / "artifact", device="cpu")
    assert (model.encode(TEXTS) == load(tiny_model).encode(TEXTS)).all()


def test_unknown_options_are_refused_at_loading_too(tiny_model: Path) -> None:
    with pytest.raises(SpecError, match="no option 'poler'"):
        load(tiny_model, options={"poler": "mean"})


def test_an_unknown_device_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="no device"):
        load_text_model(ModelSpec(name=str(tiny_model)), artifact=None, device="gpu")
