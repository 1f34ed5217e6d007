"""DeepSpeed's config: completed from the arguments, contradictions refused."""

import json

import pytest

from luthier.doors.component import parse
from luthier.doors.deepspeed_config import DEFAULT, filled_deepspeed, read_deepspeed
from luthier.errors import SpecError

FOLDERS = dict.fromkeys(
    ("preprocess_output", "model_selector_output", "pytorch_model_folder", "mlflow_model_folder"),
    "folder",
)


def args(**given):
    return parse("finetune", FOLDERS | {"apply_deepspeed": "true"} | given)


def refused(config, given=None, **more):
    with pytest.raises(SpecError) as caught:
        filled_deepspeed(config, given or args(), **more)
    return {problem.field: str(problem) for problem in caught.value.problems}


def test_without_a_file_it_is_zero_2_with_the_arguments_in_it():
    config, notices = filled_deepspeed(
        None, args(max_grad_norm="0.3", per_device_train_batch_size="6", adam_beta1="0.8",
                   gradient_accumulation_steps="2", weight_decay="0.01", learning_rate="1e-4")
    )  # fmt: skip
    assert config == DEFAULT | {
        "gradient_clipping": 0.3,
        "train_micro_batch_size_per_gpu": 6,
        "gradient_accumulation_steps": 2,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "optimizer": {
            "type": "AdamW",
            "params": {"torch_adam": True, "lr": 1e-4, "betas": [0.8, 0.999], "eps": 1e-8,
                       "weight_decay": 0.01},
        },
    }  # fmt: skip
    assert config["zero_optimization"]["stage"] == 2
    assert notices == ["deepspeed.scheduler: left out, luthier's own 'linear' is stepped"]
    json.dumps(config)


def test_the_given_config_is_not_changed():
    config = {"zero_optimization": {"stage": 1}, "nebula": {"enabled": False}}
    before = json.dumps(config)
    filled, _ = filled_deepspeed(config, args())
    filled["zero_optimization"]["stage"] = 3
    assert json.dumps(config) == before
    assert DEFAULT["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize(("half", "other"), [("bf16", "fp16"), ("fp16", "bf16")])
def test_precision_16_is_what_the_device_has(half, other):
    config, _ = filled_deepspeed(None, args(precision="16"), half=half)
    assert config[half]["enabled"] is True
    assert config[other] == {"enabled": False}
    assert ("loss_scale_window" in config[half]) is (half == "fp16")


def test_a_config_may_say_which_16_bits():
    config, _ = filled_deepspeed({"fp16": {"enabled": True}}, args(precision="16"), half="bf16")
    assert (config["fp16"]["enabled"], config["bf16"]["enabled"]) == (True, False)


def test_a_disabled_nebula_is_stripped_and_an_enabled_one_refused():
    config, notices = filled_deepspeed({"nebula": {"enabled": False}}, args())
    assert "nebula" not in config
    assert "deepspeed.nebula: removed, as it is disabled" in notices
    assert "leave the block out" in refused({"nebula": {"enabled": True}})["deepspeed.nebula"]


def test_auto_takes_the_argument_everywhere():
    config = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": "auto",
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto",
                                                  "weight_decay": "auto"}},
        "scheduler": {"type": "WarmupDecayLR",
                      "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto",
                                 "warmup_num_steps": "auto", "total_num_steps": "auto"}},
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"},
    }  # fmt: skip
    filled, notices = filled_deepspeed(
        config, args(warmup_steps="5"), world_size=2, steps=100, half="bf16"
    )
    assert "auto" not in json.dumps(filled)
    assert filled["train_batch_size"] == 8
    assert filled["scheduler"]["params"] == {
        "warmup_type": "linear", "warmup_min_lr": 0, "warmup_max_lr": 2e-5, "warmup_num_steps": 5,
        "total_num_steps": 100}  # fmt: skip
    assert "reduce_bucket_size" not in filled["zero_optimization"]
    assert any("reduce_bucket_size" in notice for notice in notices)
    unknown_world, _ = filled_deepspeed({"train_batch_size": "auto"}, args())
    assert "train_batch_size" not in unknown_world


