"""A pipeline's YAML runs on this machine: its own steps, and those of other people."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest
import yaml
from component_command import command

#: What the steps of other people do here: write what they got, and fail or wait if told to.
SCRIPT = """
import json, os, pathlib, signal, sys, time
say, folder, *rest = sys.argv[1:]
if say == "fail":
    sys.exit(int(rest[0]))
if say == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if say == "wait":
    def stop(number, frame):
        pathlib.Path(folder, "stopped").write_text(str(number))
        sys.exit(130)
    def go_on(number, frame):
        with open(os.path.join(folder, "asked"), "a") as asked:
            asked.write("x")
    signal.signal(signal.SIGINT, go_on if rest else stop)
    signal.signal(signal.SIGTERM, go_on if rest else stop)
    print("waiting", flush=True)
    while True:
        time.sleep(60)
facts = {"say": say, "rest": rest, "cwd": os.getcwd(), "seen": os.environ.get("SEEN"),
         "rank": os.environ.get("RANK")}
for path in rest:
    if os.path.isdir(path):
        facts["read"] = json.loads(pathlib.Path(path, "facts.json").read_text())["say"]
name = f"facts{facts['rank'] or ''}.json"
assert not os.path.exists(os.path.join(folder, name)), "an old output is in the way"
pathlib.Path(folder, name).write_text(json.dumps(facts))
print("wrote", folder)
"""

PIPELINE = """
type: pipeline
name: others
inputs:
  say: {type: string, default: hello}
  extra: {type: uri_file, optional: true}
outputs: {end: {type: uri_folder}}
jobs:
  second:
    type: command
    code: ./code
    command: python script.py second ${{outputs.made}} ${{inputs.before}}
    inputs: {before: {type: uri_folder, path: '${{parent.jobs.first.outputs.made}}'}}
    outputs: {made: '${{parent.outputs.end}}'}
  first:
    type: command
    component:
      name: first
      version: 1
      type: command
      inputs:
        say: {type: string}
        extra: {type: uri_file, optional: true}
      outputs: {made: {type: uri_folder}}
      code: ./code
      command: python script.py '${{inputs.say}}' ${{outputs.made}} $[[${{inputs.extra}}]]
    inputs:
      say: ${{parent.inputs.say}}
      extra: ${{parent.inputs.extra}}
    environment_variables: {SEEN: yes it is}
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "script.py").write_text(SCRIPT)
    (tmp_path / "others.yaml").write_text(PIPELINE)
    return tmp_path


@pytest.fixture
def luthier(capfd, monkeypatch):
    return command(capfd, monkeypatch)


@pytest.fixture
def run(luthier):
    return lambda place, *words, file="others.yaml": luthier(place, "run", file, *words)


def facts(place, job="first"):
    return json.loads((place / "others-work" / job / "made" / "facts.json").read_text())


def ran(done):
    """Step → whether it ran."""
    return {step["step"]: step["ran"] for step in json.loads(done.stdout)["steps"]}


def test_steps_run_in_order_and_hand_on_their_outputs(place, run):
    done = run(place, "--set", "say=good day")
    assert done.returncode == 0, done.stderr
    first, second = facts(place), facts(place, "second")
    assert (first["say"], second["read"]) == ("good day", "good day")
    assert first["seen"] == "yes it is"
    assert second["cwd"] == str(place / "code")
    assert done.stderr.index("[1/2] first: runs") < done.stderr.index("[2/2] second: runs")
    assert str(place / "others-work" / "second" / "made") in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("value", ["it's", '"', "$(touch made)", "a; touch made", "x\ny", " ", ""])
def test_no_value_reaches_a_shell(place, value, run):
    done = run(place, "--set", f"say={value}")
    assert done.returncode == 0, done.stderr
    assert facts(place)["say"] == value
    assert not list(place.rglob("made.*"))
    assert not (place / "code" / "made").exists()


