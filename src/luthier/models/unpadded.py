"""A transformers model whose encoder computes no padding, behind its own ``forward``.

Whoever calls the model gives padded batches and gets padded hidden states, as always. Inside,
the tokens go through the unmodified encoder as one row (``packed.py``), and what comes out is
laid into the places where the padding was. Heads see what they always saw: those that read
[CLS] at the first place, and those that read every token.

At the places of padding the hidden states are zero, where the plain encoder computes something
that nobody should read. Losses that do read it (the spans of question answering) differ; so a
model is compared with itself on the first batch, loss and all, and runs plainly if it differs.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from luthier.models.dropout import set_fast_dropout
from luthier.models.packed import NotPackable, Packing, first_position, packed
from luthier.models.tokens import Tokens

#: Largest relative difference of losses and outputs: rounding of float32 stays below it.
_TOLERANCE = 2e-4

#: What encoders raise when a row of packed texts is not what they expect.
_REFUSALS = (TypeError, ValueError, LookupError, AttributeError, RuntimeError, NotPackable)

#: What a call of an encoder may bear and still be packed; all else runs plainly.
_KNOWN = ("input_ids", "attention_mask", "token_type_ids", "return_dict", "use_cache",
          "num_items_in_batch")  # fmt: skip
#: Share of padding below which a batch is not worth taking apart.
_WORTH_IT = 0.02


#: Settings for heads that this model may not have; one that it has is an ``nn.Dropout``.
_HEADS = ("summary_", "qa_", "seq_classif_", "classifier_")


class Unpadded:
    """Replaces the ``forward`` of a model's encoder until ``remove``.

    calls: how often the encoder ran "packed" and "padded". reason: why it is not packed, or "".
    checked: whether it has been compared with the plain model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.encoder = cast(Any, getattr(model, "base_model", None))
        self.calls: Counter[str] = Counter()
        self.reason = unfit(model)
        self.checked = False
        self._installed = False
        if not self.reason:
            self._plain: Callable[..., Any] = self.encoder.forward
            self._names = list(inspect.signature(self._plain).parameters)
            self.encoder.forward = self._forward
            self._installed = True

    def remove(self) -> None:
        """The encoder as it was."""
        if self._installed:
            del self.encoder.forward
            set_fast_dropout(self.model, False)
            self._installed = False

    def trust(self) -> None:
        """Pack without a comparison: an earlier one, of the same model, was passed."""
        self.checked = True
        set_fast_dropout(self.model, True)

    def check(self, batch: Mapping[str, Any]) -> bool:
        """Compare, on a batch, the packed model with the plain one: once, without dropout.
        Whether it is packed from now on."""
        if self.checked or not self._installed:
            return self._installed
        self.checked = True
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), torch.autocast(_device(self.model).type, enabled=False):
                self.reason = self._difference(batch)
        except _REFUSALS as error:
            self.reason = f"{type(self.encoder).__name__} refuses packed texts ({str(error)[:100]})"
        finally:
            self.model.train(training)
        if self.reason:
            self.remove()
        else:
            set_fast_dropout(self.model, True)
        self.calls.clear()
        return self._installed

    def _difference(self, batch: Mapping[str, Any]) -> str:
        packed_loss, packed_out = _outputs(self.model, batch)
        if not self.calls["packed"]:
            self.checked = False  # nothing was padded: another batch will tell
            return ""
        self.encoder.forward = self._plain
        try:
            plain_loss, plain_out = _outputs(self.model, batch)
        finally:
            self.encoder.forward = self._forward
        name = type(self.model).__name__
        if packed_loss is not None and plain_loss is not None:
            off = _relative(packed_loss, plain_loss)
            if not off <= _TOLERANCE:
                return f"the loss of a packed {name} differs by {off:.1e}"
        mask: Tensor = batch["attention_mask"].bool()
        if plain_out is not None and plain_out.shape[:2] == mask.shape:
            packed_out, plain_out = cast(Tensor, packed_out)[mask], plain_out[mask]
        off = 0.0 if plain_out is None else _relative(packed_out, plain_out)
        return "" if off <= _TOLERANCE else f"the outputs of a packed {name} differ by {off:.1e}"

    def _forward(self, *args: Any, **given: Any) -> Any:
        words = dict(zip(self._names, args, strict=False)) | given
        ids, mask = words.get("input_ids"), words.get("attention_mask")
        if not self._takes(words, ids, mask):
            self.calls["padded"] += 1
            return self._plain(*args, **given)
        self.calls["packed"] += 1
        return self._packed(words["input_ids"], words["attention_mask"].bool(), words)

    def _takes(self, words: Mapping[str, Any], ids: Any, mask: Any) -> bool:
        """Whether a call is a plain one over texts that are padded on the right."""
        others = [n for n, v in words.items() if n not in _KNOWN and v not in (None, False)]
        if others or ids is None or mask is None or ids.ndim != 2 or mask.shape != ids.shape:
            return False
        if words.get("use_cache") or words.get("return_dict") is False:
            return False
        inside = mask.bool()
        if float(inside.sum()) > (1 - _WORTH_IT) * inside.numel():
            return False
        filled = bool(inside[:, 0].all())
        return filled and not bool((inside[:, 1:] & ~inside[:, :-1]).any())

    def _packed(self, ids: Tensor, inside: Tensor, words: Mapping[str, Any]) -> Any:
        types = words.get("token_type_ids")
        tokens = Tokens(
            ids[inside].cpu().numpy().astype(np.int32),
            inside.sum(1).cpu().numpy(),
            None if types is None else types[inside].cpu().numpy().astype(np.int32),
        )
        packing = Packing.of(tokens, ids.device)
        features = packing.features(first_position(self.encoder), ids.device)
        features.pop("seq_idx"), features.pop("cu_seq_lens_q")
        with packed(self.encoder, packing):
            output = self._plain(**features)
        if not packing.calls:
            raise NotPackable(f"{type(self.encoder).__name__} has an attention of its own")
        return self._padded_again(output, packing, inside)

    def _padded_again(self, output: Any, packing: Packing, inside: Tensor) -> Any:
        hidden = output.last_hidden_state.squeeze(0)  # a selection's gradient would be a copy
        rows = torch.from_numpy(packing.order).to(hidden.device)
        lengths = torch.from_numpy(packing.tokens.lengths).to(hidden.device)
        within = torch.arange(len(hidden), device=hidden.device) - torch.repeat_interleave(
            torch.cumsum(lengths, 0) - lengths, lengths
        )
        places = torch.repeat_interleave(rows, lengths) * inside.shape[1] + within
        flat = hidden.new_zeros(inside.numel(), hidden.shape[-1]).index_copy(0, places, hidden)
        padded = flat.view(*inside.shape, -1)
        changes = {"last_hidden_state": padded}
        if getattr(output, "pooler_output", None) is not None:
            changes["pooler_output"] = _pooled(self.encoder, padded)
        for name, value in changes.items():
            output[name] = value
        return output


