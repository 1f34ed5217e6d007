"""Export to ONNX, checked against the model it came from, and inference without torch.

The graph takes tokens and gives vectors: pooling, heads and normalisation are inside. Beside
``model.onnx`` stands ``onnx.json`` with what the tokenizer needs to be told, so that
``OnnxTextModel`` needs onnxruntime and tokenizers only.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luthier.errors import MissingExtra, ModelError
from luthier.models.batching import Progress, check_texts, encode_in_batches

if TYPE_CHECKING:
    from luthier.models.text import TextModel

#: How close the exported graph must be to the model (Finetuner's bounds).
RTOL, ATOL = 1e-3, 1e-5

#: A protobuf holds 2 GB at most; larger weights go into a file beside it.
_LARGEST_INLINE_BYTES = 1_500_000_000

_CHECKED = (
    "one",
    "A reverse dictionary finds the word that a description describes.",
    "Größe, naïveté, 東京, emoji 🙂 and numbers such as 3.14159 or 2,718",
    "a text that is long enough to be cut " * 40,
    "short",
    "Punctuation!? (brackets) [more] {braces} – dashes — and “quotes”.",
)


def export_onnx(model: TextModel, folder: Path, texts: Sequence[str] = _CHECKED) -> float:
    """Write ``model.onnx``, ``onnx.json`` and ``tokenizer.json`` into ``folder``.

    Batch and sequence length are dynamic. The graph is run on ``texts``, one by one and as a
    batch, and must give the model's vectors to rtol 1e-3 and atol 1e-5.

    Returns the largest absolute difference.

    Raises:
        MissingExtra: onnx, onnxscript or onnxruntime is not installed.
        ModelError: the architecture cannot be exported, or the vectors differ; nothing is left.
    """
    _need("onnx", "onnxscript", "onnxruntime")
    if getattr(model.tokenizer, "backend_tokenizer", None) is None:
        raise ModelError("has a tokenizer that cannot be written as tokenizer.json")
    if model.prompt_length:  # sentence-transformers' pooling then branches on the data
        raise ModelError(
            "leaves its prompt out of the pooling, which a graph cannot do",
            hint="leave out to_onnx",
        )
    folder.mkdir(parents=True, exist_ok=True)
    graph = folder / "model.onnx"
    try:
        _write_graph(model, graph)
        _write_tokenizer(model, folder)
        worst = _difference(model, folder, texts)
    except BaseException:
        for file in folder.glob("model.onnx*"):
            file.unlink()
        (folder / "onnx.json").unlink(missing_ok=True)
        raise
    return worst


class OnnxTextModel:
    """The encoder that ``export_onnx`` wrote, run by onnxruntime.

    Attributes:
        dim: width of the vectors. max_length: tokens beyond which a text is cut.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Open a folder. Raises MissingExtra, or ModelError that names the file."""
        _need("onnxruntime")
        import onnxruntime
        from tokenizers import Tokenizer

        for name in ("model.onnx", "onnx.json", "tokenizer.json"):
            if not (folder / name).is_file():
                raise ModelError(
                    "is missing",
                    where=str(folder / name),
                    hint="train with to_onnx=True, or leave out is_onnx",
                )
        try:
            facts = json.loads((folder / "onnx.json").read_text(encoding="utf-8"))
            self.dim = int(facts["dim"])
            self.max_length = int(facts["max_length"])
            self._prompt = str(facts["prompt"])
            self._inputs = tuple(facts["inputs"])
            padding = facts["padding"]
        except (ValueError, KeyError, TypeError) as error:
            where = str(folder / "onnx.json")
            raise ModelError(f"cannot be read ({error})", where=where) from None
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_padding(**padding)
        self._tokenizer.enable_truncation(self.max_length)
        options = onnxruntime.SessionOptions()
        # As torch does: what the machine is told to use, so that other work is not starved.
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0") or 0)
        try:
            self._session = onnxruntime.InferenceSession(
                str(folder / "model.onnx"), options, providers=_providers(device)
            )
        except ModelError:
            raise
        except Exception as error:  # onnxruntime's own errors share no base class
            where = str(folder / "model.onnx")
            raise ModelError(f"cannot be loaded ({str(error)[:200]})", where=where) from error

    def encode(
        self,
        texts: Sequence[str],
        batch_size: int = 32,
        normalize: bool = True,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Vectors of texts, in their order: float32 [n, dim]. As ``TextModel.encode``."""
        check_texts(texts, batch_size)
        if not len(texts):
            return np.zeros((0, self.dim), dtype=np.float32)

        def vectors(batch: list[str]) -> np.ndarray:
            out = self.embed(batch)
            if normalize:
                # torch.nn.functional.normalize's smallest length
                out = out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
            return out

        return encode_in_batches(texts, batch_size, vectors, progress)

    def embed(self, texts: list[str]) -> np.ndarray:
        """Vectors of one batch as the graph gives them: float32 [n, dim]."""
        encoded = self._tokenizer.encode_batch([self._prompt + text for text in texts])
        given = {
            "input_ids": [e.ids for e in encoded],
            "attention_mask": [e.attention_mask for e in encoded],
            "token_type_ids": [e.type_ids for e in encoded],
        }
        feed = {name: np.asarray(given[name], dtype=np.int64) for name in self._inputs}
        found: np.ndarray = self._session.run(None, feed)[0]
        return found.astype(np.float32, copy=False)


