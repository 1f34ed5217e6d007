"""A task's pipeline is whole and wired, and the lint finds what is not."""

import pytest
import yaml

from luthier.doors.component_lint import lint_component, value_fault
from luthier.doors.component_pipeline import ANY_TASK, WIRES, job_yaml, pipeline_files
from luthier.doors.component_table import METRICS, TABLE, TASKS
from luthier.doors.pipeline_lint import lint_pipeline
from luthier.errors import SpecError


def beside(files):
    return {f"./{name}": text for name, text in files.items()}


@pytest.mark.parametrize("task", [None, *TASKS], ids=str)
def test_a_pipeline_is_without_faults_and_takes_every_parameter(task):
    files = pipeline_files(task)
    pipeline = yaml.safe_load(files["pipeline.yaml"])
    assert lint_pipeline(files["pipeline.yaml"], beside(files)) == []
    for step, rows in TABLE.items():
        assert lint_component(files[f"{step}.yaml"]) == []
        bound = pipeline["jobs"][step]["inputs"]
        for row in rows:
            wired = row.output or (step, row.name) == ("evaluate", "test_file_path")
            if wired or (task and row.tasks and task not in row.tasks):
                assert row.name not in bound
            elif row.name in WIRES[step]:
                source = f"${{{{parent.jobs.{WIRES[step][row.name]}.outputs.{row.name}}}}}"
                assert bound[row.name] == source
            elif row.name == "task_name" and task:
                assert bound[row.name] == task
            else:
                assert bound[row.name] == f"${{{{parent.inputs.{row.name}}}}}"
                about = pipeline["inputs"][row.name]
                assert about.get("default") == (row.text if row.kind == "boolean" else row.default)


def test_a_pipeline_is_its_tasks_own():
    inputs = yaml.safe_load(pipeline_files("Translation")["pipeline.yaml"])["inputs"]
    assert not inputs["source_lang"]["optional"]
    assert "sentence1_key" not in inputs
    assert "task_name" not in inputs
    assert inputs["metric_for_best_model"]["enum"] == ["loss", *METRICS["Translation"]]
    any_task = yaml.safe_load(pipeline_files(None)["pipeline.yaml"])["inputs"]
    assert any_task["task_name"]["enum"] == list(TASKS)
    assert ANY_TASK not in TASKS
    assert any_task["source_lang"]["optional"]


def test_a_job_has_the_values_that_are_given():
    given = {"train_file_path": "a b.csv", "learning_rate": "1e-3", "apply_lora": "TRUE"}
    job = yaml.safe_load(job_yaml(given, "Summarization"))
    assert job["component"] == "./pipeline.yaml"
    assert job["inputs"] == {
        "train_file_path": {"type": "uri_file", "path": "a b.csv"},
        "learning_rate": 0.001,
        "apply_lora": "true",
    }


def test_a_job_is_refused_with_every_fault():
    with pytest.raises(SpecError) as caught:
        job_yaml({"lora_rr": "3", "seed": "-1"}, "Summarization")
    said = str(caught.value)
    for part in ("lora_rr", "did you mean 'lora_r'?", "seed", "train_file_path: is required"):
        assert part in said