def _pooled(encoder: Any, hidden: Tensor) -> Tensor:
    """What the encoder's pooler makes of the first tokens; ALBERT keeps its parts apart."""
    activation = getattr(encoder, "pooler_activation", None)
    if activation is not None:
        return activation(encoder.pooler(hidden[:, 0]))  # type: ignore[no-any-return]
    return encoder.pooler(hidden)  # type: ignore[no-any-return]


def unfit(model: Any) -> str:
    """Why a model cannot be packed, as far as its shape tells, or ""."""
    encoder = getattr(model, "base_model", None)
    name = type(model).__name__
    if encoder is None or encoder is model:
        return f"{name} has no encoder beneath a head"
    config = getattr(encoder, "config", None)
    if config is None or getattr(config, "is_encoder_decoder", False):
        return f"{name} has more than one stack of layers"
    if "input_ids" not in inspect.signature(encoder.forward).parameters:
        return f"{name} does not read texts"
    return ""


def drops(model: nn.Module) -> bool:
    """Whether a model draws random numbers when it trains: a module or a setting says so."""
    settings = vars(model.config) if hasattr(model, "config") else {}
    return any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules()) or any(
        isinstance(value, float) and value > 0
        for name, value in settings.items()
        if "drop" in name and not name.startswith(_HEADS)
    )


def _outputs(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    output: Any = model(**batch)
    logits = getattr(output, "logits", None)
    return getattr(output, "loss", None), logits if isinstance(logits, Tensor) else None


def _relative(found: Tensor | None, wanted: Tensor) -> float:
    assert found is not None
    scale = wanted.abs().max().clamp(min=1e-12)
    return float((found - wanted).abs().max() / scale)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