def _write_graph(model: TextModel, file: Path) -> None:
    import torch

    from luthier.models.text import evaluating

    features = model.tokenize(["an example of two texts", "the other"])
    names = list(features)

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.model(dict(zip(names, tensors, strict=True)))
            return out

    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple(dict.fromkeys(range(t.dim()), dynamic) for t in features.values())
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    device = model.device
    try:
        with evaluating(model), _without_noise(), torch.no_grad():
            torch.onnx.export(
                Graph().eval(),
                tuple(t.to(device) for t in features.values()),
                str(file),
                input_names=names,
                # Not "embedding": that is the name of an operator within the graph.
                output_names=["sentence_embedding"],
                dynamic_shapes=(shapes,),
                dynamo=True,
                external_data=size > _LARGEST_INLINE_BYTES,
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise ModelError(
            f"a {type(model.encoder).__name__} cannot be exported to ONNX ({cause:.200})",
            hint="leave out to_onnx",
        ) from error


def _write_tokenizer(model: TextModel, folder: Path) -> None:
    import onnx

    tokenizer = model.tokenizer
    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    facts = {
        "format": 1,
        "dim": model.dim,
        "max_length": min(model.max_length, 2**31 - 1),
        "prompt": model.prompt,
        "inputs": [i.name for i in graph.input],
        "padding": {
            "direction": tokenizer.padding_side,
            "pad_id": tokenizer.pad_token_id,
            "pad_type_id": tokenizer.pad_token_type_id,
            "pad_token": tokenizer.pad_token,
        },
        "rtol": RTOL,
        "atol": ATOL,
    }
    (folder / "onnx.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", "utf-8")
    model.save_tokenizer(folder)


def _difference(model: TextModel, folder: Path, texts: Sequence[str]) -> float:
    exported = OnnxTextModel(folder)
    worst = 0.0
    for batch in ([texts[0]], list(texts), *([text] for text in texts[1:])):
        ours, theirs = model.encode(batch, len(batch), normalize=False), exported.embed(batch)
        if not np.allclose(theirs, ours, rtol=RTOL, atol=ATOL):
            raise ModelError(
                f"the ONNX graph differs from the model by up to {np.abs(ours - theirs).max():.2g}",
                hint="leave out to_onnx",
            )
        worst = max(worst, float(np.abs(ours - theirs).max()))
    return worst


def _providers(device: str) -> list[str]:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if device == "auto":
        device = "cuda" if "CUDAExecutionProvider" in available else "cpu"
    if device.startswith("cuda"):
        if "CUDAExecutionProvider" not in available:
            raise ModelError(
                "this onnxruntime runs on the CPU only", hint="pip install onnxruntime-gpu"
            )
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    if device != "cpu":
        raise ModelError(f"onnxruntime has no device '{device}'", hint="auto, cpu or cuda")
    return ["CPUExecutionProvider"]


@contextmanager
def _without_noise() -> Iterator[None]:
    """What the exporter says about itself, not about the model."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # that torchvision is not installed
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*LeafSpec.*", FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(torch|onnx)")
            yield
    finally:
        registration.setLevel(level)


def _need(*packages: str) -> None:
    from importlib.util import find_spec

    if any(find_spec(package) is None for package in packages):
        raise MissingExtra("ONNX", "onnx")
