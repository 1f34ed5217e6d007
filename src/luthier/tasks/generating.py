"""Texts that a model writes: options, batches of like length, and decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from luthier.errors import Problem, SpecError
from luthier.spec.processing import ProcessingSpec, check_generation
from luthier.tasks.batching import Feature, Obey, by_length, inference, on_device

#: Tokens that are written when nobody says how many: a paragraph.
NEW_TOKENS = 128


def generation_options(
    processing: ProcessingSpec, given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The options of a call over those of the job. Raises SpecError for those that are wrong.

    Unless it is asked for nothing is drawn at random, though the model's own options may say so:
    a score is to be the same twice.
    """
    options: dict[str, Any] = {
        "max_new_tokens": processing.max_target_length or NEW_TOKENS,
        "do_sample": False,
    }
    options |= processing.generation
    options |= dict(given or {})
    try:
        check_generation(options)
    except ValueError as error:
        raise SpecError([Problem("generation", str(error))]) from None
    return options


def generate(
    model: Any, features: Sequence[Feature], processor: Any, options: Mapping[str, Any], *,
    batch_size: int, obey: Obey,
) -> list[str]:  # fmt: skip
    """What the model writes after each input, without special tokens.

    A model without an encoder goes on from the input, which is then padded on its left and is
    left out of what is returned.
    """
    encoder = bool(model.config.is_encoder_decoder)
    texts = [""] * len(features)
    with inference(model) as device:
        for places in by_length(features, batch_size):
            obey()
            batch = processor.pad(
                [features[i] for i in places], return_tensors="pt",
                padding_side="right" if encoder else "left",
            )  # fmt: skip
            inputs = on_device(batch, device)
            inputs.pop("token_type_ids", None)
            written: torch.Tensor = model.generate(**inputs, **options)
            if not encoder:
                written = written[:, inputs["input_ids"].shape[1] :]
            found = processor.batch_decode(written, skip_special_tokens=True)
            for place, text in zip(places, found, strict=True):
                texts[place] = text.strip()
    return texts
