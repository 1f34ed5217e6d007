"""Names, options and places of models, all known without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from luthier.errors import ModelError, NotFound
from luthier.models.catalog import (
    CARDS,
    describe_models,
    list_model_options,
    list_models,
    problems,
    resolve,
)
from luthier.spec import ModelSpec

FINETUNER_TEXT = {
    "bert-base-en",
    "bert-base-multi",
    "sbert-base-en",
    "distiluse-base-multi",
    *(f"jina-embedding-{size}-en-v1" for size in "tsbl"),
}
FINETUNER_OTHER = {
    "resnet-base",
    "resnet-large",
    "efficientnet-base",
    "efficientnet-large",
    "efficientnet_b0",
    "efficientnet_b4",
    "resnet50",
    "resnet152",
    "clip-base-en",
    "clip-large-en",
    "clip-base-multi",
    "pointnet-base",
    "mlp",
}


def fields(spec: ModelSpec) -> list[str]:
    return [problem.field for problem in problems(spec)]


def test_every_name_of_finetuner_is_known() -> None:
    names = {card.name for card in CARDS if card.kind == "model"}
    assert names >= FINETUNER_TEXT | FINETUNER_OTHER


def test_only_what_can_be_tuned_is_listed() -> None:
    assert set(list_models()) == FINETUNER_TEXT | {"all-minilm-l6-v2"}
    assert list_models("text-to-text") == list_models()
    assert list_models("image-to-image") == []
    with pytest.raises(NotFound, match="text-to-text"):
        list_models("text2text")


@pytest.mark.parametrize("name", sorted(FINETUNER_OTHER))
def test_models_of_other_modalities_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ModelError, match="this version tunes text models") as refused:
        resolve(name)
    assert refused.value.hint is not None
    assert "all-minilm-l6-v2" in refused.value.hint
    assert fields(ModelSpec(name=name)) == ["model.name"]


def test_the_table_shows_each_model(capsys: pytest.CaptureFixture[str]) -> None:
    describe_models("text-to-text")
    shown = capsys.readouterr().out
    assert "Apache-2.0" in shown
    assert "384" in shown


def test_options_of_a_model_are_listed() -> None:
    (options,) = list_model_options("bert-base-en").values()
    assert {o["name"] for o in options} >= {"pooler", "pooler_options", "max_seq_length"}
    assert list_model_options("owner/some-model")["owner/some-model"] == options
    with pytest.raises(ModelError):
        list_model_options("resnet50")
    with pytest.raises(ModelError):
        list_model_options("bert-base-enn")


def test_catalog_names_become_hub_ids_or_the_installed_package() -> None:
    assert resolve("bert-base-en").hub_id == "google-bert/bert-base-cased"
    found = resolve("all-minilm-l6-v2")
    if found.path is None:
        assert found.hub_id == "sentence-transformers/all-MiniLM-L6-v2"
    else:
        assert (found.path / "modules.json").is_file()


@pytest.mark.parametrize(
    "name",
    ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "../nowhere", "a/b/c", ".", "data\\model"],
)
def test_what_looks_like_a_path_is_never_taken_for_a_hub_id(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = problems(ModelSpec(name=name))
    assert [p.field for p in found] == ["model.name"]
    assert "hub" not in found[0].message


def test_a_mistyped_folder_suggests_its_neighbour(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="no such folder") as missing:
        resolve(str(tiny_model.parent / "modle"))
    assert missing.value.hint == "did you mean 'model'?"


def test_an_existing_folder_is_a_folder(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_model.parent)
    assert resolve("model").path == tiny_model.resolve()


@pytest.mark.parametrize(
    "name", ["own er/model", "owner/-model", "owner/mo..del", "owner/", "owner /x"]
)
def test_hub_ids_have_a_syntax(name: str) -> None:
    with pytest.raises(ModelError):
        resolve(name)


def test_a_bare_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ModelError) as unknown:
        resolve("bert-base-eng")
    assert unknown.value.hint == "did you mean 'bert-base-en'?"


def test_a_hub_id_is_taken_as_it_is() -> None:
    assert resolve("owner/model_x.1").hub_id == "owner/model_x.1"


@pytest.mark.parametrize(
    ("options", "field", "hint"),
    [
        ({"poler": "mean"}, "model.options.poler", "did you mean 'pooler'?"),
        ({"pooler": "Gem"}, "model.options.pooler", "did you mean 'GeM'?"),
        ({"pooler": 3}, "model.options.pooler", None),
        ({"pooler_options": {"p": 3}}, "model.options.pooler_options", None),
        (
            {"pooler": "mean", "pooler_options": {"p": 3}},
            "model.options.pooler_options.p",
            "it takes none",
        ),
        ({"pooler": "GeM", "pooler_options": {"p": 0}}, "model.options.pooler_options.p", None),
        ({"pooler": "GeM", "pooler_options": {"ep": 1}}, "model.options.pooler_options.ep", None),
        ({"pooler": "GeM", "pooler_options": 3}, "model.options.pooler_options", None),
        ({"max_seq_length": 2}, "model.options.max_seq_length", None),
        ({"max_seq_length": 8.5}, "model.options.max_seq_length", None),
        ({"max_seq_length": True}, "model.options.max_seq_length", None),
        ({"max_seq_length": 65}, "model.options.max_seq_length", "at most 64"),
        ({"dropout": 1.0}, "model.options.dropout", None),
        ({"dropout": "0.1"}, "model.options.dropout", None),
        ({"dtype": "float16"}, "model.options.dtype", None),
        ({"trust_remote_code": True}, "model.options.trust_remote_code", None),
        ({"attn_implementation": "flash"}, "model.options.attn_implementation", None),
        ({"revision": "main"}, "model.options.revision", None),
    ],
)
def test_wrong_options_are_found_before_anything_is_loaded(
    tiny_model: Path, options: dict[str, object], field: str, hint: str | None
) -> None:
    found = problems(ModelSpec(name=str(tiny_model), options=options))
    assert [problem.field for problem in found] == [field]
    assert hint is None or found[0].hint == hint


def test_right_options_are_no_problem(tiny_model: Path) -> None:
    options = {
        "pooler": "GeM",
        "pooler_options": {"p": 4, "eps": 1e-5},
        "max_seq_length": 64,
        "dropout": 0.1,
        "attn_implementation": "eager",
        "revision": None,
    }
    assert problems(ModelSpec(name=str(tiny_model), options=options, output_dim=8)) == []
    assert problems(ModelSpec(name="owner/model", options={"revision": "v1"})) == []


def test_freezing_needs_something_to_train(tiny_model: Path) -> None:
    name = str(tiny_model)
    assert fields(ModelSpec(name=name, freeze=True)) == ["model.freeze"]
    assert fields(ModelSpec(name=name, freeze=True, output_dim=8)) == []
    # Whether an artifact has a head is seen when it is opened.
    assert fields(ModelSpec(name=name, freeze=True, artifact="abcd")) == []


def test_a_revision_beside_an_artifact_would_be_dropped() -> None:
    spec = ModelSpec(name="owner/model", options={"revision": "v1"}, artifact="abcd")
    assert fields(spec) == ["model.options.revision"]


def test_all_problems_are_reported_together() -> None:
    spec = ModelSpec(name="./nowhere", options={"poler": 1, "dropout": 2}, freeze=True)
    assert fields(spec) == [
        "model.name",
        "model.options.poler",
        "model.options.dropout",
        "model.freeze",
    ]


def test_none_of_this_imports_torch() -> None:
    script = (
        "import sys\n"
        "from luthier.models.catalog import describe_models, list_model_options, problems\n"
        "from luthier.spec import ModelSpec\n"
        "describe_models(); list_model_options('bert-base-en')\n"
        "problems(ModelSpec(name='all-minilm-l6-v2', options={'pooler': 'GeM'}))\n"
        "bad = {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)
