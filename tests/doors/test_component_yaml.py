"""The components' YAML comes from the table, and the lint finds what loading does not."""

import pytest
import yaml

from luthier.cli.component import help_of
from luthier.doors.component import flags, parse
from luthier.doors.component_lint import lint_component
from luthier.doors.component_table import TABLE
from luthier.doors.component_yaml import component_yaml
from luthier.errors import SpecError


@pytest.mark.parametrize("step", TABLE)
def test_a_step_has_a_component_without_faults(step):
    text = component_yaml(step)
    assert lint_component(text) == []
    component = yaml.safe_load(text)
    assert component["name"] == f"luthier_{step}"
    names = [*component["inputs"], *component["outputs"]]
    assert sorted(names) == sorted(row.name for row in TABLE[step])


def test_types_defaults_and_limits_reach_the_component():
    inputs = yaml.safe_load(component_yaml("finetune"))["inputs"]
    about = {name: {k: v for k, v in i.items() if k != "description"} for name, i in inputs.items()}
    assert about["learning_rate"] == {
        "type": "number", "default": 2e-5, "min": 0, "optional": True}  # fmt: skip
    assert about["apply_lora"] == {
        "type": "string", "enum": ["true", "false"], "default": "false", "optional": True,
    }  # fmt: skip
    assert about["lora_r"] == {"type": "integer", "default": 8, "min": 1, "optional": True}
    assert about["seed"]["max"] == 2**32 - 1
    assert about["precision"] == {
        "type": "integer", "min": 4, "max": 32, "default": 32, "optional": True}  # fmt: skip
    assert about["deepspeed"] == {"type": "uri_file", "optional": True}
    assert about["preprocess_output"] == {"type": "uri_folder", "optional": False}


@pytest.mark.parametrize("step", TABLE)
def test_the_command_of_a_component_is_read_by_its_own_step(step):
    """What Azure would run, with every optional part in and each input at its default."""
    component = yaml.safe_load(component_yaml(step))
    command = component["command"].replace("$[[", "").replace("]]", "").replace("'", "")
    model = {"import": ("model_path", "pytorch_model_path", "mlflow_model_path")}.get(step, ())
    program, verb, named, *words = command.split()
    assert (program, verb, named) == ("luthier", "component", step)
    given = flags(words)
    for side in ("inputs", "outputs"):
        for name, about in component[side].items():
            assert given[name] == f"${{{{{side}.{name}}}}}"
            default = about.get("default", about.get("enum", ["folder"])[0])
            given[name] = str(default)
    if step == "preprocess":  # one task cannot have the columns of all
        given = {k: v for k, v in given.items() if not k.endswith(("_key", "_lang"))}
    for name in model:
        del given[name]
    parse(step, given)


def test_the_help_says_every_parameter_with_its_limits():
    for step, rows in TABLE.items():
        text = help_of(step)
        for row in rows:
            assert f"--{row.name}  {row.help}\n" in text
    assert "integer, at least 1; default 8" in help_of("finetune")


GOOD = """
name: example
version: 1.0.0
inputs:
  rate: {type: number, default: 0.1, min: 0, max: 1, optional: true}
  mode: {type: string, default: fast, enum: [fast, slow], optional: true}
  data: {type: uri_folder}
outputs:
  model: {type: uri_folder}
command: >-
  run $[[--rate ${{inputs.rate}}]] $[[--mode ${{inputs.mode}}]]
  --data ${{inputs.data}} --model ${{outputs.model}}
"""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("version: 1.0.0", "", "version is missing"),
        ("name: example", "name: ''", "name is missing"),
        ("default: fast", "default: quick", "inputs.mode: the default 'quick' is not in its enum"),
        ("default: 0.1", "default: -0.1", "inputs.rate: the default -0.1 is below its min 0"),
        ("default: 0.1", "default: 2", "inputs.rate: the default 2 is above its max 1"),
        ("default: 0.1", "default: 1e-1", "inputs.rate: the default '1e-1' is no number"),
        ("default: 0.1", "default: true", "inputs.rate: the default True is no number"),
        ("default: fast, enum: [fast, slow]", "default: yes", "the default True is no text"),
        ("[fast, slow]", "[fast, 1]", "inputs.mode: an enum value is no text: quote it"),
        ("{type: uri_folder}\noutputs", "{type: uri_folder, default: x}\noutputs",
         "inputs.data: a uri_folder has no default"),
        ("$[[--rate ${{inputs.rate}}]]", "--rate ${{inputs.rate}}",
         "inputs.rate is optional, but stands outside $[[ ]]"),
        ("$[[--rate ${{inputs.rate}}]]", "", "inputs.rate is not used in the command"),
        ("--model ${{outputs.model}}", "", "outputs.model is not used in the command"),
        ("$[[--rate", "$$[[--rate", "command: '$$[[' is a typo of '$[['"),
        ("${{inputs.rate}}]]", "${{inputs.rate}}", "do not pair up"),
        ("${{inputs.data}}", "${{inputs.dta}}", "there is no inputs.dta (did you mean 'data'?)"),
        ("--data ${{inputs.data}}", "$[[--data ${{inputs.data}}]]",
         "$[[ ]] around data, which is not optional"),
        ("name: example", "name: [", "is no YAML"),
    ],
)  # fmt: skip
def test_each_fault_is_found(old, new, says):
    assert lint_component(GOOD) == []
    assert old in GOOD
    found = lint_component(GOOD.replace(old, new))
    assert any(says in fault for fault in found), found


def test_what_is_no_mapping_is_said_to_be_none():
    assert lint_component("- 1") == ["is a YAML list, not a mapping"]


def test_a_step_refuses_a_flag_of_the_template_that_is_left_in():
    with pytest.raises(SpecError, match="is a whole number"):
        parse("evaluate", {"seed": "${{inputs.seed}}"})
