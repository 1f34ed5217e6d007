"""Tiny models, and the steps in folders of a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from component_world import Steps

from luthier.testing.models import tiny_text_model
from luthier.testing.task_models import CHAT_TEMPLATE, tiny_gpt2, tiny_t5, tiny_vit


@pytest.fixture(autouse=True)
def _threads(one_thread: None) -> None:
    """Every test here is on one thread."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    """``tiny(task_name)``: the folder of a tiny model that can learn the task."""
    made: dict[str, Path] = {}

    def get(task_name: str) -> Path:
        kind = {
            "Summarization": "t5", "Translation": "t5", "TextGeneration": "gpt2",
            "ChatCompletion": "chat", "ImageClassification": "vit",
        }.get(task_name, "bert")  # fmt: skip
        if kind not in made:
            folder = tmp_path_factory.mktemp("tiny") / kind
            if kind == "bert":
                tiny_text_model(folder, pooling=None, dropout=0.1)
            elif kind == "chat":
                tiny_gpt2(folder, template=CHAT_TEMPLATE)
            else:
                {"t5": tiny_t5, "gpt2": tiny_gpt2, "vit": tiny_vit}[kind](folder)
            made[kind] = folder
        return made[kind]

    return get


@pytest.fixture
def steps(tmp_path: Path, tiny: Any):
    """``steps(task_name)`` in a folder of this test."""

    def make(task_name: str = "SingleLabelClassification", folder: str = "work") -> Steps:
        (tmp_path / folder).mkdir(exist_ok=True)
        return Steps(tmp_path / folder, tiny, task_name)

    return make


@pytest.fixture(scope="session")
def _ready_once(tmp_path_factory: pytest.TempPathFactory, tiny: Any) -> Steps:
    made = Steps(tmp_path_factory.mktemp("ready"), tiny)
    made.select()
    made.prepare()
    return made


@pytest.fixture
def ready(tmp_path: Path, tiny: Any, _ready_once: Steps) -> Steps:
    """A text classification whose first two steps are done; other outputs are this test's."""
    mine = Steps(tmp_path, tiny)
    mine.selected, mine.prepared = _ready_once.selected, _ready_once.prepared
    return mine