def test_a_second_run_says_what_it_does_again(place, run):
    assert ran(run(place, "--json")) == {"first": True, "second": True}
    done = run(place, "--json")
    assert ran(done) == {"first": False, "second": False}
    assert "[1/2] first: nothing has changed; its output of 2" in done.stderr
    assert ran(run(place, "--json", "--again")) == {"first": True, "second": True}
    done = run(place, "--json", "--set", "say=other")
    assert ran(done) == {"first": True, "second": True}
    assert "first: runs, for its command is another" in done.stderr
    assert "second: runs, for what it reads has changed" in done.stderr
    assert facts(place, "second")["read"] == "other"


def test_a_step_that_is_not_deterministic_is_always_done_again(run, place):
    text = PIPELINE.replace(
        "      name: first\n", "      name: first\n      is_deterministic: false\n"
    )
    (place / "others.yaml").write_text(text)
    run(place)
    done = run(place, "--json")
    assert ran(done)["first"]
    assert "first: runs, for its component is not deterministic" in done.stderr


def test_what_changed_behind_its_back_is_done_again(place, run):
    extra = place / "extra.txt"
    extra.write_text("one")
    words = ("--json", "--set", "extra=extra.txt")
    assert ran(run(place, *words)) == {"first": True, "second": True}
    extra.write_text("two")
    done = run(place, *words)
    assert ran(done)["first"]
    assert "first: runs, for what it reads has changed" in done.stderr
    (place / "others-work" / "second" / "made" / "facts.json").write_text("{}")
    done = run(place, *words)
    assert ran(done) == {"first": False, "second": True}
    assert "second: runs, for its output has changed since" in done.stderr
    shutil.rmtree(place / "others-work" / "second" / "made")
    done = run(place, *words)
    assert ran(done) == {"first": False, "second": True}
    assert "second: runs, for its output is gone" in done.stderr


@pytest.mark.parametrize(
    ("say", "code", "says"), [("fail", 3, "exit code 3"), ("die", 137, "SIGKILL")]
)
def test_the_first_failure_ends_the_run(place, say, code, says, run):
    file = place / "others.yaml"
    file.write_text(PIPELINE.replace("$[[${{inputs.extra}}]]", "$[[${{inputs.extra}}]] 3"))
    done = run(place, "--set", f"say={say}")
    assert done.returncode == code
    assert "the step 'first' ended with" in done.stderr
    assert says in done.stderr
    assert not (place / "others-work" / "second").exists()
    asked = run(place, "--json", "--set", f"say={say}")
    assert asked.returncode == code
    assert json.loads(asked.stdout)["code"] == "step_failed"
    done = run(place, "--json")
    assert ran(done) == {"first": True, "second": True}
    run(place, "--set", f"say={say}")
    assert "first: runs, for it has not run to its end here" in run(place).stderr


def test_a_step_that_cannot_be_started(place, run):
    (place / "others.yaml").write_text(PIPELINE.replace("python script.py '", "no-such-thing '"))
    done = run(place)
    assert done.returncode == 127
    assert "the step 'first' cannot be started (No such file or directory)" in done.stderr


def started(place, *words):
    """A run whose first step waits, as a process whose group is its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier", "component", "run", "others.yaml", *words],
        cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_reaches_the_step_once_and_ends_the_run(place, number, code, run):
    process = started(place, "--set", "say=wait")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert (place / "others-work" / "first" / "made" / "stopped").read_text() == str(int(number))
    assert "stopped in the step first" in said
    assert "Traceback" not in said
    assert ran(run(place, "--json")) == {"first": True, "second": True}


def test_a_step_that_will_not_stop_is_killed_by_the_third_signal(place):
    file = place / "others.yaml"
    file.write_text(PIPELINE.replace("$[[${{inputs.extra}}]]", "$[[${{inputs.extra}}]] on"))
    process = started(place, "--set", "say=wait")
    asked = place / "others-work" / "first" / "made" / "asked"
    for count in (1, 2):
        process.send_signal(signal.SIGINT)
        wait_until(lambda count=count: asked.exists() and len(asked.read_text()) == count)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_one_run_at_a_time_even_when_the_first_was_killed(place, run):
    process = started(place, "--set", "say=wait")
    done = run(place)
    assert done.returncode == 7
    assert "another run is going on in it" in done.stderr
    process.kill()
    process.wait()
    assert run(place).returncode == 7  # its step has outlived it
    for pid in children(place / "others-work" / ".luthier-pipeline"):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: run(place).returncode == 0)


def children(lock):
    """The processes that hold a file open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.resolve() == lock.resolve():
                found.add(int(link.parts[2]))
        except OSError:
            continue
    return found


