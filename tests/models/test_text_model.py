"""What the engine asks of a text model: tokens, vectors, depths, and folders."""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from luthier.errors import DataError
from luthier.models.loading import load_text_model, open_text_model
from luthier.models.text import TextModel
from luthier.spec import ModelSpec
from luthier.testing.models import FAMILIES, tiny_text_model

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["banana", "a lemon is not a banana", "", "to be or not to be " * 30, "Größe 42!", "lemon"]


def load(folder: Path, **spec: object) -> TextModel:
    return load_text_model(
        ModelSpec(name=str(folder), **spec),  # type: ignore[arg-type]
        artifact=None,
        device="cpu",
    )


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {f: tiny_text_model(root / f, f, layers=3, dropout=0.1, seed=3) for f in FAMILIES}


# --- tiny models ------------------------------------------------------------------------


def test_tiny_models_are_the_same_each_time_and_leave_the_random_state(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    one = tiny_text_model(tmp_path / "one", seed=7)
    two = tiny_text_model(tmp_path / "two", seed=7)
    other = tiny_text_model(tmp_path / "other", seed=8)
    assert torch.equal(before, torch.get_rng_state())
    assert digests(one) == digests(two)
    assert digests(one)["model.safetensors"] != digests(other)["model.safetensors"]


def test_tiny_models_have_a_real_tokenizer(tiny_model: Path) -> None:
    model = load(tiny_model)
    pieces = model.tokenizer.convert_ids_to_tokens(model.tokenize(["Banana 4!"])["input_ids"][0])
    assert pieces == ["[CLS]", "ban", "##a", "##na", "4", "!", "[SEP]"]


def test_a_tiny_model_is_made_in_a_second(tmp_path: Path) -> None:
    started = time.process_time()
    tiny_text_model(tmp_path / "model")
    assert time.process_time() - started < 1


# --- tokens -----------------------------------------------------------------------------


def test_tokens_are_padded_to_the_longest_and_cut_at_the_limit(tiny_model: Path) -> None:
    model = load(tiny_model)
    assert (model.dim, model.max_length) == (32, 64)
    features = model.tokenize(TEXTS)
    assert {k: v.dtype for k, v in features.items()} == {
        "input_ids": torch.int64,
        "token_type_ids": torch.int64,
        "attention_mask": torch.int64,
    }
    assert all(v.shape == (len(TEXTS), 64) for v in features.values())
    assert model.tokenize(["banana", "lemon"])["input_ids"].shape[1] < 8
    lengths = model.token_lengths(TEXTS)
    assert features["attention_mask"].sum(1).tolist() == np.minimum(lengths, 64).tolist()
    assert (lengths > model.max_length).mean() == 1 / len(TEXTS)
    assert lengths[2] == 2
    assert model.token_lengths([]).shape == (0,)


def test_tokenizing_from_several_threads_gives_the_same(tiny_model: Path) -> None:
    model = load(tiny_model)
    batches = [[text * k for text in TEXTS[:2]] for k in range(1, 60)]
    alone = [model.tokenize(batch)["input_ids"] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        lengths = list(pool.map(model.token_lengths, batches))
        found = list(pool.map(lambda batch: model.tokenize(batch)["input_ids"], batches))
    assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))
    assert all(len(n) == 2 for n in lengths)


# --- vectors ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_those_of_sentence_transformers(families: dict[str, Path], family: str) -> None:
    model = load(families[family])
    theirs = SentenceTransformer(str(families[family]), device="cpu")
    for normalize in (True, False):
        expected = theirs.encode(TEXTS, normalize_embeddings=normalize, batch_size=2)
        ours = model.encode(TEXTS, batch_size=2, normalize=normalize)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
        assert ours.dtype == np.float32


def test_batching_and_order_do_not_change_vectors(tiny_dropout_model: Path) -> None:
    model = load(tiny_dropout_model)
    one_by_one = np.concatenate([model.encode([text]) for text in TEXTS])
    for size in (1, 4, 100):
        told: list[int] = []
        found = model.encode(TEXTS, batch_size=size, progress=told.append)
        np.testing.assert_allclose(found, one_by_one, atol=1e-6)
        assert told == [*range(size, len(TEXTS), size), len(TEXTS)]
    reordered = model.encode(TEXTS[::-1])
    np.testing.assert_allclose(reordered[::-1], one_by_one, atol=1e-6)


