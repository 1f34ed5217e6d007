"""The only loader of weights: a folder, a hub id or an artifact becomes a TextModel.

Weights are read from safetensors; a ``pytorch_model.bin`` is read with ``weights_only``, which
runs no code of the file. Code that comes with a model is refused, unless the environment
variable LUTHIER_TRUST_REMOTE_CODE is 1.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)
from torch import nn

from luthier.errors import LuthierError, ModelError, SpecError
from luthier.models import trust
from luthier.models.allocator import bound_primitives
from luthier.models.catalog import Located, problems, resolve
from luthier.models.folder import ModelFolder, dropout_fields, is_router, read_folder
from luthier.models.freezing import fix_layers
from luthier.models.pooling import GeM
from luthier.models.text import TextModel
from luthier.spec import ModelSpec

#: Catalog pooler → the mode of sentence-transformers' Pooling.
_POOLING_MODES = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "last": "lasttoken",
    "weighted_mean": "weightedmean",
    "mean_sqrt_len": "mean_sqrt_len_tokens",
}

#: What transformers and sentence-transformers raise for files that are not as they should be.
_BROKEN = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    EOFError,
    pickle.UnpicklingError,
)


def load_text_model(spec: ModelSpec, *, artifact: Path | None, device: str) -> TextModel:
    """Load the encoder that ``spec`` describes.

    Args:
        artifact: folder of an artifact to start from, instead of the pretrained weights.
        device: a torch device, or ``auto``.

    A new projection head is initialised from torch's global random state; pretrained
    weights leave that state as it was. All weights are float32.

    Raises:
        SpecError: the spec's options contradict each other or are unknown.
        ModelError: the files are missing, broken, or not those of a text encoder.
    """
    bound_primitives()
    found = problems(spec)
    if artifact is not None:  # where the pretrained weights once came from no longer matters
        found = [problem for problem in found if problem.field != "model.name"]
    if found:
        raise SpecError(found)
    located = Located(spec.name, path=artifact) if artifact is not None else resolve(spec.name)
    if located.path is not None and is_router(located.path):
        hint = "model.towers='two' trains them on rankings"
        raise ModelError("has two towers, of queries and of items", where=str(located), hint=hint)
    model = _open(located, spec.options, device)
    if "pooler" in spec.options or "pooler_options" in spec.options:
        _set_pooler(model, spec.options, str(located))
    if spec.output_dim is not None:
        _add_head(model, spec.output_dim, continuing=artifact is not None)
    if spec.freeze:
        freeze_all_but_heads(model, str(located))
    loaded = TextModel(model.to(_device(device)))
    if spec.num_fixed_layers:
        fix_layers(loaded, spec.num_fixed_layers, str(located))
    return loaded


def open_text_model(folder: Path, *, device: str = "auto") -> TextModel:
    """Open a folder that ``TextModel.save`` wrote, as it was saved; of two towers, both."""
    if is_router(folder):
        from luthier.models.towers import open_towers

        return cast(TextModel, open_towers(folder, device=device))
    return TextModel(_open(Located(str(folder), path=folder), {}, device).to(_device(device)))


@contextmanager
def quietly() -> Iterator[None]:
    """Without the progress bars that transformers draws for reading and writing weights."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def placed(model: SentenceTransformer, device: str, where: str) -> SentenceTransformer:
    """A model whose modules are at hand, checked and on its device."""
    _check(model, where)
    _limit_length(model, {}, where)
    return model.to(_device(device))


def open_modules(located: Located) -> SentenceTransformer:
    """A folder as it was saved, whatever its modules are; see ``towers.py``."""
    return _open(located, {}, "cpu", check=False)