def test_an_auto_that_nothing_says_is_refused():
    found = refused({"flops_profiler": {"profile_step": "auto"}})
    assert list(found) == ["deepspeed.flops_profiler.profile_step"]
    assert "write a value" in found["deepspeed.flops_profiler.profile_step"]


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"gradient_clipping": 0.5}, "gradient_clipping"),
        ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu"),
        ({"gradient_accumulation_steps": 3}, "gradient_accumulation_steps"),
        ({"train_batch_size": 7}, "train_batch_size"),
        ({"fp16": {"enabled": True}}, "fp16.enabled"),
        ({"fp16": True}, "fp16"),
        ({"optimizer": {"type": "Lamb"}}, "optimizer.type"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1}}}, "optimizer.params.lr"),
        ({"optimizer": {"type": "AdamW", "params": 3}}, "optimizer.params"),
        ({"scheduler": {"type": "OneCycle"}}, "scheduler.type"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage"),
        ({"zero_optimization": 2}, "zero_optimization"),
    ],
)
def test_a_contradiction_is_refused_by_its_path(config, field):
    found = refused(config, world_size=2, steps=10)
    assert list(found) == [f"deepspeed.{field}"]


def test_contradictions_are_reported_together_and_say_both_values():
    config = {"gradient_clipping": 0.5, "fp16": {"enabled": True}, "bf16": {"enabled": True}}
    found = refused(config, args(precision="16"))
    assert set(found) == {"deepspeed.gradient_clipping", "deepspeed.fp16.enabled"}
    assert "is 0.5, but max_grad_norm is 1.0" in found["deepspeed.gradient_clipping"]
    assert "write 'auto' there" in found["deepspeed.gradient_clipping"]


def test_equal_numbers_are_no_contradiction():
    filled_deepspeed({"gradient_clipping": 1, "train_batch_size": 4}, args(), world_size=1)


def test_adafactor_stays_ours():
    config, notices = filled_deepspeed(None, args(optim="adafactor"))
    assert "optimizer" not in config
    assert config["zero_allow_untested_optimizer"] is True
    assert any("no Adafactor" in notice for notice in notices)
    found = refused({"optimizer": {"type": "AdamW"}}, args(optim="adafactor"))
    assert "leave the block out" in found["deepspeed.optimizer.type"]


def test_an_offloaded_optimizer_is_deepspeeds_own():
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    config, _ = filled_deepspeed({"zero_optimization": zero}, args())
    assert "torch_adam" not in config["optimizer"]["params"]


@pytest.mark.parametrize(
    ("given", "steps", "name"),
    [
        ({"warmup_steps": "4"}, 20, "WarmupDecayLR"),
        ({"warmup_steps": "4", "lr_scheduler_type": "constant_with_warmup"}, 20, "WarmupLR"),
        ({"warmup_steps": "4"}, None, None),
        ({"warmup_steps": "1"}, 20, None),
        ({"warmup_steps": "4", "lr_scheduler_type": "cosine"}, 20, None),
    ],
)
def test_a_schedule_is_deepspeeds_only_where_it_has_that_one(given, steps, name):
    config, notices = filled_deepspeed(None, args(**given), steps=steps)
    assert config.get("scheduler", {}).get("type") == name
    assert any("scheduler" in notice for notice in notices) is (name is None)


@pytest.mark.parametrize("text", ["", "{", "[1]", "not json"])
def test_a_file_that_is_no_json_object_is_refused_in_the_known_words(text):
    with pytest.raises(
        SpecError, match=r"Invalid deepspeed config file\. Unable to load json file\."
    ):
        read_deepspeed(text)
    assert read_deepspeed('{"a": 1}') == {"a": 1}
