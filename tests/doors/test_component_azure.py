"""azure-ai-ml itself loads what we write: components, pipelines and a job around one.

It lives in a venv of its own (scripts/setup_azure), and sends nothing anywhere.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.doors.component_pipeline import job_yaml, pipeline_files
from luthier.doors.component_table import TABLE, TASKS

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, sys
from pathlib import Path
from azure.ai.ml import load_component, load_job
found = {}
for file in sorted(Path(sys.argv[1]).glob("*/*.yaml")):
    name = f"{file.parent.name}/{file.name}"
    try:
        load = load_job if file.name == "job.yaml" else load_component
        made = load(source=file)
        result = made._validate()
        found[name] = {
            "kind": type(made).__name__, "passed": result.passed, "errors": result.error_messages,
            "inputs": len(made.inputs), "outputs": len(made.outputs),
            "jobs": list(getattr(made, "jobs", None) or ()),
        }
    except Exception as error:
        found[name] = {"passed": False, "errors": str(error)}
print(json.dumps(found))
"""


def _python() -> str:
    """An interpreter that has azure-ai-ml; the test is skipped where there is none."""
    for place in (os.environ.get("LUTHIER_AZURE_PYTHON"), ROOT / ".venv/azure/bin/python"):
        if place and Path(place).is_file():
            return str(place)
    if importlib.util.find_spec("azure") and importlib.util.find_spec("azure.ai.ml"):
        return sys.executable
    pytest.skip("azure-ai-ml is not there; scripts/setup_azure installs it")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """File → what azure-ai-ml says of it."""
    python, folder = _python(), tmp_path_factory.mktemp("azure")
    (folder / "rows.jsonl").write_text("{}\n")
    for task in (None, *TASKS):
        place = folder / (task or "any")
        place.mkdir()
        for name, text in pipeline_files(task).items():
            (place / name).write_text(text, encoding="utf-8")
    (folder / "Summarization" / "job.yaml").write_text(
        job_yaml(
            {"train_file_path": "../rows.jsonl", "huggingface_id": "t5-small"}, "Summarization"
        )
    )
    broken = (folder / "any" / "import.yaml").read_text().replace("type: command", "type: comand")
    (folder / "broken").mkdir()
    (folder / "broken" / "import.yaml").write_text(broken)
    done = subprocess.run(
        [python, "-c", PROGRAM, str(folder)],
        capture_output=True, text=True, timeout=200, check=False,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("task", [None, *TASKS], ids=str)
def test_azure_loads_a_task(found, task):
    for step, rows in TABLE.items():
        about = found[f"{task or 'any'}/{step}.yaml"]
        assert about["passed"], about["errors"]
        assert about["inputs"] + about["outputs"] == len(rows)
    pipeline = found[f"{task or 'any'}/pipeline.yaml"]
    assert pipeline["passed"], pipeline["errors"]
    assert pipeline["kind"] == "PipelineComponent"
    assert pipeline["jobs"] == list(TABLE)
    assert pipeline["outputs"] == 3


def test_azure_loads_a_job_around_a_pipeline(found):
    about = found["Summarization/job.yaml"]
    assert about["passed"], about["errors"]
    assert about["kind"] == "PipelineJob"


def test_azure_would_say_what_is_wrong(found):
    assert not found["broken/import.yaml"]["passed"]