def _open(
    located: Located, options: Mapping[str, Any], device: str, *, check: bool = True
) -> SentenceTransformer:
    folder = read_folder(located.path) if located.path is not None else None
    trusted = trust.trusted()
    foreign = _foreign_code(folder) if folder is not None else ()
    if folder is not None and foreign and not trusted:
        raise ModelError(
            f"wants to run code of its own: {', '.join(foreign)}",
            where=str(folder.path),
            hint=trust.HINT,
        )
    where = str(located.path or located.hub_id)
    model_options: dict[str, Any] = {"dtype": torch.float32}
    if "attn_implementation" in options:
        model_options["attn_implementation"] = options["attn_implementation"]
    arguments: dict[str, Any] = {
        "device": "cpu",
        "trust_remote_code": trusted,
        "revision": options.get("revision") or located.revision,
        "model_kwargs": model_options,
    }
    with _failing_as_model_error(where, located), quietly():
        arguments["config_kwargs"] = _config_options(where, options, arguments)
        if options.get("max_seq_length") is not None:
            arguments["processor_kwargs"] = {"model_max_length": int(options["max_seq_length"])}
        # A pooler that the file lacks is made up by transformers; ours must not depend on when.
        with _missing_weights(where), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _sentence_transformer(where, arguments)
    if check:
        _check(model, where)
        _limit_length(model, options, where)
    return model


def _sentence_transformer(where: str, arguments: dict[str, Any]) -> SentenceTransformer:
    # sentence-transformers imports only its own modules unless every code is trusted; this hands
    # it the one class of ours instead.
    classes = {f"{GeM.__module__}.{GeM.__name__}": GeM}
    return SentenceTransformer._load_with_module_classes(where, classes, **arguments)


def _foreign_code(folder: ModelFolder) -> tuple[str, ...]:
    """The classes that would have to be imported from the model's own files."""
    from transformers import CONFIG_MAPPING

    own = () if folder.model_type in CONFIG_MAPPING else folder.own_code
    return folder.foreign_modules + own


def _config_options(
    where: str, options: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """All dropout probabilities of the encoder's config, set to the one that is asked for."""
    if options.get("dropout") is None:
        return {}
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        where,
        trust_remote_code=arguments["trust_remote_code"],
        revision=arguments["revision"],
    )
    fields = dropout_fields(config.to_dict())
    if not fields:
        raise ModelError(
            f"{config.model_type} has no dropout to set", where=where, hint="leave out 'dropout'"
        )
    return dict.fromkeys(fields, float(options["dropout"]))


def _check(model: SentenceTransformer, where: str) -> None:
    first = model[0]
    if not isinstance(first, Transformer):
        raise ModelError(
            f"starts with the module {type(first).__name__}, not with a Transformer",
            where=where,
            hint="this version tunes transformer encoders of text",
        )
    if "text" not in first.modality_config or model.tokenizer is None:
        raise ModelError("is not an encoder of text", where=where)
    if "message" in first.modality_config:
        # A template around each text is for chat models; the vectors of plain text are wanted.
        first.modality_config = {"text": first.modality_config["text"]}
        first.input_formatter.supported_modalities = ["text"]
    for name, parameter in first.model.named_parameters():
        # Its output is not pooled: training it would change nothing.
        if name.startswith("pooler."):
            parameter.requires_grad_(False)


def _limit_length(model: SentenceTransformer, options: Mapping[str, Any], where: str) -> None:
    positions = _positions(model[0].model)
    asked = options.get("max_seq_length")
    if positions is None:
        return
    if asked is not None and asked > positions:
        raise ModelError(
            f"max_seq_length {asked} is more than the {positions} positions of the model",
            where=where,
            hint=f"at most {positions}",
        )
    model.tokenizer.model_max_length = min(model.tokenizer.model_max_length, positions)


def _positions(encoder: nn.Module) -> int | None:
    """Rows of the learned position table that a text can use, if there is one."""
    for name, module in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            lost = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - lost
    return None


def _set_pooler(model: SentenceTransformer, options: Mapping[str, Any], where: str) -> None:
    width = model[0].get_embedding_dimension()
    name = options.get("pooler", "mean")
    if name == "GeM":
        pooling: nn.Module = GeM(width, **options.get("pooler_options", {}))
    else:
        pooling = Pooling(width, _POOLING_MODES[name])
    for index, module in enumerate(model):
        if isinstance(module, Pooling | GeM):
            if module.get_embedding_dimension() != width and len(model) > index + 1:
                raise ModelError(
                    f"pools several ways at once, to width {module.get_embedding_dimension()}; "
                    "what follows does not fit another pooler",
                    where=where,
                    hint="leave out 'pooler'",
                )
            model[index] = pooling
            return
    raise ModelError("has no pooling to replace", where=where)