ONE = """
name: one
version: 1
inputs:
  text: {type: string}
  file: {type: uri_file, optional: true}
  count: {type: integer, default: 3, min: 1, optional: true}
outputs: {made: {type: uri_folder}}
command: >-
  run ${{inputs.text}} $[[--file ${{inputs.file}}]] $[[--count ${{inputs.count}}]]
  ${{outputs.made}}
"""
TWO = """
name: two
version: 1
inputs: {folder: {type: uri_folder}}
outputs: {made: {type: uri_folder}}
command: run ${{inputs.folder}} ${{outputs.made}}
"""
GOOD = """
type: pipeline
inputs:
  text: {type: string, default: x}
  file: {type: uri_file, optional: true}
outputs: {made: {type: uri_folder}}
jobs:
  second:
    type: command
    component: ./two.yaml
    inputs: {folder: '${{parent.jobs.first.outputs.made}}'}
    outputs: {made: '${{parent.outputs.made}}'}
  first:
    type: command
    component: ./one.yaml
    inputs:
      text: ${{parent.inputs.text}}
      file: ${{parent.inputs.file}}
      count: 5
"""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("parent.inputs.text", "parent.inputs.txet",
         "jobs.first.inputs.text: there is no inputs.txet (did you mean 'text'?)"),
        ("parent.inputs.file", "parent.inputs.text",
         "jobs.first.inputs.file: is a uri_file, but inputs.text is a string"),
        ("type: string, default: x", "type: string, optional: true",
         "is required, but inputs.text is optional and has no default"),
        ("      text: ${{parent.inputs.text}}\n", "",
         "jobs.first: the input text of its component is required"),
        ("      text: ${{parent.inputs.text}}\n", "      text: x\n",
         "inputs.text is not used by any job"),
        ("count: 5", "cuont: 5", "jobs.first.inputs.cuont: its component has no such input"),
        ("count: 5", "count: 0", "jobs.first.inputs.count: '0' is below its min 1"),
        ("count: 5", "count: five", "jobs.first.inputs.count: 'five' is no integer"),
        ("count: 5", "count: ${{inputs.text}}", "${{inputs.text}} is neither"),
        ("jobs.first.outputs.made", "jobs.frist.outputs.made",
         "jobs.second.inputs.folder: there is no job frist (did you mean 'first'?)"),
        ("jobs.first.outputs.made", "jobs.first.outputs.maed", "first has no output maed"),
        ("jobs.first.outputs.made", "jobs.second.outputs.made", "wait for each other"),
        ("{made: '${{parent.outputs.made}}'}", "{}", "outputs.made is written by no job"),
        ("parent.outputs.made", "parent.outputs.other", "outputs.other is not declared"),
        ("outputs: {made: '${{", "outputs: {maed: '${{",
         "jobs.second.outputs.maed: its component has no such output"),
        ("./two.yaml", "./three.yaml", "jobs.second: its component ./three.yaml is not there"),
        ("default: x", "default: 1", "inputs.text: the default 1 is no text: quote it"),
        ("jobs:", "job:", "jobs is missing"),
    ],
)  # fmt: skip
def test_each_fault_of_a_pipeline_is_found(old, new, says):
    components = {"./one.yaml": ONE, "./two.yaml": TWO}
    assert lint_pipeline(GOOD, components) == []
    assert old in GOOD
    found = lint_pipeline(GOOD.replace(old, new), components)
    assert any(says in fault for fault in found), found


def test_a_components_faults_are_the_pipelines():
    components = {"./one.yaml": ONE.replace("default: 3", "default: 0"), "./two.yaml": "- 1"}
    found = lint_pipeline(GOOD, components)
    assert "jobs.first: inputs.count: the default 0 is below its min 1" in found
    assert "jobs.second: its component ./two.yaml is a YAML list, not a mapping" in found


@pytest.mark.parametrize(
    ("about", "text", "says"),
    [
        ({"type": "integer", "min": 1, "max": 3}, "2", None),
        ({"type": "integer", "max": 3}, "4", "is above its max 3"),
        ({"type": "number"}, "nan", "is no finite number"),
        ({"type": "number"}, "2e-5", None),
        ({"type": "boolean"}, "yes", "is neither true nor false"),
        ({"type": "string", "enum": ["true", "false"]}, "True", None),
        ({"type": "string", "enum": ["true", "false"]}, "yes", "is none of true, false"),
        ({"type": "string", "enum": ["fast"]}, "fats", "did you mean 'fast'?"),
        ({"type": "string"}, "", None),
    ],
)  # fmt: skip
def test_a_value_is_held_to_its_input(about, text, says):
    fault = value_fault(about, text)
    assert fault is None if says is None else says in str(fault)
