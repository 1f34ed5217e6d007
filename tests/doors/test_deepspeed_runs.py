"""The filled config in DeepSpeed itself, where it is installed: one CPU process over gloo."""

import importlib.util
import json
import os
import socket
import subprocess
import sys

import pytest

from luthier.doors.component import parse
from luthier.doors.deepspeed_config import filled_deepspeed

#: Eight steps of a small network; the config comes as JSON, the losses and rates go out so.
PROGRAM = """
import json, sys
import deepspeed, torch
torch.set_num_threads(1)

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))

draw = torch.Generator().manual_seed(1)
x, y = torch.randn(8, 4, 8, generator=draw), torch.randn(8, 4, 1, generator=draw)
model = network()
engine, *_ = deepspeed.initialize(
    model=model, config=json.loads(sys.argv[1]), model_parameters=list(model.parameters()))
theirs, rates = [], []
for a, b in zip(x, y):
    loss = (engine(a) - b).square().mean()
    rates.append(engine.get_lr()[0])
    engine.backward(loss)
    engine.step()
    theirs.append(loss.item())
model, plain = network(), []
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-8, weight_decay=0.1)
for a, b in zip(x, y):
    loss = (model(a) - b).square().mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    plain.append(loss.item())
print("FOUND", json.dumps([theirs, plain, rates]))
"""


def _run(steps):
    folders = ("preprocess_output", "model_selector_output", "pytorch_model_folder",
               "mlflow_model_folder")  # fmt: skip
    given = {"apply_deepspeed": "true", "learning_rate": "0.01", "weight_decay": "0.1",
             "max_grad_norm": "0.5", "warmup_steps": "3"}  # fmt: skip
    args = parse("finetune", dict.fromkeys(folders, "folder") | given)
    config, _ = filled_deepspeed(None, args, world_size=1, steps=steps)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(config)], env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert found, done.stderr[-3000:]
    return json.loads(found[0].removeprefix("FOUND"))


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
def test_zero_2_with_our_config_gives_the_losses_of_plain_adamw():
    theirs, plain, rates = _run(steps=None)
    assert theirs == pytest.approx(plain, abs=1e-5)
    assert rates == [0.01] * 8, "no schedule of DeepSpeed's own: ours is to be stepped"


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
def test_deepspeeds_own_schedule_starts_a_step_late():
    """Why it is left out unless the number of steps is given."""
    _, _, rates = _run(steps=8)
    assert rates == pytest.approx([0, 0, 0.01 / 3, 0.02 / 3, 0.01, 0.008, 0.006, 0.004])
