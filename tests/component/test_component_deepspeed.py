"""DeepSpeed under ``luthier component finetune``: the losses of plain training, shards that are
shares, arguments in the config, and whole models in the output.

What trains is marked slow: ``pytest tests/component/test_component_deepspeed.py``.
"""

import json
from importlib.util import find_spec

import pytest
import torch
import transformers
from launching_steps import World, launch
from safetensors.torch import load_file

from luthier.errors import SpecError
from luthier.store.bundle import open_bundle

pytestmark = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="DeepSpeed is not installed: luthier[deepspeed]"
)

#: Two processes with rows of 4, and one with rows of 8.
TWO = {"max_steps": 6, "max_grad_norm": 0.05, "weight_decay": 0.01, "evaluation_strategy": "steps",
       "eval_steps": 3}  # fmt: skip
ONE = TWO | {"per_device_train_batch_size": 8}
LORA = {"apply_lora": "true", "lora_r": 2}
#: float32 has 2^-24 = 6e-8; the shards' sums are in other orders, and Adam's quotients of small
#: numbers spread that over the steps.
LOSSES = 1e-5
#: The gradient of a key's bias is zero but for rounding (softmax does not see it), and Adam makes
#: steps of full length out of it.
NOISE = "attention.self.key.bias"
WEIGHTS = "model.safetensors"


def config(folder, stage, **more):
    """A user's JSON."""
    section = {"stage": stage}
    if stage == 3:
        section["stage3_param_persistence_threshold"] = 0  # else the small ones stay whole
    file = folder / f"zero{stage}-{len(more)}.json"
    file.write_text(json.dumps({"zero_optimization": section | more}))
    return {"apply_deepspeed": "true", "deepspeed": file}


def close(world, name, plain):
    assert world.losses(name) == pytest.approx(world.losses(plain), rel=LOSSES)
    expected, found = world.weights(plain), world.weights(name)
    assert found.keys() == expected.keys()
    for key, weight in expected.items():
        if not key.endswith(NOISE):
            torch.testing.assert_close(found[key], weight, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("deepspeed"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made.here("plain", **ONE)
    torch.set_num_threads(threads)
    return made


@pytest.fixture(scope="module")
def done(world):
    """ZeRO-2 by the default and ZeRO-3 by a user's config, with two processes, in one launch."""
    zero3 = config(world.folder, 3)
    runs = {
        "zero2": TWO | {"apply_deepspeed": "true"},
        "zero3": TWO | zero3,
    }
    work = [(name, world.flags(name, **given)) for name, given in runs.items()]
    return launch(world.folder, 2, work, deepspeed=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_the_losses_and_weights_of_plain_training(done, world, name) -> None:
    close(world, name, "plain")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_each_process_holds_its_share(done, name) -> None:
    for report in done[name]:
        stage = int(name[-1])
        assert (report["stage"], report["processes"]) == (stage, 2)
        share = report["all"] / 2 if stage == 3 else report["all"]
        assert abs(report["held"] - share) <= 64  # of padding


@pytest.mark.slow
def test_the_config_says_what_the_arguments_say(done) -> None:
    for report in done["zero2"]:
        assert report["clipping"] == TWO["max_grad_norm"]
        assert report["config"]["bf16"] == {"enabled": False}
        assert report["config"]["train_micro_batch_size_per_gpu"] == 4
        assert report["config"]["train_batch_size"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_whole_models_in_the_output(done, world, name) -> None:
    place = world.folder / name
    transformers.AutoModelForSequenceClassification.from_pretrained(place)
    names = sorted(path.name for path in place.glob("checkpoint-*"))
    assert names == ["checkpoint-3", "checkpoint-5"]  # of an evaluation, and of an epoch
    for checkpoint in place.glob("checkpoint-*"):
        open_bundle(checkpoint)
        files = [path for path in checkpoint.rglob("*") if path.is_file()]
        assert not [path for path in files if path.suffix in (".pt", ".bin", ".pkl")]
        assert (checkpoint / "luthier" / "rank-00001.safetensors").is_file()
        transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint)


@pytest.mark.slow
def test_only_the_first_writes(done) -> None:
    for first, second in done.values():
        assert first["wrote"]
        assert not second["wrote"]


@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        ({"optim": "adafactor"}, "optim", "ZeRO makes flat"),
        ({"apply_compile": "true"}, "apply_compile", "DeepSpeed's hooks"),
        ({"auto_find_batch_size": "true"}, "auto_find_batch_size", "cannot be coupled"),
        ({"deepspeed": "nowhere.json"}, "deepspeed", "Unable to load json file"),
    ],
)
def test_what_deepspeed_cannot_is_refused(ready, given, field, message) -> None:
    with pytest.raises(SpecError) as caught:
        ready.tune(apply_deepspeed="true", **given)
    (problem,) = caught.value.problems
    assert problem.field == field
    assert message in problem.message
    assert not ready.tuned.exists()


def test_a_config_that_contradicts_the_arguments_is_refused(ready, tmp_path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"gradient_clipping": 7.0, "bf16": {"enabled": True}}))
    with pytest.raises(SpecError) as caught:
        ready.tune(apply_deepspeed="true", deepspeed=file)
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"deepspeed.gradient_clipping", "deepspeed.bf16.enabled"}


