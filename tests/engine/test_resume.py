"""An interrupted run equals the uninterrupted one, bit for bit."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.engine.control import Cancelled, Interrupted, ignore, keep_going
from luthier.engine.run import run
from luthier.engine.state import aligned
from luthier.registry import cards

OPTIMIZERS = [c.name for c in cards("optimizer")]
SCHEDULES = [c.name for c in cards("scheduler") if c.name not in ("cosine_with_min_lr", "step")]


def weights(folder: Path) -> dict[str, str]:
    """sha256 of every weight file of a bundle's model, by relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def history(folder: Path) -> str:
    return (folder / "luthier" / "history.json").read_text()


def stop_after(steps: set[int]):
    """A listener and a control that together interrupt after these steps."""
    seen = 0

    def tell(kind, data) -> None:
        nonlocal seen
        if kind == "step":
            seen = data["step"]

    def control():
        return "interrupt" if seen in steps else None

    return tell, control


def run_with_stops(spec, place, steps):
    """Run to the end, interrupted after each of these steps. How often it was."""
    left, stops = set(steps), 0
    while True:
        tell, control = stop_after(left)
        try:
            return run(spec, place, tell, control), stops
        except Interrupted:
            stops += 1
            left.discard(min(left))


def check(spec, new_place, steps) -> None:
    straight = run(spec, new_place("straight"), ignore, keep_going)
    stopped, stops = run_with_stops(spec, new_place("stopped"), steps)
    assert stops == len(steps)
    assert history(stopped.folder) == history(straight.folder)
    assert weights(stopped.folder) == weights(straight.folder) != {}


def total_steps(spec) -> int:
    return 12  # 48 pairs in batches of 8, two epochs


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_resumes_bit_for_bit(
    make_spec, new_place, tiny_dropout_model, optimizer, one_thread
) -> None:
    spec = make_spec(
        **{"model.name": str(tiny_dropout_model)}, optim=optimizer, lr_scheduler_type="linear"
    )
    stops = random.Random(optimizer).sample(range(1, total_steps(spec)), 2)
    check(spec, new_place, stops)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("unit", ["batch", "epoch"])
def test_every_schedule_resumes_bit_for_bit(
    make_spec, new_place, tiny_dropout_model, schedule, unit, one_thread
) -> None:
    warmup = {} if schedule == "constant" else {"num_warmup_steps": 1}
    spec = make_spec(
        **{"model.name": str(tiny_dropout_model)},
        optim="AdamW",
        lr_scheduler_type=schedule,
        scheduler_step=unit,
        **warmup,
    )
    check(spec, new_place, random.Random(schedule).sample(range(1, total_steps(spec)), 2))


@pytest.mark.parametrize(
    "words",
    [
        {"loss": "ArcFaceLoss", "loss_optimizer": "SGD"},
        {"loss": "TripletMarginLoss", "miner": "TripletMarginMiner"},
        {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 4},
        {"output_dim": 8, "freeze": True, "dataloader_num_workers": 3},
        {"val_split": 0.25, "callbacks": [{"kind": "best_model"}, {"kind": "early_stopping"}]},
        {"val_split": 0.25, "eval_steps": 3, "callbacks": [{"kind": "wise_ft", "alpha": 0.5}]},
        {"per_device_train_batch_size": None},
    ],
    ids=lambda words: next(iter(words)),
)
def test_every_kind_of_run_resumes_bit_for_bit(
    make_spec, new_place, tiny_dropout_model, words, one_thread
) -> None:
    spec = make_spec(**{"model.name": str(tiny_dropout_model)}, **words)
    check(spec, new_place, {1, 2})


def test_a_damaged_checkpoint_is_passed_over(make_spec, new_place, one_thread) -> None:
    spec = make_spec(save_steps=2)
    straight = run(spec, new_place("straight"))
    place = new_place("damaged")
    tell, control = stop_after({5})
    with pytest.raises(Interrupted):
        run(spec, place, tell, control)
    newest = sorted((place.folder / "checkpoints").iterdir())[-1]
    victim = next(newest.rglob("model.safetensors"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    said = []
    resumed = run(spec, place, lambda kind, data: said.append((kind, data)))
    assert any("damaged" in d["message"] for k, d in said if k == "log")
    assert any("resuming after step 4" in d["message"] for k, d in said if k == "log")
    assert weights(resumed.folder) == weights(straight.folder)


def test_cancelling_publishes_nothing(make_spec, new_place) -> None:
    place = new_place("run")
    with pytest.raises(Cancelled):
        run(make_spec(), place, ignore, lambda: "cancel")
    assert not (place.folder / "result").exists()


def test_a_finished_run_is_not_run_again(make_spec, new_place, one_thread) -> None:
    place = new_place("run")
    first = run(make_spec(), place)
    told = []
    second = run(make_spec(), place, lambda kind, data: told.append(kind))
    assert second.folder == first.folder
    assert second.metrics == first.metrics
    assert "step" not in told


def test_a_checkpoint_holds_no_pickle(make_spec, new_place) -> None:
    place = new_place("run")
    tell, control = stop_after({3})
    with pytest.raises(Interrupted):
        run(make_spec(), place, tell, control)
    checkpoint = next((place.folder / "checkpoints").iterdir())
    names = {p.suffix for p in checkpoint.rglob("*") if p.is_file()}
    assert names <= {".json", ".safetensors", ".txt", ".md"}
    assert load_file(checkpoint / "luthier" / "state.safetensors")


def test_what_is_restored_lies_where_torch_would_have_put_it(tmp_path) -> None:
    """A sum of products in a library rounds otherwise where its numbers begin elsewhere."""
    file = tmp_path / "some.safetensors"
    save_file({f"t{n}": torch.arange(7.0 + 3 * n) for n in range(8)}, file)
    assert any(tensor.data_ptr() % 64 for tensor in load_file(file).values())
    found = aligned(file)
    assert not any(tensor.data_ptr() % 64 for tensor in found.values())
    assert all(torch.equal(found[f"t{n}"], torch.arange(7.0 + 3 * n)) for n in range(8))