def wait_until(true, most_s=60):
    deadline = monotonic() + most_s
    while not true():
        assert monotonic() < deadline


def test_somebody_elses_folder_is_left_alone(place, run):
    (place / "others-work").mkdir()
    (place / "others-work" / "thesis.tex").write_text("mine")
    done = run(place)
    assert done.returncode == 7
    assert "is not empty, and no pipeline ran in it" in done.stderr
    assert [p.name for p in (place / "others-work").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--set", "sya=x"), "sya: others.yaml has no such input (did you mean 'say'?)"),
        (("--set", "say"), "'say' is not NAME=VALUE"),
        (("--set", "say=a", "--set", "say=b"), "say: is set twice"),
        (("--set", "extra=nowhere.txt"), "extra: there is no file or folder nowhere.txt"),
        (("--set", "extra=code"), "extra: code is a folder, and a uri_file is wanted"),
        (("--set", "extra=azureml:rows:1"), "lies in the cloud"),
    ],
)
def test_wrong_values_are_said_before_anything_runs(place, words, says, run):
    done = run(place, *words)
    assert done.returncode == 2
    assert says in done.stderr
    assert not (place / "others-work").exists()


@pytest.mark.parametrize(
    ("old", "new", "says", "code"),
    [
        ("${{parent.inputs.say}}", "${{parent.inputs.sya}}", "there is no inputs.sya", 2),
        ("python script.py second", "cd code && python", "'&' is for a shell", 2),
        ("type: command\n    code", "type: sweep\n    code", "a job of type sweep does not run", 2),
        ("code: ./code\n    command", "code: ./nowhere\n    command", "there is no folder", 2),
        ("SEEN: yes it is}", "SEEN: x}\n    resources: {instance_count: 2}", "2 nodes were", 2),
        ("type: pipeline", "type: command", "is a command, not a pipeline", 2),
        ("jobs:", "jobs: [", "is no YAML", 2),
        ("component:\n      name: first", "component: azureml:first:1\n    x:\n      name: first",
         "lies in the cloud", 2),
    ],
)  # fmt: skip
def test_a_pipeline_that_cannot_run_here_is_refused(place, old, new, says, code, run):
    assert old in PIPELINE
    (place / "others.yaml").write_text(PIPELINE.replace(old, new))
    done = run(place)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert says in done.stderr
    assert not (place / "others-work").exists()


def test_a_file_that_is_not_there_and_a_folder(place, luthier, run):
    done = run(place, file="other.yaml")
    assert (done.returncode, "other.yaml: there is no such file" in done.stderr) == (6, True)
    assert luthier(place, "yaml", "Translation", "--output", "made").returncode == 0
    done = run(place, file="made")
    assert done.returncode == 2
    assert "did you mean 'made/pipeline.yaml'?" in done.stderr


def test_a_dry_run_tells_the_commands_and_runs_nothing(place, run):
    done = run(place, "--dry-run", "--json", "--set", "say=a b")
    commands = json.loads(done.stdout)
    made = place / "others-work" / "first" / "made"
    assert commands["first"] == ["python", "script.py", "a b", str(made)]
    assert list(commands) == ["first", "second"]
    assert not (place / "others-work").exists()


