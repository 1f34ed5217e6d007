"""LoRA through the finetune step, for every family that the components name: the targets are
found, the base does not move, and what is saved is what peft makes of it."""

import warnings

import pytest
import torch
import transformers
from component_world import Steps
from safetensors.torch import load_file

from luthier.errors import SpecError
from luthier.testing.task_models import FAMILIES, tiny_family

#: Family → what it can learn.
TASKS = {
    "gpt2": "TextGeneration", "t5": "Summarization", "bart": "Summarization",
    "mbart": "Translation", "marian": "Translation", "camembert": "NamedEntityRecognition",
    "deberta-v2": "NamedEntityRecognition", "distilbert": "QuestionAnswering",
}  # fmt: skip
#: Names of the modules that are to have adapters.
TARGETS = {
    "gpt2": {"c_attn"}, "deberta": {"in_proj"}, "deberta-v2": {"query_proj", "value_proj"},
    "distilbert": {"q_lin", "v_lin"}, "t5": {"q", "v"}, "bart": {"q_proj", "v_proj"},
    "mbart": {"q_proj", "v_proj"}, "marian": {"q_proj", "v_proj"},
}  # fmt: skip
LORA = {"apply_lora": "true", "lora_r": 2, "lora_alpha": 16, "max_steps": 3,
        "learning_rate": 1e-2, "evaluation_strategy": "no"}  # fmt: skip


def adapted(step, adapter, auto_class):
    """The base, as transformers opens it, with the adapter, as peft opens it."""
    from peft import PeftModel

    config = transformers.AutoConfig.from_pretrained(step.tuned_config)
    base = getattr(transformers, auto_class).from_pretrained(step.selected, config=config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's, of transformers' names
        return PeftModel.from_pretrained(base, adapter).eval()


def outputs(model):
    """Logits, for a text of every length up to 8, of what reads the numbers of tokens."""
    ids = torch.arange(5, 21).view(2, 8)
    more = {"decoder_input_ids": ids[:, :5]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids), **more)
    return found.start_logits if hasattr(found, "start_logits") else found.logits


@pytest.fixture
def learn(tmp_path):
    """Tune a tiny model of a family with adapters: the steps, and its class."""

    def go(family, **given):
        task = TASKS.get(family, "SingleLabelClassification")
        step = Steps(tmp_path, lambda _: tiny_family(tmp_path / "model", family), task)
        auto_class = step.select()["auto_class"]
        step.prepare(24)
        step.tune(**LORA, **given)
        step.tuned_config = step.tuned / ".luthier" / "result"
        return step, auto_class

    return go


def base_weights(step):
    return load_file(step.selected / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_is_base_and_adapter(learn, family) -> None:
    step, auto_class = learn(family)
    adapter = step.tuned / ".luthier" / "result" / "luthier" / "adapter"
    peft = adapted(step, adapter, auto_class)
    whole = getattr(transformers, auto_class).from_pretrained(step.tuned).eval()
    torch.testing.assert_close(outputs(whole), outputs(peft), atol=1e-5, rtol=1e-5)

    names = {n.split(".lora_A")[0].rpartition(".")[2] for n in load_file(
        adapter / "adapter_model.safetensors") if ".lora_A" in n}  # fmt: skip
    assert names == TARGETS.get(family, {"query", "value"})
    with peft.disable_adapter():
        assert (outputs(peft) - outputs(whole)).abs().max() > 1e-3  # else nothing was learned

    before, saved = base_weights(step), load_file(step.tuned / "model.safetensors")
    prefix = next(
        (p for n in saved for p in [n.removesuffix(m) for m in before if n.endswith(m)]), ""
    )
    compared = 0
    for name, weight in before.items():
        found = saved.get(f"{prefix}{name}", saved.get(name))
        if found is None:
            continue
        compared += 1
        module, _, kind = name.rpartition(".")
        target = kind == "weight" and module.rpartition(".")[2] in names
        assert torch.equal(found, weight) != target, name
    assert compared > 10


@pytest.mark.parametrize("family", ["bert", "gpt2", "mbart"])
def test_an_adapter_alone_opens_by_peft(learn, family) -> None:
    step, auto_class = learn(family, merge_lora_weights="false")
    assert not (step.tuned / "model.safetensors").exists()
    whole = getattr(transformers, auto_class).from_pretrained(step.tuned_config).eval()
    peft = adapted(step, step.tuned, auto_class)
    torch.testing.assert_close(outputs(peft), outputs(whole), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
@pytest.mark.parametrize("kind", ["use_dora", "use_rslora"])
def test_dora_and_rslora(learn, family, kind) -> None:
    step, auto_class = learn(family, **{kind: "true"})
    adapter = step.tuned / ".luthier" / "result" / "luthier" / "adapter"
    peft = adapted(step, adapter, auto_class)
    whole = getattr(transformers, auto_class).from_pretrained(step.tuned).eval()
    torch.testing.assert_close(outputs(whole), outputs(peft), atol=1e-5, rtol=1e-5)
    assert getattr(peft.peft_config["default"], kind) is True
    names = load_file(adapter / "adapter_model.safetensors")
    assert any("magnitude" in name for name in names) == (kind == "use_dora")
    layer = next(m for m in peft.modules() if isinstance(getattr(m, "scaling", None), dict))
    expected = 16 / 2**0.5 if kind == "use_rslora" else 16 / 2
    assert layer.scaling["default"] == pytest.approx(expected)


@pytest.mark.parametrize("precision", [4, 8])
def test_few_bits_are_refused(ready, precision) -> None:
    with pytest.raises(SpecError) as caught:
        ready.tune(apply_lora="true", precision=precision)
    (problem,) = caught.value.problems
    assert problem.field == "precision"
    assert "bitsandbytes" in problem.message
    assert "16 or 32" in problem.hint
    assert not ready.tuned.exists()
