"""Pretrained models of transformers with the head of a task, and what prepares their input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from luthier.errors import LuthierError, ModelError, Problem, SpecError, nearest
from luthier.models import trust
from luthier.models.catalog import resolve
from luthier.models.folder import positions_of

#: What ``load`` takes as options.
LOAD_OPTIONS = ("revision", "attn_implementation", "ignore_mismatched_sizes")

#: A tokenizer writes "no limit" as 1e30.
_NO_LIMIT = 10**9
_NAMELESS = "LABEL_"


def load_pretrained(
    auto_class: str, name: str, *, options: Mapping[str, Any], config: Mapping[str, Any],
    labels: Sequence[str] = (), new_parts: bool, image: bool = False, offsets: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """A model by ``transformers.<auto_class>``, in float32, and its tokenizer or image processor.

    name: a catalog name, a hub id or a folder. config: fields of the model's configuration to
    set. labels: the classes, by code; () leaves the model's head as it is. new_parts: whether
    the head may be made up (from torch's global random state); the encoder never is.
    offsets: whether the tokenizer must be a fast one, which knows the characters of a token.
    Raises SpecError for unknown options, ModelError for a model that is not fit.
    """
    import transformers

    _check_options(options)
    located = resolve(name)
    where = str(located.path or located.hub_id)
    revision = options.get("revision") or located.revision
    arguments: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": trust.trusted(),
    }
    with _as_model_error(where), _quietly():
        settings = transformers.AutoConfig.from_pretrained(where, **arguments)
        if labels:
            _name_classes(settings, labels, where, options)
        for field, value in config.items():
            setattr(settings, field, value)
        if options.get("attn_implementation"):
            arguments["attn_implementation"] = options["attn_implementation"]
        model, report = getattr(transformers, auto_class).from_pretrained(
            where,
            config=settings,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=bool(options.get("ignore_mismatched_sizes")),
            **arguments,
        )
        arguments.pop("attn_implementation", None)
        reader = transformers.AutoImageProcessor if image else transformers.AutoTokenizer
        processor = reader.from_pretrained(where, **arguments)
    _check_parts(model, report, where, new_parts)
    if offsets and not getattr(processor, "is_fast", False):
        raise ModelError("has no fast tokenizer (tokenizer.json)", where=where)
    if not image:
        _settle_tokenizer(model, processor, where)
    return model, processor


def labels_of(name: str, *, revision: str | None = None) -> tuple[str, ...]:
    """The classes that a model already tells apart, by code; () where it names none.

    Rows read with these labels go on training the head that is there.
    """
    import transformers

    located = resolve(name)
    where = str(located.path or located.hub_id)
    with _as_model_error(where):
        config = transformers.AutoConfig.from_pretrained(where, revision=revision)
    return _named_classes(config)


def token_limit(model_config: Any, tokenizer: Any) -> int | None:
    """The most tokens that both have places for; None when nothing limits them."""
    places = positions_of(model_config.to_dict())
    limits = [limit for limit in (places, tokenizer.model_max_length) if limit is not None]
    limit = min(limits, default=_NO_LIMIT)
    return int(limit) if limit < _NO_LIMIT else None


def _check_options(options: Mapping[str, Any]) -> None:
    wrong = [
        Problem(
            f"model.options.{name}",
            "no such option for a model of a task",
            nearest(name, LOAD_OPTIONS) or f"it takes: {', '.join(LOAD_OPTIONS)}",
        )
        for name in options
        if name not in LOAD_OPTIONS
    ]
    if wrong:
        raise SpecError(wrong)


def _named_classes(config: Any) -> tuple[str, ...]:
    names = [str(config.id2label[code]) for code in sorted(config.id2label or {})]
    return () if all(name.startswith(_NAMELESS) for name in names) else tuple(names)


def _name_classes(
    config: Any, labels: Sequence[str], where: str, options: Mapping[str, Any]
) -> None:
    theirs = _named_classes(config)
    if set(theirs) == set(labels) and theirs != tuple(labels):
        raise ModelError(
            f"numbers its classes in another order: {', '.join(theirs[:12])}",
            where=where,
            hint="read the rows with labels_of(model), so that the head keeps its meaning",
        )
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: code for code, label in enumerate(labels)}


def _check_parts(model: Any, report: Any, where: str, new_parts: bool) -> None:
    """Refuse a model of which more was made up than a head."""
    missing = set(report["missing_keys"])
    missing |= {key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]}
    prefix = f"{model.base_model_prefix}."
    inside = {key for key in missing if key.startswith(prefix) and "pooler" not in key}
    if inside or (missing and not new_parts):
        lost = sorted(inside or missing)
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise ModelError(
            f"has no weights for {', '.join(lost[:3])}{more} of {type(model).__name__}",
            where=where,
            hint=None if inside else "a model is needed that was trained with this head",
        )


def _settle_tokenizer(model: Any, tokenizer: Any, where: str) -> None:
    """A padding token for models that have none, and one limit of length for both."""
    if tokenizer.pad_token is None:
        token = tokenizer.eos_token or tokenizer.unk_token
        if token is None:
            raise ModelError("its tokenizer has neither a padding nor an end token", where=where)
        tokenizer.pad_token = token
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise ModelError(
            f"its tokenizer has {len(tokenizer)} tokens, the model "
            f"{model.get_input_embeddings().num_embeddings}",
            where=where,
        )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    generation = getattr(model, "generation_config", None)
    if generation is not None and generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id
    limit = token_limit(model.config, tokenizer)
    tokenizer.model_max_length = _NO_LIMIT if limit is None else limit


@contextmanager
def _as_model_error(where: str) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except LuthierError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError,
            SafetensorError) as error:  # fmt: skip
        text = str(error)
        hint = None
        if "trust_remote_code" in text:
            hint = trust.HINT
        elif "size mismatch" in text or "ignore_mismatched_sizes" in text:
            hint = "model options: ignore_mismatched_sizes=true gives it a new head of that size"
        first = text.strip().split("\n", 1)[0] or type(error).__name__
        raise ModelError(f"cannot be loaded ({first:.300})", where=where, hint=hint) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without progress bars, and without what transformers logs of made-up weights: what
    matters of that is checked here. (The room of models has its like, but loading that loads
    sentence-transformers, which no task needs.)"""
    import logging

    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.ERROR)
    theirs.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()  # type: ignore[no-untyped-call]