def test_the_inputs_of_a_pipeline_can_be_asked_for(place, run):
    assert "say  \n    string; default hello" in run(place, "--inputs").stdout
    asked = json.loads(run(place, "--inputs", "--json").stdout)
    assert asked["extra"] == {"type": "uri_file", "optional": True, "value": None}


def test_several_processes_are_started_where_they_are_asked_for(place, run):
    spread = "SEEN: x}\n    distribution: {type: pytorch, process_count_per_instance: 2}"
    text = PIPELINE.replace("SEEN: yes it is}", spread).replace(
        "python script.py '", "python ./script.py '"
    )
    (place / "others.yaml").write_text(text)
    done = run(place)
    made = place / "others-work" / "first" / "made"
    assert {p.name for p in made.iterdir()} == {"facts0.json", "facts1.json"}, done.stderr


def test_files_that_were_changed_are_not_written_over(place, luthier):
    words = ("yaml", "Summarization", "--output", "made")
    assert "written" in luthier(place, *words).stdout
    file = place / "made" / "finetune.yaml"
    text = file.read_text()
    assert luthier(place, *words).stdout.count("unchanged") == 5
    file.write_text(text + "# mine\n")
    done = luthier(place, *words)
    assert done.returncode == 7
    assert "finetune.yaml is there, with other content" in done.stderr
    assert file.read_text().endswith("# mine\n")
    assert "finetune.yaml  replaced" in luthier(place, *words, "--overwrite").stdout
    assert file.read_text() == text


def test_a_word_that_is_no_step_or_task(place, luthier):
    done = luthier(place, "yaml", "Translaton")
    assert done.returncode == 6
    assert "did you mean 'Translation'?" in done.stderr
    done = luthier(place, "yaml", "import", "--set", "seed=1")
    assert done.returncode == 2
    assert yaml.safe_load(luthier(place, "yaml", "import").stdout)["name"] == "luthier_import"


def test_a_path_in_yaml_is_meant_from_the_yaml(run, luthier, place):
    (place / "inner").mkdir()
    (place / "extra.txt").write_text("x")
    literal = "extra: {type: uri_file, path: ./extra.txt}\n    environment"
    text = PIPELINE.replace("extra: ${{parent.inputs.extra}}\n    environment", literal)
    text = text.replace("  extra: {type: uri_file, optional: true}\noutputs: {end", "outputs: {end")
    (place / "others.yaml").write_text(text)
    done = luthier(place / "inner", "run", "../others.yaml", "--work", place / "others-work")
    assert done.returncode == 0, done.stderr
    assert facts(place)["rest"] == [str(place / "extra.txt")]
    (place / "extra.txt").unlink()
    done = run(place)
    assert done.returncode == 2
    assert "jobs.first.inputs.extra: there is no file or folder" in done.stderr


def test_a_job_gives_its_pipeline_values(run, place):
    (place / "jobs").mkdir()
    (place / "jobs" / "extra.txt").write_text("x")
    job = """
    type: pipeline
    component: ../others.yaml
    inputs: {say: from the job, extra: {type: uri_file, path: extra.txt}}
    """
    (place / "jobs" / "job.yaml").write_text(job)
    done = run(place, "--work", "others-work", file="jobs/job.yaml")
    assert done.returncode == 0, done.stderr
    assert facts(place)["say"] == "from the job"
    assert facts(place)["rest"] == [str(place / "jobs" / "extra.txt")]
    done = run(place, "--work", "others-work", "--set", "say=from me", file="jobs/job.yaml")
    assert facts(place)["say"] == "from me"
    (place / "jobs" / "job.yaml").write_text(job.replace("say:", "sya:"))
    done = run(place, file="jobs/job.yaml")
    assert (done.returncode, "inputs.sya: the pipeline has no such input" in done.stderr) == (
        2,
        True,
    )
