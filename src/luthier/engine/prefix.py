"""The output of a model's fixed part, computed once a text and read in every epoch.

One file a set of texts, named by the sha256 of all that decides its content: the fixed weights,
the tokens, the precision. So a second run, a trial of a search and a resumed run only read, and
two models never share one. Hidden states are kept in fp16 (half the bytes; rounding to 11 bits
moved gradients by less than a thousandth), pooled vectors in float32 (they are small).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from luthier.engine.control import Listener
from luthier.engine.device import Device
from luthier.engine.distinct_texts import DistinctTexts
from luthier.engine.resolved import Resolved
from luthier.errors import DiskFull
from luthier.models.freezing import (
    NotResumable,
    Part,
    embed_above,
    fixed_output,
    fixed_parameters,
    fixed_part,
)
from luthier.models.packed import NotPackable
from luthier.models.text import TextModel, evaluating
from luthier.models.tokens import Ints, by_budget, ragged_places
from luthier.store import atomic

if TYPE_CHECKING:
    from luthier.batches import Plan
    from luthier.engine.learner import EmbeddingLearner

#: Bytes that all stored prefixes of a cache may have: more would seldom stay in memory, and
#: reading it from a disk again and again costs what computing it does.
MOST_BYTES = 32 << 30

#: Share of the free disk that one may take: checkpoints and results need the rest.
SHARE_OF_FREE = 0.25

#: A text must be visited more often than this for its states to be worth writing and reading.
WORTH_VISITS = 1.2

#: Largest difference from the plain path, relative to the largest value, of vectors and of a
#: gradient: fp16 rounding stays below it by far, any real difference is above it.
_TOLERANCE = 1e-2

#: The same of what a file holds: batches of other texts move the last digits of half precision,
#: and states of another text differ by about as much as they are.
_MISPLACED = 0.1

#: Tokens that go through the fixed part at once. Constant, so that a file that is made again
#: has the same content.
_TOGETHER = 8192

#: Stands in each file's name: of another layout it is another file.
_LAYOUT = 2

#: Batches after which the share that is done is told again.
_TOLD_EVERY = 50

#: A half-written file that nobody wrote to for so long belongs to a run that was killed.
_ABANDONED_S = 3600.0

#: Texts on which the path from the store is compared, the shortest and the longest among them.
_COMPARED = 6


def use_prefix(
    learner: EmbeddingLearner,
    plan: Plan,
    steps: int,
    seen: np.ndarray | None,
    cache: Path,
    resolved: Resolved,
    tell: Listener,
) -> None:
    """Let the learner start above the model's fixed part, where there is one and it pays.

    seen: the rows that are trained on, sorted; None: any of them.

    The choice is made once a run. What speaks against is told in the log.
    """
    model: TextModel = getattr(learner.model, "item_tower", learner.model)  # towers began alike
    part = fixed_part(model)
    if part is None or not steps:
        return
    what = f"the lowest {model.fixed_layers} layers" if part == "layers" else "the encoder"

    def say(message: str) -> None:
        tell("log", {"level": "info", "message": f"{what}: {message}"})

    if model.execution == "padded" or (part == "layers" and model.execution != "packed"):
        say(f"output is computed in each step: texts run {model.execution}")
        return
    rows = np.arange(len(learner.reads)) if seen is None else seen
    texts = DistinctTexts.of(learner.texts, learner.reads.roles, rows)
    store = Store(model, texts, part, learner.device, cache / "prefix")
    visits = steps * plan.batch_size * learner.texts_a_row / len(rows)

    def decide() -> str:
        """Why not; "" for yes."""
        if not store.there:
            if visits <= WORTH_VISITS:
                return f"each text is visited {visits:.1f} times only"
            if store.size > (most := _budget(cache)):
                return f"it would take {store.size / 1e9:.1f} GB of the {most / 1e9:.1f} allowed"
        if store.there and part == "backbone":
            return ""  # who made it, of these weights, texts and modules, has compared them
        reason = _difference(model, texts, part, learner.device)
        try:
            return reason or store.fill(tell)
        except (NotResumable, DiskFull) as error:
            return str(error)

    reason: str = resolved.once("no_prefix", decide)
    reason = reason or store.fill(tell)  # again, where the cache was emptied meanwhile
    if reason:
        say(f"output is computed in each step: {reason}")
        return
    learner.model.prefix = store.open()
    learner.texts = texts.numbered(learner.texts)
    say(f"output is computed once for {len(texts.lengths):,} texts, {store.size / 1e6:.1f} MB")


class StoredPrefix:
    """States of texts, one after another: an array, or a file mapped into memory."""

    def __init__(self, states: np.ndarray, lengths: Ints, part: Part, weights: bytes = b"") -> None:
        self.part, self.weights, self._states, self._lengths = part, weights, states, lengths
        self._starts = np.cumsum(lengths) - lengths

    def states(self, texts: Ints) -> Tensor:
        """See ``freezing.Prefix``."""
        places = ragged_places(self._starts[texts], self._lengths[texts])
        return torch.from_numpy(np.take(self._states, places, axis=0)).float()

    def __deepcopy__(self, _: Any) -> StoredPrefix:
        return self  # never changed, and gigabytes


class Store:
    """The file of a model's fixed part and a set of texts, there or not yet. weights: the digest
    of the fixed weights, where it is known."""

    def __init__(
        self,
        model: TextModel,
        texts: DistinctTexts,
        part: Part,
        device: Device,
        folder: Path,
        weights: bytes | None = None,
    ) -> None:
        self._model, self._texts, self._part, self._device = model, texts, part, device
        self._weights = weights or _hashed(model)
        self.file = folder / f"{_key(model, texts, device, self._weights)}.{part}"
        self._lengths = _rows(texts.lengths, part)
        with evaluating(model), torch.no_grad():
            width = fixed_output(model, texts.tokens(np.zeros(1, dtype=np.int64)))[0].shape[1]
        self._shape = int(self._lengths.sum()), width
        self._dtype = np.dtype(np.float16 if part == "layers" else np.float32)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._shape[0] * self._shape[1] * self._dtype.itemsize

    @property
    def there(self) -> bool:
        """Whether the file is there and whole."""
        return self.file.exists() and self.file.stat().st_size == self.size

    def fill(self, tell: Listener) -> str:
        """Compute the file if it is not there, and compare what is read of a few texts, from all
        over it, with what is computed of them: what is wrong, or "". A wrong file does not stay.
        Raises NotResumable, DiskFull."""
        if self.there:
            return ""
        _make_room(self.file.parent, MOST_BYTES - self.size)
        atomic.write_chunks(self.file.parent, self._chunks(tell), lambda: self.file.name)
        off = self._off()
        if off <= _MISPLACED:
            return ""
        self.file.unlink(missing_ok=True)
        return f"what was stored differs by {off:.1e}"

    def open(self) -> StoredPrefix:
        """Map the file into memory."""
        with atomic.translated(self.file):
            os.utime(self.file)  # the longest unused is the first to be removed
            states = np.memmap(self.file, dtype=self._dtype, mode="r", shape=self._shape)
        return StoredPrefix(states, self._lengths, self._part, self._weights)

    def _off(self) -> float:
        """By how much a few texts' states as read differ from those computed now, relative to the
        largest."""
        numbers = _few(self._texts)
        with evaluating(self._model), torch.no_grad(), self._device.autocast():
            states, order = fixed_output(self._model, self._texts.tokens(numbers))
        computed = torch.from_numpy(_rounded(states, self._part)).float()
        off = (self.open().states(numbers[order]) - computed).abs().max()
        return float(off / computed.abs().max().clamp(min=1e-12))

    def _chunks(self, tell: Listener) -> Iterator[bytes]:
        """The states of all texts, shortest first."""
        batches = sorted(by_budget(self._texts.lengths, _TOGETHER), key=lambda texts: texts[0])
        with evaluating(self._model), torch.no_grad(), self._device.autocast():
            for index, numbers in enumerate(batches):
                if index % _TOLD_EVERY == 0:
                    share = f"{index / len(batches):.0%}"
                    tell("stage", {"name": f"computing the fixed part of the model: {share}"})
                tokens = self._texts.tokens(numbers)
                yield _rounded(fixed_output(self._model, tokens)[0], self._part).tobytes()


def _few(texts: DistinctTexts) -> Ints:
    """Texts to compare on, the shortest and the longest among them."""
    return np.unique(np.linspace(0, len(texts.lengths) - 1, _COMPARED).astype(np.int64))


def _rows(lengths: Ints, part: Part) -> Ints:
    """Rows that each text has in the file."""
    return lengths if part == "layers" else np.ones_like(lengths)


def _rounded(states: Tensor, part: Part) -> np.ndarray:
    """As they are kept. Raises NotResumable where fp16 has no such numbers."""
    kept = states.to(torch.float16 if part == "layers" else torch.float32)
    if not bool(kept.isfinite().all()):
        raise NotResumable("hidden states beyond the range of fp16")
    found: np.ndarray = kept.cpu().numpy()
    return found


def _difference(model: TextModel, texts: DistinctTexts, part: Part, device: Device) -> str:
    """Compare vectors, and the gradient of the lowest matrix that trains, with those of the
    whole model on a few texts, without dropout: what is wrong, or ""."""
    numbers = _few(texts)
    tokens = replace(texts.tokens(numbers), stored=np.arange(len(numbers)))
    lengths = _rows(texts.lengths[numbers], part)
    trains = [(depth, p) for _, p, depth in model.depths() if p.requires_grad and p.dim() > 1]
    lowest = min(trains, key=lambda pair: pair[0], default=(0, None))[1]
    with evaluating(model), torch.autocast(device.torch.type, enabled=False):
        try:
            with torch.no_grad():
                states = _rounded(fixed_output(model, tokens)[0], part)
            few = StoredPrefix(states, lengths, part)
            found = _probe(embed_above(model, tokens, few), lowest)
        except (NotResumable, NotPackable) as error:
            return str(error)
        expected = _probe(model.embed(replace(tokens, stored=None)), lowest)
    for name, ours, plain in zip(("vectors", "gradients"), found, expected, strict=False):
        off = float((ours - plain).abs().max() / plain.abs().max().clamp(min=1e-12))
        if not off <= _TOLERANCE:
            return f"{name} differ by {off:.1e}"
    return ""


def _probe(vectors: Tensor, parameter: Tensor | None) -> tuple[Tensor, ...]:
    """Vectors, and the gradient of a weighted sum of them."""
    if parameter is None:
        return (vectors.detach(),)
    weights = torch.linspace(-1, 1, vectors.numel(), device=vectors.device).view_as(vectors)
    total = (vectors * weights).sum()
    (gradient,) = torch.autograd.grad(total, [parameter], materialize_grads=True)
    return vectors.detach(), gradient


def _hashed(model: TextModel) -> bytes:
    """sha256 of the fixed weights."""
    digest = hashlib.sha256()
    for name, weight in fixed_parameters(model):
        digest.update(name.encode())
        values: Any = np.ascontiguousarray(weight.detach().cpu().numpy())
        digest.update(values.reshape(-1).view("u1"))
    return digest.digest()


def _key(
    model: TextModel, texts: DistinctTexts, device: Device, weights: bytes | None = None
) -> str:
    """sha256 of all that decides the content of the file. weights: their digest, if known."""
    import transformers

    digest = hashlib.sha256(texts.digest.encode())
    digest.update(weights or _hashed(model))
    config: Any = model.encoder.config
    told = {k: v for k, v in config.to_dict().items() if k not in _NO_MATTER and k[0] != "_"}
    modules: list[Any] = [
        {type(module).__name__: getattr(module, "get_config_dict", dict)()}
        for module in list(model.sentence_transformer.children())[1:]
    ]
    facts = [
        _LAYOUT,
        told,
        modules if fixed_part(model) == "backbone" else model.fixed_layers,
        model.prompt_length,
        device.precision,
        torch.__version__,
        transformers.__version__,
    ]
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:40]


#: What a config says of how it was written, not of what is computed.
_NO_MATTER = ("transformers_version", "architectures", "dtype", "torch_dtype")


def _budget(cache: Path) -> int:
    """Bytes that a new file may have."""
    with atomic.translated(cache):
        cache.mkdir(parents=True, exist_ok=True)
        return int(min(MOST_BYTES, shutil.disk_usage(cache).free * SHARE_OF_FREE))


def _make_room(folder: Path, most: int) -> None:
    """Remove the files that were not used for longest until the rest takes ``most`` bytes, and
    what killed runs left half-written. A run that still reads a file keeps it until it ends."""
    used: list[tuple[float, int, Path]] = []
    for file in folder.glob("*"):
        with suppress(FileNotFoundError):  # another run removed it
            status = file.stat()
            used.append((status.st_mtime, status.st_size, file))
    taken = 0
    for time_s, size, file in sorted(used, reverse=True):
        hidden = file.name.startswith(".")
        taken += 0 if hidden else size
        if time.time() - time_s > _ABANDONED_S if hidden else taken > most:
            file.unlink(missing_ok=True)