def test_encoding_leaves_modes_gradients_and_random_state_alone(tiny_dropout_model: Path) -> None:
    model = load(tiny_dropout_model)
    model.train()
    model.encoder.eval()  # a part of it, as a frozen encoder would be
    modes = [m.training for m in model.modules()]
    assert len(set(modes)) == 2
    state = torch.get_rng_state()
    first, second = model.encode(TEXTS), model.encode(TEXTS)
    assert (first == second).all()
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_no_texts_give_no_vectors(tiny_model: Path) -> None:
    assert load(tiny_model).encode([]).shape == (0, 32)


def test_what_is_not_a_text_is_named_by_its_row(tiny_model: Path) -> None:
    model = load(tiny_model)
    with pytest.raises(DataError, match="row 2: is not a text but NoneType"):
        model.encode(["a", None])  # type: ignore[list-item]
    with pytest.raises(DataError, match="not one text"):
        model.encode("banana")
    with pytest.raises(DataError, match="batch_size"):
        model.encode(["a"], batch_size=0)


def test_forward_has_gradients_and_leaves_the_batch_alone(tiny_model: Path) -> None:
    model = load(tiny_model)
    features = model.tokenize(TEXTS)
    before = {k: v.clone() for k, v in features.items()}
    vectors = model(features)
    assert vectors.shape == (len(TEXTS), 32)
    vectors.sum().backward()
    assert features.keys() == before.keys()
    assert all(torch.equal(features[k], before[k]) for k in before)
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_the_prompt_of_a_model_is_part_of_its_vectors(tmp_path: Path, tiny_model: Path) -> None:
    theirs = SentenceTransformer(
        str(tiny_model), device="cpu", prompts={"q": "banana: "}, default_prompt_name="q"
    )
    for include in (True, False):
        theirs[1].include_prompt = include
        folder = tmp_path / f"model-{include}"
        theirs.save(str(folder), create_model_card=False)
        ours = load(folder)
        np.testing.assert_allclose(
            ours.encode(TEXTS, normalize=False), theirs.encode(TEXTS), atol=1e-6
        )
        assert ours.prompt == "banana: "
        assert bool(ours.prompt_length) is not include
        # Halves of a batch, as accumulation cuts them, carry their part of every feature.
        features = ours.tokenize(TEXTS)
        assert {len(v) for v in features.values()} == {len(TEXTS)}


def test_a_model_that_keeps_the_first_dimensions_only(tmp_path: Path, tiny_model: Path) -> None:
    SentenceTransformer(str(tiny_model), device="cpu", truncate_dim=8).save(
        str(tmp_path / "cut"), create_model_card=False
    )
    ours = load(tmp_path / "cut")
    theirs = SentenceTransformer(str(tmp_path / "cut"), device="cpu")
    assert ours.dim == 8
    np.testing.assert_allclose(ours.encode(TEXTS, normalize=False), theirs.encode(TEXTS), atol=1e-6)


# --- depths -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_depth_is_the_first_hidden_state_that_a_parameter_reaches(
    families: dict[str, Path], family: str
) -> None:
    model = load(families[family]).eval()
    depths = model.depths()
    assert [n for n, _, _ in depths] == [n for n, _ in model.named_parameters()]
    assert model.layers == (1 if family == "albert" else 3)
    encoder = model.encoder
    features = {k: v for k, v in model.tokenize(TEXTS[:2]).items() if k != "modality"}
    states = encoder(**features, output_hidden_states=True).hidden_states
    expected: dict[int, int] = {}
    for state_index, state in enumerate(states[:-1]):  # the last may be behind the final norm
        parameters = [p for _, p, _ in depths if p.requires_grad]
        gradients = torch.autograd.grad(
            state.square().sum(), parameters, retain_graph=True, allow_unused=True
        )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                expected.setdefault(id(parameter), state_index)
    for name, parameter, depth in depths:
        if "relative_attention_bias" in name:
            assert depth == 0  # all layers share it
        elif id(parameter) in expected:
            assert depth == expected[id(parameter)], name
        else:  # it acts behind the last but one hidden state
            assert depth >= (1 if family == "albert" else 3), name
    names = {name: depth for name, _, depth in depths}
    for name, depth in names.items():
        if "pooler" in name or "final" in name or name.endswith("model.norm.weight"):
            assert depth == model.layers + 1, name


