"""What a model's folder holds, read without torch: its kind, its modules, its limits.

Everything that can be wrong with the files of a model is found here, before anything is
loaded, so that a job with a broken model is refused when it is submitted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.errors import ModelError

#: The only classes besides sentence-transformers' own that a model's folder may name.
OUR_MODULES = ("luthier.models.pooling.GeM",)

#: In a folder of two towers: what says which route has which modules.
ROUTER = "router_config.json"

#: A safetensors header above this is an attack or garbage (the format's own limit).
_MAX_HEADER_BYTES = 100_000_000

_TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


@dataclass(frozen=True)
class ModelFolder:
    """The facts of a folder with a text encoder.

    modules: class names in order (``Transformer``, ``Pooling``, …); empty in a plain
    transformers folder. head: a Dense layer follows the pooling. positions: the most tokens
    that the encoder has positions for; None when nothing limits it. foreign_modules: classes
    in modules.json that are neither sentence-transformers' nor ours. own_code: classes of the
    encoder that come with the files, needed only where transformers lacks the architecture.
    towers: there are two, of queries and of items; the facts are those of the items'.
    """

    path: Path
    kind: Literal["sentence-transformers", "transformers"]
    modules: tuple[str, ...]
    head: bool
    positions: int | None
    model_type: str
    dropout_fields: tuple[str, ...]
    foreign_modules: tuple[str, ...] = ()
    own_code: tuple[str, ...] = ()
    towers: bool = False


def read_folder(path: Path) -> ModelFolder:
    """Read and check a folder. Raises ModelError that names the file that is wrong."""
    if not path.is_dir():
        what = "is a file, not the folder of a model" if path.exists() else "no such folder"
        raise ModelError(what, where=str(path), hint="give the folder that holds config.json")
    if is_router(path):
        return _read_router(path)
    modules = _modules(path)
    root = path
    if modules:
        root = path / str(modules[0].get("path", ""))
        for module in modules[1:]:
            _check_module(path, module)
    config_file = root / "config.json"
    if (root / "adapter_config.json").exists() or (path / "adapter_config.json").exists():
        raise ModelError(
            "is an adapter, not a whole model",
            where=str(path / "adapter_config.json"),
            hint="merge it into its base model first (peft: merge_and_unload)",
        )
    if not config_file.exists():
        raise ModelError(
            "is not the folder of a model: it has no config.json",
            where=str(config_file.parent),
            hint="a sentence-transformers or transformers folder is needed",
        )
    config = _mapping(config_file)
    if "model_type" not in config:
        raise ModelError("names no model_type", where=str(config_file))
    _check_weights(root)
    if not any((root / name).exists() for name in _TOKENIZERS):
        raise ModelError(
            "has no tokenizer", where=str(root), hint=f"one of {', '.join(_TOKENIZERS)} is needed"
        )
    for name in ("tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"):
        if (root / name).exists():
            _mapping(root / name)
    names = tuple(str(m["type"]).rpartition(".")[2] for m in modules)
    return ModelFolder(
        path=path,
        kind="sentence-transformers" if modules else "transformers",
        modules=names,
        head="Dense" in names,
        positions=positions_of(config),
        model_type=str(config["model_type"]),
        dropout_fields=dropout_fields(config),
        foreign_modules=_foreign(modules),
        own_code=tuple(str(v) for v in (config.get("auto_map") or {}).values()),
    )


def is_router(path: Path) -> bool:
    """Whether a folder holds the two towers of a sentence-transformers Router."""
    return (path / ROUTER).is_file() and (path / "modules.json").is_file()


def _read_router(path: Path) -> ModelFolder:
    """The facts of the items' tower; both are checked."""
    told = _mapping(path / ROUTER)
    structure, types = told.get("structure"), told.get("types")
    if not isinstance(structure, dict) or not isinstance(types, dict):
        raise ModelError("has no structure and types", where=str(path / ROUTER))
    if set(structure) != {"query", "document"}:
        raise ModelError(
            f"has the routes {', '.join(map(str, structure))}",
            where=str(path / ROUTER),
            hint="the routes of two towers are query and document",
        )
    found = [_read_route(path, list(structure[route]), types) for route in ("query", "document")]
    return found[1]


