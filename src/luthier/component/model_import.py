"""``import``: a pretrained model, or one tuned before, becomes the start of a pipeline.

Files are copied, never linked: an output must stay what it is. Only what a model is made of is
taken: configuration, weights, tokenizer. No path in any of those files is followed out of its
folder.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.component.folders import check_apart, output, plain_files, write_json, write_marker
from luthier.doors.component_table import TASKS
from luthier.engine.control import Listener
from luthier.errors import LuthierError, ModelError, Problem, SpecError, UnsafeLocation
from luthier.models import trust
from luthier.models.catalog import is_path, resolve
from luthier.registry import find
from luthier.store.bundle import sha256_of

#: What a model is made of.
_PARTS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.spm", "*.jinja", "*.tiktoken")
#: What lies beside a model and is not part of it: outputs of steps, reports, trainers' states.
_NOT_PARTS = (
    *("model_selector_args.json", "finetune_config.json", "preprocess_args.json"),
    *("finetune_args.json", "metrics.json", "report.json", "label_maps.json", "registered_*"),
    *("trainer_state.json", "training_args.json", "all_results.json", "*_results.json"),
    *(
        "*.bin.index.json",
        "requirements.txt",
        "adapter_*",
        "modules.json",
        "config_sentence_transformers.json",
    ),
)
_PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
_CODE = ("*.py",)

_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}\Z", re.ASCII)

#: The loader of MLflow models that luthier writes.
_LOADER = "luthier.serving.pyfunc"


@dataclass(frozen=True)
class Found:
    """Where a model is, and what it is called."""

    folder: Path
    name: str


def import_model(args: Mapping[str, Any], tell: Listener) -> dict[str, Any]:
    """Carry out the step; what it made, as JSON data. args: as ``parse("import", …)`` gave.

    Raises ModelError: no model, or none for this task; UnsafeLocation: a link or a name in it
    that leads out of its folder; Conflict: the output holds something else.
    """
    check_apart("import", args)
    place, task = Path(args["model_selector_output"]), TASKS[args["task_name"]]
    found = _located(args)
    tell("stage", {"name": f"importing {found.name}"})
    with output(place, "import") as new:
        names = _copied(found.folder, new)
        facts = {"model_name": found.name, "task": task, **_checked(new, task, str(found.folder))}
        files = {name: sha256_of(new / name) for name in sorted(p.name for p in new.iterdir())}
        write_json(new / "finetune_config.json", {"format": 1, **facts})
        write_marker(new, "import", args, {**facts, "files": files})
    message = f"{found.name}: {facts['model_type']}, {len(names)} files for {task}"
    tell("log", {"level": "info", "message": message})
    return {"step": "import", "model_selector_output": str(place), **facts}


def _located(args: Mapping[str, Any]) -> Found:
    if args["huggingface_id"]:
        return _of_the_hub(str(args["huggingface_id"]))
    if args["mlflow_model_path"]:
        folder = _folder(args["mlflow_model_path"], "mlflow_model_path")
        return Found(mlflow_data(folder), folder.name)
    flag = "pytorch_model_path" if args["pytorch_model_path"] else "model_path"
    folder = _folder(args[flag], flag)
    if (folder / "MLmodel").is_file():
        message = f"{flag}: is an MLflow model"
        raise ModelError(message, where=str(folder), hint="give it as mlflow_model_path")
    return Found(folder, folder.name)


def _folder(path: Any, flag: str) -> Path:
    folder = Path(str(path)).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "there is no such folder"
        raise ModelError(f"{flag}: {what}", where=str(folder))
    return folder


def _of_the_hub(name: str) -> Found:
    hint = "a hub id has the form owner/name; model_path is for folders"
    if ".." in name or "--" in name or not _HUB_ID.match(name):
        raise SpecError([Problem("huggingface_id", f"'{name}' is no id of a model", hint)])
    try:
        located = None if is_path(name) else resolve(name)
    except ModelError as error:
        if "/" in name or not error.message.startswith("no model is called"):
            raise
        located = None  # the oldest models of the hub have no owner: gpt2, t5-small
    if located is not None and located.path is not None:
        return Found(located.path, name)
    return Found(_downloaded(located.hub_id or name if located is not None else name), name)


def _downloaded(hub_id: str) -> Path:
    """The model's files in the hub's own cache, downloaded where they are not there."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    def fetch(patterns: tuple[str, ...]) -> Path:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(patterns)))

    try:
        folder = fetch((*_PARTS, *(_CODE if trust.trusted() else ())))
        return folder if any(folder.glob("*.safetensors")) else fetch((*_PARTS, *_PICKLED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().split("\n", 1)[0].split(". ", 1)[0]
        raise ModelError(
            f"cannot be had from the Hugging Face hub ({first:.200})",
            where=hub_id,
            hint="check the name, the network and HF_TOKEN, or download it and give model_path",
        ) from error


def mlflow_data(folder: Path) -> Path:
    """The transformers folder within an MLflow model that luthier wrote."""
    import yaml

    file = folder / "MLmodel"
    try:
        flavor = yaml.safe_load(file.read_text(encoding="utf-8"))["flavors"]["python_function"]
        loader, data = flavor["loader_module"], flavor["data"]
    except FileNotFoundError:
        raise ModelError("is no MLflow model: there is no MLmodel", where=str(folder)) from None
    except (KeyError, TypeError, ValueError, yaml.YAMLError, OSError) as error:
        raise ModelError(f"cannot be read as MLflow's ({error})", where=str(file)) from None
    if loader != _LOADER:
        raise ModelError(
            f"is an MLflow model of {loader}, not of luthier",
            where=str(folder),
            hint="give the transformers folder within it as model_path",
        )
    inner = (folder / str(data)).resolve()
    if folder.resolve() not in inner.parents:
        raise UnsafeLocation(f"MLmodel says that its data is in '{data}'", where=str(file))
    if not inner.is_dir():
        raise ModelError(f"its folder '{data}' is missing", where=str(folder))
    return inner


def _copied(source: Path, place: Path) -> list[str]:
    """Copy what the model is made of; the names. Pickled weights become safetensors."""
    files = plain_files(source)
    if "config.json" not in files:
        raise _no_model(source, files)
    wanted = [n for n in files if _is_any(n, _PARTS) and not _is_any(n, _NOT_PARTS)]
    wanted += [n for n in files if _is_any(n, _CODE) and trust.trusted()]
    _check_index(source, files)
    for name in wanted:
        shutil.copyfile(files[name], place / name)
    if not any(name.endswith(".safetensors") for name in wanted):
        pickled = [name for name in files if _is_any(name, _PICKLED)]
        if not pickled:
            message = "holds no weights: no .safetensors, nor a pytorch_model.bin"
            raise ModelError(message, where=str(source))
        _convert(source, place)
        wanted += [path.name for path in place.glob("*.safetensors")]
    return wanted


def _no_model(folder: Path, files: Mapping[str, Path]) -> ModelError:
    if "adapter_config.json" in files:
        return ModelError(
            "holds an adapter without its model",
            where=str(folder),
            hint="a finetune with merge_lora_weights=true writes a model that stands by itself",
        )
    inside = [path.name for path in folder.iterdir() if (path / "config.json").is_file()]
    hint = f"did you mean '{folder / inside[0]}'?" if inside else None
    return ModelError("holds no model: there is no config.json", where=str(folder), hint=hint)


def _check_index(source: Path, files: Mapping[str, Path]) -> None:
    """The names that an index has of its shards must be those of files beside it."""
    for index in (name for name in files if name.endswith(".index.json")):
        try:
            shards = set(
                json.loads(files[index].read_text(encoding="utf-8"))["weight_map"].values()
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"cannot be read ({error})", where=str(source / index)) from None
        for shard in sorted(map(str, shards)):
            if Path(shard).name != shard:
                message = f"names weights outside of its folder: {shard}"
                raise UnsafeLocation(message, where=str(source / index))
            if shard not in files:
                raise ModelError(f"its weights {shard} are missing", where=str(source))


def _convert(source: Path, place: Path) -> None:
    """Read pickled weights, tensors only, and write them as safetensors."""
    import transformers

    with _as_model_error(source):
        config = transformers.AutoConfig.from_pretrained(str(source))
        name = (getattr(config, "architectures", None) or ["AutoModel"])[0]
        model_class = getattr(transformers, name, transformers.AutoModel)
        model = model_class.from_pretrained(str(source), weights_only=True)
        model.save_pretrained(str(place))


def _checked(folder: Path, task: str, where: str) -> dict[str, Any]:
    """What is known of a model, once it was seen to be one for this task: its configuration,
    the heads of its weights, its tokenizer."""
    import transformers
    from safetensors import safe_open

    kind = find("task", task).load()
    with _as_model_error(where):
        config = transformers.AutoConfig.from_pretrained(
            str(folder), trust_remote_code=trust.trusted()
        )
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                opened.keys()
        reader = transformers.AutoImageProcessor if kind.of_images else transformers.AutoTokenizer
        reader.from_pretrained(str(folder), trust_remote_code=trust.trusted())
    fitting = getattr(transformers, kind.auto_class)._model_mapping
    remote = kind.auto_class in (getattr(config, "auto_map", None) or {})
    if type(config) not in fitting and not remote:
        raise ModelError(
            f"a model of the kind '{config.model_type}' cannot learn {task}",
            where=where,
            hint=f"transformers has no {kind.auto_class.removeprefix('AutoModelFor')} head for it",
        )
    names = [str(config.id2label[code]) for code in sorted(config.id2label or {})]
    return {
        "model_type": config.model_type,
        "auto_class": kind.auto_class,
        "labels": [] if all(name.startswith("LABEL_") for name in names) else names,
    }


class _as_model_error:
    """Turns what transformers and safetensors raise into ModelError with the path."""

    def __init__(self, where: Path | str) -> None:
        self._where = str(where)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        from safetensors import SafetensorError

        known = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError,
                 ImportError, SafetensorError)  # fmt: skip
        if not isinstance(error, known) or isinstance(error, LuthierError):
            return
        first = str(error).strip().split("\n", 1)[0] or type(error).__name__
        hint = None
        if "trust_remote_code" in str(error):
            hint = trust.HINT
        raise ModelError(
            f"cannot be loaded ({first:.300})", where=self._where, hint=hint
        ) from error


def _is_any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