def test_heads_lie_above_all_layers(tiny_model: Path) -> None:
    model = load(tiny_model, output_dim=8)
    top = {n: d for n, _, d in model.depths() if ".linear." in n}
    assert set(top.values()) == {model.layers + 1}
    assert len(top) == 4


# --- folders ----------------------------------------------------------------------------


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_opens_with_the_same_weights(
    families: dict[str, Path], family: str, tmp_path: Path
) -> None:
    model = load(families[family], output_dim=16, options={"max_seq_length": 20})
    model.save(tmp_path / "saved")
    again = open_text_model(tmp_path / "saved", device="cpu")
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert (again.dim, again.max_length) == (16, 20)
    assert (again.encode(TEXTS) == model.encode(TEXTS)).all()


def test_the_same_weights_write_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    model = load(tiny_model, output_dim=16)
    model.save(tmp_path / "one")
    model.tokenize(TEXTS)  # the tokenizer now remembers a padding and a truncation
    model.train()
    model.save(tmp_path / "two")
    open_text_model(tmp_path / "one", device="cpu").save(tmp_path / "three")
    assert digests(tmp_path / "one") == digests(tmp_path / "two") == digests(tmp_path / "three")
    assert not [name for name in digests(tmp_path / "one") if name.endswith((".bin", ".pkl"))]
    assert not (tmp_path / "one" / "README.md").exists()  # the model card is written by others


def test_sentence_transformers_alone_gives_the_same_vectors(
    tiny_dropout_model: Path, tmp_path: Path
) -> None:
    model = load(tiny_dropout_model, output_dim=16)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(3):
        model(model.tokenize(TEXTS)).square().mean().backward()
        optimizer.step()
    model.save(tmp_path / "saved")
    np.save(tmp_path / "ours.npy", model.encode(TEXTS, normalize=False))
    script = (
        "import sys, numpy as np, torch\n"
        "torch.set_num_threads(1)\n"
        "from sentence_transformers import SentenceTransformer\n"
        f"texts = {TEXTS!r}\n"
        f"theirs = SentenceTransformer({str(tmp_path / 'saved')!r}, device='cpu').encode(texts)\n"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'luthier']\n"
        f"ours = np.load({str(tmp_path / 'ours.npy')!r})\n"
        "assert ours.shape == theirs.shape == (len(texts), 16)\n"
        "assert np.abs(ours - theirs).max() <= 1e-6, np.abs(ours - theirs).max()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_model_can_be_copied(tiny_model: Path) -> None:
    model = load(tiny_model)
    twin = copy.deepcopy(model)
    assert (twin.encode(TEXTS) == model.encode(TEXTS)).all()
    with torch.no_grad():
        twin.token_embedding.weight.zero_()
    assert (twin.encode(TEXTS) != model.encode(TEXTS)).any()


@pytest.mark.real
def test_the_real_encoder_loads_and_saves_quickly(tmp_path: Path) -> None:
    model = load_text_model(ModelSpec(name="all-minilm-l6-v2"), artifact=None, device="cpu")
    assert (model.dim, model.max_length, model.layers) == (384, 256, 6)
    model.save(tmp_path / "first")
    started = time.process_time()
    model.save(tmp_path / "saved")
    assert time.process_time() - started < 0.5
    assert open_text_model(tmp_path / "saved", device="cpu").max_length == 256
    vectors = model.encode(["a fruit that is long and yellow", "banana", "parliament"])
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > far + 0.2
