"""What the trials of a search have in common is measured once."""

from __future__ import annotations

import json
from dataclasses import replace

from luthier.runs.connection import Home
from luthier.runs.records import RunRecord
from luthier.spec import parse_spec
from luthier.worker.baselines import keep_baseline, recall_baseline


def trial(home: Home, number: int, search: str = "a search", **training: object) -> RunRecord:
    spec = {
        "model": {"name": "m"},
        "data": {"train": {"uri": "/rows.csv"}},
        "training": {"learning_rate": 0.1 / number, **training},
    }
    record = home.submit(parse_spec(spec)).record()
    record = replace(record, parent_id=search)
    home.run_folder(record).mkdir(parents=True, exist_ok=True)
    return record


def test_a_trial_has_what_an_earlier_one_measured(home: Home) -> None:
    first, second = trial(home, 1), trial(home, 2)
    folder = home.run_folder(first)
    (folder / "before.json").write_text('{"ndcg": 0.5}')
    (folder / "resolved.json").write_text('{"execution": ["packed"], "no_prefix": "2 epochs"}')
    keep_baseline(home, first)
    recall_baseline(home, second)
    found = home.run_folder(second)
    assert json.loads((found / "before.json").read_text()) == {"ndcg": 0.5}
    # How often texts are visited may differ from trial to trial.
    assert json.loads((found / "resolved.json").read_text()) == {"execution": ["packed"]}


def test_what_a_trial_has_decided_is_left_to_it(home: Home) -> None:
    first, second = trial(home, 1), trial(home, 2)
    for run, word in ((first, "packed"), (second, "chunked")):
        (home.run_folder(run) / "resolved.json").write_text(json.dumps({"execution": [word]}))
    keep_baseline(home, first)
    recall_baseline(home, second)
    kept = json.loads((home.run_folder(second) / "resolved.json").read_text())
    assert kept == {"execution": ["chunked"]}


def test_others_share_nothing(home: Home) -> None:
    """A trial of another search, one whose seed is another, and a run that is no trial."""
    first = trial(home, 1)
    (home.run_folder(first) / "before.json").write_text("{}")
    keep_baseline(home, first)
    alone = replace(trial(home, 4), parent_id=None)
    for other in (trial(home, 2, search="another"), trial(home, 3, seed=7), alone):
        recall_baseline(home, other)
        assert not (home.run_folder(other) / "before.json").exists()