def _read_route(path: Path, names: list[str], types: dict[str, Any]) -> ModelFolder:
    modules = [{"type": str(types.get(name, "")), "path": name} for name in names]
    for module in modules:
        part = Path(str(module["path"]))
        if part.is_absolute() or ".." in part.parts:
            raise ModelError(f"names a module outside the folder: {part}", where=str(path / ROUTER))
    if not modules or not modules[0]["type"].endswith(".Transformer"):
        raise ModelError("a route starts with no Transformer", where=str(path / ROUTER))
    for module in modules[1:]:
        _check_module(path, module)
    root = path / modules[0]["path"]
    config = _mapping(root / "config.json")
    _check_weights(root)
    classes = tuple(m["type"].rpartition(".")[2] for m in modules)
    return ModelFolder(
        path=path,
        kind="sentence-transformers",
        modules=classes,
        head="Dense" in classes,
        positions=positions_of(config),
        model_type=str(config["model_type"]),
        dropout_fields=dropout_fields(config),
        foreign_modules=_foreign(modules),
        own_code=tuple(str(v) for v in (config.get("auto_map") or {}).values()),
        towers=True,
    )


def dropout_fields(config: dict[str, Any]) -> tuple[str, ...]:
    """The dropout probabilities of a transformers config, by the names that they have there.

    Layer drop (whole layers left out) is another thing and is not among them.
    """
    return tuple(
        name
        for name, value in config.items()
        if "drop" in name
        and "layer" not in name.replace("layer_norm", "")
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    )


def _modules(path: Path) -> list[dict[str, Any]]:
    file = path / "modules.json"
    if not file.exists():
        return []
    modules = _json(file)
    if (
        not isinstance(modules, list)
        or not modules
        or not all(isinstance(m, dict) and {"type", "path"} <= m.keys() for m in modules)
    ):
        raise ModelError("is not a list of modules with type and path", where=str(file))
    for module in modules:
        part = Path(str(module["path"]))
        if part.is_absolute() or ".." in part.parts:
            raise ModelError(f"names a module outside the folder: {part}", where=str(file))
    first = str(modules[0]["type"]).rpartition(".")[2]
    if first != "Transformer":
        raise ModelError(
            f"starts with the module {first}, not with a Transformer",
            where=str(file),
            hint="this version tunes transformer encoders of text",
        )
    return modules


def _check_module(path: Path, module: dict[str, Any]) -> None:
    name, folder = str(module["type"]).rpartition(".")[2], path / str(module["path"])
    config = folder / "config.json"
    if name not in ("Normalize", "Dropout", "LayerNorm") and not config.exists():
        raise ModelError(f"the module {name} has no config.json", where=str(config))
    if config.exists():
        _mapping(config)
    if name == "Dense":
        _check_weights(folder)


def _foreign(modules: list[dict[str, Any]]) -> tuple[str, ...]:
    names = [str(m["type"]) for m in modules]
    return tuple(
        n for n in names if not n.startswith("sentence_transformers.") and n not in OUR_MODULES
    )


def positions_of(config: dict[str, Any]) -> int | None:
    """Token positions, without those that RoBERTa and its kin lose to their padding index."""
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if not isinstance(positions, int) or positions <= 0:
        return None
    if config["model_type"] in ("t5", "mt5", "umt5"):  # relative positions: no limit
        return None
    if config["model_type"] == "mpnet":  # its padding index is 1, whatever the config says
        return positions - 2
    if config["model_type"] in ("roberta", "xlm-roberta", "camembert", "longformer"):
        return positions - (int(config.get("pad_token_id") or 0) + 1)
    return positions


def _check_weights(folder: Path) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    for file in shards:
        check_safetensors(file)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        for name in sorted(set(_mapping(index).get("weight_map", {}).values())):
            if not (folder / str(name)).exists():
                raise ModelError("is missing", where=str(folder / str(name)))
    elif not shards and not list(folder.glob("pytorch_model*.bin")):
        raise ModelError(
            "has no weights",
            where=str(folder),
            hint="model.safetensors, or pytorch_model.bin, is needed",
        )


def check_safetensors(file: Path) -> None:
    """Whether a file has the header and the length that safetensors promises.

    Raises ModelError. The numbers themselves carry no checksum: luthier's own artifacts have
    a manifest for that.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise ModelError("is not a safetensors file, or was cut short", where=str(file))
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for k, entry in header.items() if k != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise ModelError("has a header that is not safetensors", where=str(file)) from None
    if 8 + length + max(ends, default=0) != size:
        raise ModelError(
            f"has {size} bytes where its header promises {8 + length + max(ends, default=0)}",
            where=str(file),
            hint="the file was cut short or overwritten: copy it again",
        )


def _mapping(file: Path) -> dict[str, Any]:
    found = _json(file)
    if not isinstance(found, dict):
        raise ModelError("is not a JSON object", where=str(file))
    return found


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"cannot be read as JSON ({error})", where=str(file)) from None
