"""``luthier component`` as a test calls it: without a process of its own, unlike its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from luthier.cli import main


@dataclass
class Done:
    """What a command line left, as a process would have."""

    returncode: int
    stdout: str
    stderr: str


def command(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Done]:
    """``call(folder, *words)``: the command, called in that folder."""

    def call(folder: Any, *words: Any) -> Done:
        monkeypatch.chdir(folder)
        capfd.readouterr()
        code = main.run(["component", *map(str, words)])
        return Done(code, *capfd.readouterr())

    return call
