"""DeepSpeed under our loop: ZeRO's numbers are those of plain training, its shards are in our
checkpoints, and what is saved opens anywhere.

The whole matrix: ``pytest tests/trainer/test_trainer_deepspeed.py -m slow``.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from launching import Rank, plainly, torchrun
from test_trainer_processes import same

from luthier.store.bundle import open_bundle

pytestmark = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed: luthier[deepspeed]"
)

SETTINGS = {
    "evaluates": True, "gradient_accumulation_steps": 2, "num_train_epochs": 2,
    "max_grad_norm": 0.5, "dropout": 0.1, "weight_decay": 0.01,
}  # fmt: skip
#: One step of plain gradient descent: what moves is the clipped gradient.
ONE_STEP = {"optim": "sgd", "learning_rate": 1.0, "max_steps": 1, "warmup_steps": 0,
            "max_grad_norm": 0.25, "weight_decay": 0.0}  # fmt: skip
#: float32 has 2^-24 = 6e-8; the sums of shards are in other orders, and Adam's quotients of small
#: numbers spread that over four steps.
LOSSES = 1e-5
#: The gradient of a key's bias is zero but for rounding (softmax does not see it), and Adam makes
#: steps of full length out of it.
NOISE = "attention.self.key.bias"


def zero(stage: int, **more: object) -> dict:
    section = {"stage": stage}
    if stage == 3:
        section["stage3_param_persistence_threshold"] = 0  # else the small ones stay whole
    return {"deepspeed": {"zero_optimization": section | more}}


def trainings(here: Path, config: dict, name: str, *, steps: tuple[int, ...] = (1, 2)) -> dict:
    saving = {"save_strategy": "steps", "save_steps": 1, "save_model": f"{name} saved"}
    work = {name: SETTINGS | config | saving}
    for step in steps:
        checkpoint = str(here / f"{name}-of-0" / f"checkpoint-{step}")
        work[f"{name} from {step}"] = SETTINGS | config | {"resume": checkpoint}
    return work | {f"{name} one step": SETTINGS | config | ONE_STEP}


def close(found: Rank, plain: Rank) -> None:
    assert found.losses == pytest.approx(plain.losses, rel=LOSSES)
    if found.norms[0] is not None:  # DeepSpeed's stage 0 in fp32 does not know them
        assert found.norms == pytest.approx(plain.norms, rel=LOSSES)
    evaluations = [
        [e["eval_loss"] for e in rank.report["log"] if "eval_loss" in e] for rank in (found, plain)
    ]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=LOSSES)
    assert found.report["asked"] == plain.report["asked"]
    for name, weight in plain.weights.items():
        if not name.endswith(NOISE):
            torch.testing.assert_close(found.weights[name], weight, rtol=1e-4, atol=1e-5)


def moved(rank: Rank, start: Rank) -> float:
    """How far one step went: the clipped norm, with a learning rate of 1."""
    away = [(rank.weights[n] - w).double().pow(2).sum() for n, w in start.weights.items()]
    return float(torch.stack(away).sum().sqrt())


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("deepspeed")


@pytest.fixture(scope="module")
def done(here) -> dict[str, list[Rank]]:
    """Plain, ZeRO-2 and ZeRO-3 with two processes, in one launch."""
    work = {
        "plain": SETTINGS,
        "start": SETTINGS | ONE_STEP | {"learning_rate": 1e-30},
    }
    for stage in (2, 3):
        work |= trainings(here, zero(stage), f"zero{stage}")
    best = {"shared": True, "load_best_model_at_end": True, "eval_strategy": "steps",
            "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}  # fmt: skip
    work["best"] = SETTINGS | zero(3) | best | {"save_model": "best saved"}
    return torchrun(here, 2, work)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("rank", [0, 1])
def test_the_numbers_of_plain_training(done, stage, rank) -> None:
    found = done[f"zero{stage}"][rank]
    assert found.report["wrapped"] == "DeepSpeedEngine"
    assert (found.report["stage"], found.report["processes"]) == (stage, 2)
    assert len(found.losses) == 4
    close(found, done["plain"][rank])


@pytest.mark.parametrize("stage", [2, 3])
def test_each_process_holds_its_share(done, stage) -> None:
    for rank in done[f"zero{stage}"]:
        whole, padding = rank.report["all"], 64
        assert abs(rank.report["moments"] - whole / 2) <= padding
        assert abs(rank.report["held"] - (whole / 2 if stage == 3 else whole)) <= padding
        assert rank.report["base"].startswith("torch.optim.")  # nothing was compiled for it


@pytest.mark.parametrize("stage", [2, 3])
def test_gradients_are_clipped_as_asked(done, stage) -> None:
    start = done["start"][0]
    for rank in done[f"zero{stage} one step"]:
        assert rank.report["clipping"] == ONE_STEP["max_grad_norm"]
        assert rank.norms[0] > 10  # or there was nothing to clip
        assert moved(rank, start) == pytest.approx(ONE_STEP["max_grad_norm"], rel=1e-3)


@pytest.mark.parametrize("stage", [2, 3])
def test_resumed_is_the_uninterrupted(done, stage) -> None:
    for step in (1, 2):
        for rank in (0, 1):
            same(done[f"zero{stage} from {step}"][rank], done[f"zero{stage}"][rank])


@pytest.mark.parametrize("stage", [2, 3])
def test_what_is_saved_opens_anywhere(done, here, stage) -> None:
    last = here / f"zero{stage}-of-0" / "checkpoint-4"
    for folder in (last, here / f"zero{stage} saved"):
        model = transformers.BertForSequenceClassification.from_pretrained(folder)
        for name, weight in model.named_parameters():
            assert torch.equal(weight, done[f"zero{stage}"][0].weights[name])


@pytest.mark.parametrize("stage", [2, 3])
def test_checkpoints_are_whole_and_hold_no_pickle(done, here, stage) -> None:
    for checkpoint in (here / f"zero{stage}-of-0").iterdir():
        open_bundle(checkpoint)
        files = [p for p in checkpoint.rglob("*") if p.is_file()]
        assert {p.suffix for p in files} == {".json", ".safetensors"}
    assert not [p for p in here.glob("*-of-1/**/*") if p.is_file()]


def test_the_best_is_loaded_at_the_end(done, here) -> None:
    best = done["best"][0].report["best"]
    assert best != 4  # the last, which was there anyway
    model = transformers.BertForSequenceClassification.from_pretrained(here / "best saved")
    expected = transformers.BertForSequenceClassification.from_pretrained(
        here / "best" / f"checkpoint-{best}"
    )
    for (name, weight), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(weight, other), name


# --- the whole matrix ------------------------------------------------------------------------

ADAMW = {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto",
                                      "weight_decay": "auto"}}  # fmt: skip
DECAY = {"type": "WarmupDecayLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto",
                                             "warmup_num_steps": "auto",
                                             "total_num_steps": "auto"}}  # fmt: skip
MATRIX = {
    **{f"zero{stage}": zero(stage) for stage in (0, 1, 2, 3)},
    "offloaded2": zero(2, offload_optimizer={"device": "cpu"}),
    "offloaded3": zero(3, offload_optimizer={"device": "cpu"}, offload_param={"device": "cpu"}),
    # An optimizer of DeepSpeed's decays biases and norms as well, with transformers' Trainer too.
    "adamw2": {"deepspeed": zero(2)["deepspeed"] | {"optimizer": ADAMW}, "weight_decay": 0.0},
    "kept3": {"deepspeed": {"zero_optimization": {"stage": 3}}},  # small weights stay whole
}
OWN_NUMBERS = {
    "bf16 2": zero(2) | {"bf16": True},
    "bf16 3": zero(3) | {"bf16": True},
    "schedule2": {"deepspeed": zero(2)["deepspeed"] | {"optimizer": ADAMW, "scheduler": DECAY},
                  "warmup_steps": 2},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_whole_matrix(tmp_path, processes) -> None:
    work = {"plain": SETTINGS, "start": SETTINGS | ONE_STEP | {"learning_rate": 1e-30}}
    work["undecayed"] = SETTINGS | {"weight_decay": 0.0}
    for name, config in (MATRIX | OWN_NUMBERS).items():
        work |= trainings(tmp_path, config, name, steps=(1, 2, 3))
    found = torchrun(tmp_path, processes, work)
    for name in MATRIX | OWN_NUMBERS:
        for rank in range(processes):
            if name in MATRIX:
                plain = "undecayed" if name == "adamw2" else "plain"
                close(found[name][rank], found[plain][rank])
            for step in (1, 2, 3):
                same(found[f"{name} from {step}"][rank], found[name][rank])
        saved = transformers.BertForSequenceClassification.from_pretrained(
            tmp_path / f"{name} saved"
        )
        for key, weight in saved.named_parameters():
            whole = found[name][0].weights[key].to(weight.dtype)
            assert torch.equal(weight, whole), (name, key)


@pytest.mark.slow
def test_one_process_without_a_launcher(tmp_path) -> None:
    work = {"plain": SETTINGS, "zero3": SETTINGS | zero(3)}
    found = plainly(tmp_path, work)
    close(found["zero3"][0], found["plain"][0])
