"""A finetune that is stopped or killed goes on, and ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys

import pytest

from luthier.engine.control import Interrupted
from luthier.errors import SpecError

#: 32 rows, 8 steps an epoch.
RUN = {"num_train_epochs": 3, "evaluation_strategy": "steps", "eval_steps": 5}


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def straight(tmp_path_factory, _ready_once, tiny):
    """The weights of a run that nothing disturbed."""
    import torch
    from component_world import Steps

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = Steps(tmp_path_factory.mktemp("straight"), tiny)
    made.selected, made.prepared = _ready_once.selected, _ready_once.prepared
    made.tune(**RUN)
    torch.set_num_threads(threads)
    return weights(made.tuned)


def stop_after(steps, told):
    return lambda: "interrupt" if sum(kind == "step" for kind, _ in told) >= steps else None


def test_an_interrupted_run_goes_on_bit_for_bit(ready, straight):
    with pytest.raises(Interrupted):
        ready.tune(stop_after(7, ready.told), **RUN)
    assert not (ready.tuned / "model.safetensors").exists()
    made = ready.tune(resume_from_checkpoint="true", **RUN)
    assert "resuming after step 7 of 24" in ready.messages
    assert weights(ready.tuned) == straight
    assert made["checkpoints"] == [f"checkpoint-{n}" for n in (5, 8, 10, 15, 16, 20, 24)]


def test_it_goes_on_from_a_checkpoint_where_the_hidden_folder_was_lost(ready, straight):
    import shutil

    with pytest.raises(Interrupted):
        ready.tune(stop_after(12, ready.told), **RUN)
    shutil.rmtree(ready.tuned / ".luthier")  # as an upload does that leaves hidden names out
    ready.tune(resume_from_checkpoint="true", **RUN)
    assert "resuming after step 10 of 24" in ready.messages
    assert weights(ready.tuned) == straight


def test_a_damaged_checkpoint_is_passed_over(ready, straight):
    import shutil

    with pytest.raises(Interrupted):
        ready.tune(stop_after(12, ready.told), **RUN)
    shutil.rmtree(ready.tuned / ".luthier")
    file = ready.tuned / "checkpoint-10" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.unlink()
    file.write_bytes(data)
    ready.tune(resume_from_checkpoint="true", **RUN)
    assert "checkpoint-10 is damaged and is passed over" in ready.messages
    assert "resuming after step 8 of 24" in ready.messages
    assert weights(ready.tuned) == straight


def command(steps, **flags):
    words = [word for n, v in steps.flags(**flags).items() for word in (f"--{n}", v)]
    return [sys.executable, "-m", "luthier", "component", "finetune", *words]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_real_process_is_stopped_and_goes_on(ready, straight, number, code):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(ready, **RUN), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        text=True, env=environment,
    )  # fmt: skip
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "checkpoint after step 10" in line:
            process.send_signal(number)
            break
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == code, "".join(seen) + rest
    assert not (ready.tuned / "model.safetensors").exists()
    if number != signal.SIGKILL:
        assert "--resume_from_checkpoint true goes on" in rest
    ready.tune(resume_from_checkpoint="true", **RUN)
    assert "resuming after step" in ready.messages
    assert weights(ready.tuned) == straight


def test_what_is_done_is_not_done_again(ready, straight):
    ready.tune(**RUN)
    first = (ready.tuned / "metrics.json").read_bytes()
    ready.told.clear()
    ready.tune(resume_from_checkpoint="true", **RUN)
    assert not [kind for kind, _ in ready.told if kind == "step"]
    assert weights(ready.tuned) == straight
    assert (ready.tuned / "metrics.json").read_bytes() == first


def test_a_finished_run_goes_on_for_more_epochs(ready):
    ready.tune(num_train_epochs=1)
    ready.told.clear()
    made = ready.tune(num_train_epochs=2, resume_from_checkpoint="true")
    assert "resuming after step 8 of 16" in ready.messages
    assert made["metrics"]["steps"] == 16
    assert made["checkpoints"] == ["checkpoint-8", "checkpoint-16"]


def test_other_words_are_another_run(ready):
    with pytest.raises(Interrupted):
        ready.tune(stop_after(3, ready.told), **RUN)
    with pytest.raises(SpecError) as caught:
        ready.tune(**RUN, resume_from_checkpoint="true", per_device_train_batch_size=8, seed=1)
    assert "seed: is 1, but the run to be resumed had 42" in str(caught.value)
    assert "per_device_train_batch_size: is 8" in str(caught.value)


def test_without_the_flag_it_starts_anew(ready, straight):
    with pytest.raises(Interrupted):
        ready.tune(stop_after(12, ready.told), seed=7, **RUN)
    assert (ready.tuned / "checkpoint-10").is_dir()
    ready.told.clear()
    ready.tune(**RUN)
    assert "resuming" not in ready.messages
    assert weights(ready.tuned) == straight


def test_nothing_to_resume_is_told(ready):
    ready.tune(resume_from_checkpoint="true")
    assert "there is nothing to resume" in ready.messages


def test_so_many_checkpoints_are_kept(ready):
    made = ready.tune(save_total_limit=2, **RUN)
    assert made["checkpoints"] == ["checkpoint-20", "checkpoint-24"]
    found = json.loads((ready.tuned / "checkpoint-24" / "luthier" / "manifest.json").read_text())
    assert {"luthier/state.safetensors", "luthier/state.json", "model.safetensors"} <= set(
        found["files"]
    )