# --- the whole matrix ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 1, 2])
def test_every_stage(world, processes) -> None:
    given = TWO if processes == 2 else ONE
    runs = {f"stage{stage} of {processes}": config(world.folder, stage) for stage in (1, 2, 3)}
    runs[f"offloaded of {processes}"] = config(world.folder, 2, offload_optimizer={"device": "cpu"})
    runs[f"default of {processes}"] = {"apply_deepspeed": "true"}
    runs[f"accumulated of {processes}"] = config(world.folder, 2) | {
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2 if processes == 2 else 4,
    }
    work = [(name, world.flags(name, **(given | more))) for name, more in runs.items()]
    launch(world.folder, processes, work, deepspeed=True)
    for name in runs:
        close(world, name, "plain")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_resumed_is_the_uninterrupted(tmp_path, stage) -> None:
    world = World(tmp_path / "drops", dropout=0.1)
    zero = config(world.folder, stage) | {
        "lr_scheduler_type": "constant", "evaluation_strategy": "steps", "eval_steps": 3,
    }  # fmt: skip
    work = [
        ("whole", world.flags("whole", max_steps=7, **zero)),
        ("cut", world.flags("cut", max_steps=3, **zero)),
        ("again", world.flags("cut", max_steps=7, resume_from_checkpoint="true", **zero)),
    ]
    launch(world.folder, 2, work)
    assert world.losses("cut") == world.losses("whole")
    whole, again = world.weights("whole"), world.weights("cut")
    assert all(torch.equal(again[name], weight) for name, weight in whole.items())


@pytest.mark.slow
def test_adapters_under_zero_3(world) -> None:
    flags = world.flags("zero3 lora", **TWO, **config(world.folder, 3), **LORA)
    launch(world.folder, 2, [("zero3 lora", flags)])
    world.here("plain lora", **ONE, **LORA)
    close(world, "zero3 lora", "plain lora")


@pytest.mark.slow
def test_16_bits(world) -> None:
    """The weights themselves are bf16 under DeepSpeed: losses to bf16's 8 digits of mantissa."""
    given = TWO | {"apply_deepspeed": "true", "precision": 16}
    work = [("bf16", world.flags("bf16", **given)),
            ("bf16 lora", world.flags("bf16 lora", **given, **LORA))]  # fmt: skip
    found = launch(world.folder, 2, work, deepspeed=True)
    assert found["bf16"][0]["config"]["bf16"] == {"enabled": True}
    assert world.losses("bf16") == pytest.approx(world.losses("plain"), rel=2e-2)
    transformers.AutoModelForSequenceClassification.from_pretrained(world.folder / "bf16")
    # adapters are merged into the float32 weights that they came beside
    merged, before = world.weights("bf16 lora"), load_file(world.steps.selected / WEIGHTS)
    assert {weight.dtype for weight in merged.values()} == {torch.float32}
    for name, weight in before.items():
        if f"bert.{name}" in merged and not name.endswith(("query.weight", "value.weight")):
            assert torch.equal(merged[f"bert.{name}"], weight), name