def _add_head(model: SentenceTransformer, output_dim: int, *, continuing: bool) -> None:
    """Linear(d, d), ReLU, Linear(d, output_dim), before a final normalisation.

    An artifact that ends in a head of that width keeps it.
    """
    modules = list(model.children())
    tail: list[nn.Module] = []
    while isinstance(modules[-1], Normalize):
        tail.insert(0, modules.pop())
    if continuing and isinstance(modules[-1], Dense):
        width = modules[-1].out_features
        if width != output_dim:
            raise ModelError(
                f"the artifact already has a head of width {width}, not {output_dim}",
                hint=f"leave out output_dim, or ask for {width}",
            )
        return
    width = next(
        w for m in reversed(modules) if (w := getattr(m, "out_features", None) or _width(m))
    )
    head = [
        Dense(width, width, activation_function=nn.ReLU()),
        Dense(width, output_dim, activation_function=None),
    ]
    while len(model):
        del model[-1]
    for module in (*modules, *head, *tail):
        model.append(module)


def _width(module: nn.Module) -> int | None:
    found = getattr(module, "get_embedding_dimension", lambda: None)()
    return int(found) if found else None


def freeze_all_but_heads(model: SentenceTransformer, where: str) -> None:
    heads = [module for module in model.children() if isinstance(module, Dense)]
    if not heads:
        raise ModelError(
            "freeze leaves nothing to train: the model has no head",
            where=where,
            hint="give output_dim to attach one",
        )
    model.requires_grad_(False)
    for head in heads:
        head.requires_grad_(True)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"no device is called '{name}'", hint="auto, cpu, cuda, cuda:0") from error


@contextmanager
def _failing_as_model_error(where: str, located: Located) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except LuthierError:
        raise
    except (*_BROKEN, SafetensorError) as error:
        first = str(error).strip().split("\n", 1)[0] or type(error).__name__
        if "trust_remote_code" in str(error):
            raise ModelError(
                "wants to run code of its own", where=where, hint=trust.HINT
            ) from error
        if located.path is not None:
            raise ModelError(f"cannot be loaded ({first})", where=where) from error
        raise ModelError(
            f"cannot be loaded from the model hub ({first})",
            where=where,
            hint="is the name right, and is there a network? A folder works without one",
        ) from error


@contextmanager
def _missing_weights(where: str) -> Iterator[None]:
    """Refuse a model of which a part was made up.

    transformers only logs that; its report is caught here (and not shown: heads that the file
    has and the encoder lacks are what one expects of a pretrained model).
    """
    reports: list[str] = []

    def catch(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "LOAD REPORT" not in text:
            return shown
        reports.append(text)
        return False

    logger = logging.getLogger("transformers.modeling_utils")
    level, shown = logger.level, logger.isEnabledFor(logging.WARNING)
    logger.addFilter(catch)
    logger.setLevel(logging.WARNING - 1)  # at WARNING transformers begins to report other things
    try:
        yield
    except RuntimeError as error:
        if rows := _rows(reports, "MISMATCH"):
            name = rows[0]
            raise ModelError(
                f"the weights of {name} have another shape than config.json says", where=where
            ) from error
        raise
    finally:
        logger.setLevel(level)
        logger.removeFilter(catch)
    made_up = [name for name in _rows(reports, "MISSING") if not name.startswith("pooler.")]
    if made_up:
        raise ModelError(
            f"lacks the weights of {', '.join(made_up[:4])}" + (" …" if len(made_up) > 4 else ""),
            where=where,
            hint="the file belongs to another architecture than config.json says",
        )


def _rows(reports: list[str], status: str) -> list[str]:
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", report) for report in reports]
    rows = (line.split("|") for report in plain for line in report.splitlines())
    return [r[0].strip() for r in rows if len(r) > 1 and r[1].strip() == status]
