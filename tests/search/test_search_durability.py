"""Searches under kill -9. The full form: python -m luthier.testing.durability --search-kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.testing.durability.checks import cancel_is_final, late_trials, no_orphans
from luthier.testing.durability.guards import MUTANTS, delete_guards
from luthier.testing.durability.searches import kill_searches
from luthier.testing.forkserver import ForkServer


def test_killed_searches_end_as_undisturbed_ones(
    tmp_path: Path, forks: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_WORKER", "none")
    score, wrong = kill_searches(tmp_path, forks, 8, pause_s=0.5, seed=1)
    assert wrong == []
    assert score.trials == 8


def test_deleted_guards_of_searches_are_noticed(tmp_path: Path) -> None:
    mine = tuple(m for m in MUTANTS if m.check in (late_trials, no_orphans, cancel_is_final))
    assert len(mine) == 4
    score, wrong = delete_guards(tmp_path, mine)
    assert wrong == []
    assert score.trials == 4
