"""A worker runs in another folder: what a job names must mean the same there."""

from pathlib import Path

from luthier.admission import located
from luthier.doors.fit import fit_spec
from luthier.spec import Source


def test_states_are_whole_paths(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    update = {
        "updater": "ER",
        "input_state_url": Path("before"),
        "output_state_url": "s3://b/after",
    }
    spec = located(fit_spec("all-minilm-l6-v2", Source(uri="/x.csv"), update=update))
    assert spec.update.input_state_url == str(tmp_path / "before")
    assert spec.update.output_state_url == "s3://b/after"
