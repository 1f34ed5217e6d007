"""Opening models and encoding with them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from luthier.errors import CorruptBundle, DataError, ModelError, NotFound, SpecError
from luthier.inference import build_model, cos_sim, encode, get_model
from luthier.models.loading import load_text_model
from luthier.runs.connection import Home, current, using
from luthier.spec import ModelSpec
from luthier.store.bundle import open_bundle, write_bundle

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["banana", "a lemon is not a banana", "to be or not to be"]


@pytest.fixture
def bundle(tiny_model: Path, tmp_path: Path) -> Path:
    """A sealed bundle, as a finished run leaves it."""
    model = load_text_model(ModelSpec(name=str(tiny_model)), artifact=None, device="cpu")
    return write_bundle(tmp_path / "bundle", model.save, {"kind": "artifact"}).path


def test_vectors_are_those_that_sentence_transformers_gives(tiny_model: Path) -> None:
    expected = SentenceTransformer(str(tiny_model), device="cpu").encode(TEXTS)
    for model in (get_model(tiny_model, device="cpu"), build_model(str(tiny_model), device="cpu")):
        assert model.dim == 32
        np.testing.assert_allclose(encode(model, TEXTS), expected, atol=1e-6)
        np.testing.assert_allclose(encode(model, np.array(TEXTS)), expected, atol=1e-6)
        np.testing.assert_allclose(encode(model, (t for t in TEXTS)), expected, atol=1e-6)
        unit = encode(model, TEXTS, normalize=True)
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)


def test_the_batch_size_that_was_asked_for_is_used(tiny_model: Path) -> None:
    model = get_model(tiny_model, batch_size=2, device="cpu")
    sizes: list[int] = []
    real = model.model.pad  # type: ignore[attr-defined]
    model.model.pad = lambda t: sizes.append(len(t)) or real(t)  # type: ignore[attr-defined]
    encode(model, TEXTS)
    encode(model, TEXTS, batch_size=3)
    assert sizes == [2, 1, 3]
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(DataError, match="batch_size"):
            get_model(tiny_model, batch_size=wrong)  # type: ignore[arg-type]


@dataclass
class Doc:
    """What a DocumentArray holds, of whichever library."""

    text: str | None = None
    content: Any = None
    embedding: Any = None


def test_documents_are_given_their_embedding(tiny_model: Path) -> None:
    model = get_model(tiny_model, device="cpu")
    documents = [Doc(text=TEXTS[0]), Doc(content=TEXTS[1])]
    assert encode(model, documents) is documents
    expected = encode(model, TEXTS[:2])
    for document, vector in zip(documents, expected, strict=True):
        assert (document.embedding == vector).all()
    with pytest.raises(DataError, match="row 2: is neither a text nor a document"):
        encode(model, [Doc(text="a"), Doc(content=b"bytes")])
    with pytest.raises(DataError, match="not one text"):
        encode(model, "banana")


def test_our_own_documents(tiny_model: Path) -> None:
    from luthier.data.documents import Document, DocumentArray

    model = get_model(tiny_model, device="cpu")
    documents = DocumentArray([Document(TEXTS[0]), Document(text=TEXTS[1])])
    assert encode(model, documents) is documents
    vectors = [document.embedding for document in documents]  # type: ignore[attr-defined]
    assert (np.stack(vectors) == encode(model, TEXTS[:2])).all()
    with pytest.raises(DataError, match="row 1"):
        encode(model, DocumentArray([Document(b"blob")]))


def test_a_bundle_is_verified_before_it_is_used(bundle: Path) -> None:
    assert encode(get_model(bundle, device="cpu"), TEXTS).shape == (3, 32)
    weights = bundle / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1  # one bit of one weight
    weights.write_bytes(data)
    with pytest.raises(CorruptBundle):
        get_model(bundle, device="cpu")


def test_artifacts_are_found_by_id_prefix_and_run(bundle: Path, tmp_path: Path) -> None:
    expected = encode(get_model(bundle, device="cpu"), TEXTS)

    @dataclass
    class FinishedRun:
        name: str
        artifact_id: str

    with using(Home(tmp_path / "home")):
        artifact = current().store.publish(open_bundle(bundle), False)
        run: Any = FinishedRun("vigilant-tereshkova", artifact)
        for name in (artifact, artifact[:8], run):
            assert (encode(get_model(name, device="cpu"), TEXTS) == expected).all()
        with pytest.raises(NotFound):
            get_model("0" * 64)


def test_a_name_is_not_an_open_model() -> None:
    with pytest.raises(ModelError, match="not a name") as caught:
        encode("all-minilm-l6-v2", ["a text"])  # type: ignore[arg-type]
    assert "build_model" in str(caught.value)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        get_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="no such folder"):
        build_model("./nowhere")
    with pytest.raises(ModelError, match="this version tunes text models"):
        build_model("resnet50")


def test_options_that_cannot_act_are_refused(tiny_model: Path) -> None:
    name = str(tiny_model)
    for opened in (get_model, build_model):
        with pytest.raises(ModelError, match="CLIP"):
            opened(name, select_model="clip-text")
    with pytest.raises(ModelError, match="no ONNX graph"):
        build_model(name, is_onnx=True)
    with pytest.raises(SpecError, match="no option 'poler'"):
        build_model(name, model_options={"poler": "cls"})
    with pytest.raises(ModelError, match="no device"):
        get_model(name, device="gpu")
    with pytest.raises(ModelError, match=r"model\.onnx"):
        get_model(name, is_onnx=True)


def test_model_options_act(tiny_model: Path) -> None:
    model = build_model(str(tiny_model), device="cpu", model_options={"pooler": "cls"})
    plain = build_model(str(tiny_model), device="cpu")
    assert abs(encode(model, TEXTS) - encode(plain, TEXTS)).max() > 1e-3


def test_a_folder_of_ours_can_be_moved(bundle: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(bundle, tmp_path / "elsewhere")
    left, right = get_model(bundle, device="cpu"), get_model(str(moved), device="cpu")
    assert (encode(left, TEXTS) == encode(right, TEXTS)).all()


def test_cos_sim_is_the_cosine() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 6)), rng.normal(size=(3, 6))
    found = cos_sim(a, b)
    assert found.shape == (4, 3)
    for i in range(4):
        for j in range(3):
            dot = sum(float(x) * float(y) for x, y in zip(a[i], b[j], strict=True))
            lengths = sum(x * x for x in a[i]) ** 0.5 * sum(y * y for y in b[j]) ** 0.5
            assert found[i, j] == pytest.approx(dot / lengths, abs=1e-6)
    assert cos_sim(a[0], b[0]) == pytest.approx(float(found[0, 0]), abs=1e-6)
    assert isinstance(cos_sim([1, 0], [0, 1]), float)
    assert cos_sim(a, b[0]).shape == (4, 1)
    assert cos_sim([0.0, 0.0], [1.0, 2.0]) == 0.0


def test_cos_sim_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="width 2 and 3"):
        cos_sim([1, 2], [1, 2, 3])
    for wrong in ("banana", [], [["a"]], np.zeros((2, 2, 2)), [[1], [1, 2]]):
        with pytest.raises(DataError):
            cos_sim(wrong, [1.0])
