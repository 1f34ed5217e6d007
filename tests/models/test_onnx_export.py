"""ONNX graphs give the vectors of the model they came from, or there is no graph."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.errors import DataError, ModelError
from luthier.inference import get_model
from luthier.models.loading import load_text_model
from luthier.models.onnx import OnnxTextModel, export_onnx
from luthier.models.text import TextModel
from luthier.spec import ModelSpec
from luthier.testing.models import tiny_text_model

pytest.importorskip("onnxscript")
pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["banana", "a lemon is not a banana", "", "to be or not to be " * 30, "Größe 42!", "lemon"]


def load(folder: Path, **spec: object) -> TextModel:
    job = ModelSpec(name=str(folder), **spec)  # type: ignore[arg-type]
    return load_text_model(job, artifact=None, device="cpu")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextModel, Path]:
    """GeM, a head, a final normalisation, and a model in training mode with dropout."""
    root = tmp_path_factory.mktemp("onnx")
    source = tiny_text_model(root / "source", normalize=True, dropout=0.2)
    torch.manual_seed(0)
    model = load(source, options={"pooler": "GeM", "max_seq_length": 24}, output_dim=8).train()
    model.save(root / "model")
    assert export_onnx(model, root / "model") < 1e-5
    assert model.training
    return model, root / "model"


def test_the_graph_gives_the_models_vectors(exported: tuple[TextModel, Path]) -> None:
    model, folder = exported
    graph = OnnxTextModel(folder)
    assert (graph.dim, graph.max_length) == (8, 24)
    for size in (1, 4, 100):  # batch and length are dynamic
        for normalize in (True, False):
            ours = graph.encode(TEXTS, batch_size=size, normalize=normalize)
            theirs = model.encode(TEXTS, normalize=normalize)
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
            assert ours.dtype == np.float32
    assert graph.encode([]).shape == (0, 8)
    with pytest.raises(DataError, match="row 1"):
        graph.encode([3])  # type: ignore[list-item]


def test_get_model_opens_the_graph(exported: tuple[TextModel, Path]) -> None:
    model, folder = exported
    encoder = get_model(folder, is_onnx=True, device="cpu")
    assert isinstance(encoder.model, OnnxTextModel)
    np.testing.assert_allclose(
        encoder.encode(TEXTS), model.encode(TEXTS, normalize=False), rtol=1e-3, atol=1e-5
    )


def test_inference_needs_no_torch(exported: tuple[TextModel, Path]) -> None:
    _, folder = exported
    script = (
        "import sys\n"
        "from luthier.inference import encode, get_model\n"
        f"model = get_model({str(folder)!r}, is_onnx=True, device='cpu')\n"
        "assert encode(model, ['banana', 'lemon']).shape == (2, 8)\n"
        "bad = {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def with_prompt(source: Path, *, pooled: bool) -> TextModel:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(
        str(source), device="cpu", prompts={"q": "banana: "}, default_prompt_name="q"
    )
    theirs[1].include_prompt = pooled
    theirs.save(str(source), create_model_card=False)
    return load(source)


@pytest.mark.slow
def test_causal_models_and_prompts(tmp_path: Path) -> None:
    source = tiny_text_model(tmp_path / "llama", "llama", pooling="lasttoken")
    model = with_prompt(source, pooled=True)
    export_onnx(model, tmp_path / "onnx")
    ours = OnnxTextModel(tmp_path / "onnx").encode(TEXTS)
    np.testing.assert_allclose(ours, model.encode(TEXTS), rtol=1e-3, atol=1e-5)


def test_a_prompt_that_pooling_leaves_out_is_refused(tmp_path: Path) -> None:
    model = with_prompt(tiny_text_model(tmp_path / "model"), pooled=False)
    with pytest.raises(ModelError, match="prompt"):
        export_onnx(model, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_a_graph_that_differs_is_refused_and_removed(
    exported: tuple[TextModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter writes the one graph for two models, whose embeddings differ by 1 %."""
    model, folder = exported

    def write_another(graph: object, arguments: object, file: str, **options: object) -> None:
        shutil.copyfile(folder / "model.onnx", file)

    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.token_embedding.weight.mul_(1.01)
    monkeypatch.setattr(torch.onnx, "export", write_another)
    assert export_onnx(model, tmp_path / "same") < 1e-5
    with pytest.raises(ModelError, match="differs from the model"):
        export_onnx(twin, tmp_path / "other")
    assert not list((tmp_path / "other").glob("*onnx*"))


@pytest.mark.parametrize("name", ["model.onnx", "onnx.json", "tokenizer.json"])
def test_a_file_that_is_missing_is_named(
    exported: tuple[TextModel, Path], tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(exported[1], tmp_path / "copy")
    (folder / name).unlink()
    with pytest.raises(ModelError, match="is missing") as raised:
        OnnxTextModel(folder)
    assert raised.value.where == str(folder / name)


def test_a_file_that_is_broken_is_named(exported: tuple[TextModel, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(exported[1], tmp_path / "copy")
    graph = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(graph[: len(graph) // 2])
    with pytest.raises(ModelError, match=r"model\.onnx: cannot be loaded"):
        OnnxTextModel(folder)
    (folder / "model.onnx").write_bytes(graph)
    (folder / "onnx.json").write_text(json.dumps({"dim": 8}))
    with pytest.raises(ModelError, match=r"onnx\.json: cannot be read"):
        OnnxTextModel(folder)


def test_a_device_that_is_not_there_is_refused(exported: tuple[TextModel, Path]) -> None:
    with pytest.raises(ModelError, match="no device 'tpu'"):
        OnnxTextModel(exported[1], device="tpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["roberta", "distilbert", "mpnet", "albert", "electra", "modernbert", "t5"]
)
def test_every_family_can_be_exported(tmp_path: Path, family: str) -> None:
    model = load(tiny_text_model(tmp_path / "model", family, dropout=0.1))
    assert export_onnx(model, tmp_path / "onnx") < 1e-5


@pytest.mark.slow
@pytest.mark.real
def test_the_real_encoder_can_be_exported(tmp_path: Path) -> None:
    model = load_text_model(ModelSpec(name="all-minilm-l6-v2"), artifact=None, device="cpu")
    assert export_onnx(model, tmp_path) < 1e-5
