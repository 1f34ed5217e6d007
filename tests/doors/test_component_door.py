"""The component door: the contract's parameters, what is refused, and what becomes of the rest."""

import subprocess
import sys

import pytest

from luthier.doors import component
from luthier.doors.component import (
    evaluation_steps,
    finetune_words,
    flags,
    leaves,
    metric_problems,
    notices,
    parse,
    preprocess_words,
)
from luthier.doors.component_table import METRICS, TABLE, TASKS
from luthier.errors import SpecError
from luthier.registry import find
from luthier.spec import JobSpec, ProcessingSpec, parse_spec
from luthier.tasks.cards import processing_problems

#: Name, type and default of every parameter of the published finetune component's document,
#: copied from it. "string" that is true or false is a boolean here. NONE: it states no default.
NONE = object()
CONTRACT = [
    ("apply_lora", "string", "false"),
    ("merge_lora_weights", "string", "true"),
    ("lora_alpha", "integer", 128),
    ("lora_r", "integer", 8),
    ("lora_dropout", "float", 0.0),
    ("num_train_epochs", "int", 5),
    ("max_steps", "int", -1),
    ("learning_rate", "float", 2e-5),
    ("per_device_train_batch_size", "int", 4),
    ("per_device_eval_batch_size", "int", 4),
    ("auto_find_batch_size", "string", "false"),
    ("apply_ort", "string", "false"),
    ("apply_deepspeed", "string", "false"),
    ("optim", "string", "adamw_hf"),
    ("warmup_steps", "int", 0),
    ("weight_decay", "float", 0),
    ("adam_beta1", "float", 0.9),
    ("adam_beta2", "float", 0.999),
    ("adam_epsilon", "float", 1e-8),
    ("gradient_accumulation_steps", "int", 1),
    ("lr_scheduler_type", "string", "linear"),
    ("precision", "int", 32),
    ("seed", "int", 42),
    ("dataloader_num_workers", "int", 0),
    ("ignore_mismatched_sizes", "string", "true"),
    ("max_grad_norm", "float", 1.0),
    ("evaluation_strategy", "string", "epoch"),
    ("evaluation_steps_interval", "float", 0),
    ("eval_steps", "int", 500),
    ("logging_strategy", "string", "epoch"),
    ("logging_steps", "int", 100),
    ("save_total_limit", "int", -1),
    ("apply_early_stopping", "string", "false"),
    ("early_stopping_patience", "int", NONE),
    ("early_stopping_threshold", "float", NONE),
    ("resume_from_checkpoint", "string", "false"),
    ("deepspeed", "URI_FILE", NONE),
]
INPUTS = [("preprocess_output", "uri_folder"), ("model_selector_output", "uri_folder")]
OUTPUTS = [("pytorch_model_folder", "uri_folder"), ("mlflow_model_folder", "mlflow_model")]
CHOICES = {
    "optim": ["adamw_hf", "adamw_torch", "adafactor"],
    "lr_scheduler_type": ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant",
                          "constant_with_warmup"],
    "precision": [16, 32],
    "evaluation_strategy": ["steps", "epoch"],
    "logging_strategy": ["steps", "epoch"],
}  # fmt: skip

FOLDERS = {name: f"/mnt/{name}" for name, _ in (*INPUTS, *OUTPUTS)}
ROW = {step: {p.name: p for p in rows} for step, rows in TABLE.items()}


def finetune(**given):
    return parse("finetune", FOLDERS | given)


def preprocess(task, **given):
    paths = {"model_selector_output": "m", "train_file_path": "t.jsonl", "preprocess_output": "o"}
    return parse("preprocess", {"task_name": task} | paths | given)


def refused(call, *args, **given):
    with pytest.raises(SpecError) as caught:
        call(*args, **given)
    return {problem.field: str(problem) for problem in caught.value.problems}


@pytest.mark.parametrize(("name", "kind", "default"), CONTRACT, ids=[row[0] for row in CONTRACT])
def test_every_parameter_of_the_contract_is_there_with_its_type_and_default(name, kind, default):
    row, value = ROW["finetune"][name], finetune()[name]
    if kind == "string" and default in ("true", "false"):
        assert row.kind == "boolean"
        assert value is (default == "true")
        return
    types = {"int": "integer", "integer": "integer", "float": "number", "string": "string"}
    assert row.kind == types.get(kind, kind.lower())
    if default is not NONE:
        assert value == default
        assert isinstance(value, {"integer": int, "number": float, "string": str}[row.kind])


def test_inputs_outputs_and_choices_are_those_of_the_contract():
    for name, kind in INPUTS + OUTPUTS:
        row = ROW["finetune"][name]
        assert (row.kind, row.required, row.output) == (kind, True, (name, kind) in OUTPUTS)
    for name, choices in CHOICES.items():
        assert set(choices) <= set(ROW["finetune"][name].choices)


@pytest.mark.parametrize("step", TABLE)
def test_names_are_unique_and_every_default_passes_its_own_check(step):
    assert len(ROW[step]) == len(TABLE[step])
    for row in TABLE[step]:
        assert row.step == step
        assert row.help
        if row.default is not None:
            assert component.read(row, row.text) == row.default


def test_every_parameter_of_finetune_goes_somewhere():
    by_leaf = {row.name for row in TABLE["finetune"] if row.leaf}
    refused_always = {"apply_ort"}
    places = [by_leaf, set(component.BY_HAND), set(component.BY_CALLER), refused_always]
    assert set.union(*places) == set(ROW["finetune"])
    assert sum(map(len, places)) == len(ROW["finetune"]), "one place each"


# What arrives


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("TRUE", True), ("1", True), ("False", False), ("0", False)]
)
def test_booleans_arrive_as_text(text, value):
    assert finetune(apply_lora=text)["apply_lora"] is value


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("apply_lora", "yes", "is true or false, not 'yes'"),
        ("apply_lora", "", "is empty"),
        ("lora_r", "8.0", "is a whole number, not '8.0'"),
        ("lora_r", "1_0", "is a whole number"),
        ("lora_r", "0", "is integer, at least 1, not 0"),
        ("learning_rate", "nan", "is a finite number"),
        ("learning_rate", "1_0", "is a number"),
        ("learning_rate", "0", "Invalid learning rate. Learning rate should be greater than 0."),
        ("learning_rate", "-1", "Invalid learning rate. Learning rate should be greater than 0."),
        ("evaluation_steps_interval", "1.5", "is number, at least 0, at most 1, not 1.5"),
        ("adam_beta2", "1", "below 1"),
        ("lora_dropout", "1", "below 1"),
        ("optim", "adamw_tourch", "did you mean 'adamw_torch'?"),
        ("precision", "64", "is one of 32, 16, 8, 4, not '64'"),
        ("save_total_limit", "0", "-1 keeps all"),
        ("save_total_limit", "-2", "at least -1"),
        ("seed", "4294967296", "below 4294967296"),
    ],
)
def test_a_wrong_value_is_refused_by_name(name, text, says):
    found = refused(finetune, **{name: text})
    assert list(found) == [name]
    assert says in found[name]


def test_a_scientific_number_and_spaces_are_read():
    assert finetune(learning_rate=" 3e-4 ")["learning_rate"] == 3e-4
    assert finetune(learning_rate="1")["learning_rate"] == 1.0


def test_an_unknown_flag_names_the_nearest_or_its_step():
    found = refused(finetune, learning_rat="1", doc_stride="3", zzz="1")
    assert "did you mean 'learning_rate'?" in found["learning_rat"]
    assert "it is a flag of the step preprocess" in found["doc_stride"]
    assert "knows no such flag" in found["zzz"]


def test_all_problems_are_reported_together_with_what_is_right():
    with pytest.raises(SpecError) as caught:
        parse("finetune", {"lora_r": "x", "optm": "y", "num_train_epochs": "3"})
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"lora_r", "optm", *FOLDERS}
    assert caught.value.partial["num_train_epochs"] == 3


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        ({"apply_early_stopping": "true", "evaluation_strategy": "no"}, "apply_early_stopping",
         "Set evaluation_strategy to one of steps or epoch when apply_early_stopping is True"),
        ({"apply_deepspeed": "true", "auto_find_batch_size": "1"}, "auto_find_batch_size",
         "Deep Speed cannot be coupled with auto_find_batch_size"),
        ({"apply_ort": "true"}, "apply_ort", "apply_compile=true"),
        ({"precision": "4"}, "precision", "give apply_lora=true"),
        ({"warmup_steps": "9", "lr_scheduler_type": "constant"}, "warmup_steps",
         "use constant_with_warmup"),
    ],
)  # fmt: skip
def test_what_cannot_go_together_is_refused(given, field, says):
    found = refused(finetune, **given)
    assert list(found) == [field]
    assert says in found[field]


def test_flags_are_read_in_both_forms_and_complaints_come_together():
    assert flags(["--max_steps", "-1", "--a=b=c"]) == {"max_steps": "-1", "a": "b=c"}
    found = refused(flags, ["stray", "--lora_r", "--seed", "1", "--seed=2"])
    assert set(found) == {"stray", "lora_r", "seed"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "none is given"),
        ({"model_path": "a", "huggingface_id": "b"}, "huggingface_id and model_path are given"),
    ],
)
def test_import_takes_exactly_one_model(given, says):
    words = {"task_name": "Translation", "model_selector_output": "o"}
    assert says in " ".join(refused(parse, "import", words | given).values())
    assert parse("import", words | {"mlflow_model_path": "m"})["mlflow_model_path"] == "m"


@pytest.mark.parametrize("word", ["huggingface_id", "model_path", "pytorch_model_path"])
def test_a_model_becomes_the_name_of_a_spec(word):
    args = parse("import", {"task_name": "Translation", "model_selector_output": "o", word: "m"})
    assert leaves("import", args) == {"model": {"name": "m"}}


def test_preprocess_refuses_what_is_for_another_task():
    found = refused(preprocess, "Summarization", label_key="x", doc_stride="64")
    assert "not for Summarization" in found["label_key"]
    assert "is for QuestionAnswering" in found["doc_stride"]
    assert preprocess("Summarization", doc_stride="128")["doc_stride"] == 128, "the default"


def test_preprocess_asks_for_languages_and_for_a_length_that_fits_something():
    assert set(refused(preprocess, "Translation")) == {"source_lang", "target_lang"}
    found = refused(preprocess, "Translation", source_lang="en", target_lang="en")
    assert "is the source language too" in found["target_lang"]
    assert (
        "at least 4, not 2"
        in refused(preprocess, "Summarization", max_seq_length="2")["max_seq_length"]
    )


# What becomes of it


def spec(words, **more):
    source = {"uri": "/data/rows.jsonl"}
    groups = {"model": {"name": "bert"}, "data": {"train": source}}
    return parse_spec(groups | words | more)


def test_defaults_become_a_spec_with_the_contracts_values():
    job = spec(finetune_words(finetune()))
    assert isinstance(job, JobSpec)
    training = job.training
    assert (training.optim, training.precision, training.eval_steps) == ("AdamW", "fp32", None)
    assert training.optim_args == {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
    assert (training.learning_rate, training.lr_scheduler_type) == (2e-5, "linear")
    assert (training.num_train_epochs, training.max_steps, training.seed) == (5, -1, 42)
    assert (training.per_device_train_batch_size, training.per_device_eval_batch_size) == (4, 4)
    assert (training.max_grad_norm, training.gradient_accumulation_steps) == (1.0, 1)
    assert job.adapter.lora_r is None
    assert [callback.kind for callback in job.callbacks] == ["best_model"]


def test_given_values_reach_the_spec():
    args = finetune(
        apply_lora="true", lora_r="4", lora_alpha="16", lora_dropout="0.1", use_rslora="true",
        lora_target_modules="query, value", warmup_steps="7", max_steps="0", precision="16",
        evaluation_strategy="steps", eval_steps="11", apply_early_stopping="true",
        early_stopping_patience="3", early_stopping_threshold="0.01", adam_beta1="0.8",
        metric_for_best_model="bleu", dataloader_num_workers="2",
    )  # fmt: skip
    job = spec(finetune_words(args, half="fp16"))
    adapter, training = job.adapter, job.training
    assert (adapter.lora_r, adapter.lora_alpha, adapter.lora_dropout) == (4, 16, 0.1)
    assert adapter.use_rslora
    assert adapter.target_modules == ("query", "value")
    assert (training.num_warmup_steps, training.max_steps, training.eval_steps) == (7, -1, 11)
    assert (training.precision, training.dataloader_num_workers) == ("fp16", 2)
    assert training.optim_args["betas"] == [0.8, 0.999]
    best, stopping = job.callbacks
    assert (best.monitor, stopping.monitor, stopping.patience) == ("bleu", "bleu", 3)
    assert stopping.min_delta == 0.01


def test_evaluation_steps_round_up_exactly_and_stay_in_range():
    assert [evaluation_steps(0.07, 100), evaluation_steps(0.5, 7), evaluation_steps(1, 7)] == [
        7, 4, 7]  # fmt: skip
    assert evaluation_steps(0.001, 10) == 1
    for interval in (-0.1, 1.01):
        assert "between 0 and 1" in str(refused(evaluation_steps, interval, 10))


def test_an_interval_needs_the_length_of_an_epoch_and_wins_over_eval_steps():
    args = finetune(evaluation_strategy="steps", evaluation_steps_interval="0.25", eval_steps="9")
    assert finetune_words(args, steps_per_epoch=10)["training"]["eval_steps"] == 3
    with pytest.raises(ValueError, match="needs steps_per_epoch"):
        finetune_words(args)


def test_without_evaluation_nothing_watches():
    assert finetune_words(finetune(evaluation_strategy="no"))["callbacks"] == []


def test_qlora_is_refused_with_its_reason():
    args = finetune(precision="8", apply_lora="true")
    assert "QLoRA in 8 bits is not built in" in refused(finetune_words, args)["precision"]


def test_what_has_no_effect_is_told():
    assert notices(finetune(optim="adamw_torch")) == []
    told = notices(finetune(lora_r="4", deepspeed="ds.json", evaluation_steps_interval="0.5"))
    assert [line.split(":")[0] for line in told] == [
        "optim", "lora_r has no effect", "deepspeed has no effect",
        "evaluation_steps_interval has no effect"]  # fmt: skip
    assert notices(finetune(optim="adafactor", apply_lora="true", lora_r="4")) == []


@pytest.mark.parametrize(
    ("task", "given", "columns"),
    [
        ("SingleLabelClassification", {"sentence1_key": "a", "label_key": "b"},
         {"sentence1": "a", "label": "b"}),
        ("MultiLabelClassification", {"sentence2_key": "c"}, {"sentence2": "c"}),
        ("NamedEntityRecognition", {"token_key": "a", "tag_key": "b"},
         {"tokens": "a", "tags": "b"}),
        ("QuestionAnswering", {"question_key": "q", "answers_key": "a", "answer_text_key": "t"},
         {"question": "q", "answers": "a", "answer_text": "t"}),
        ("QuestionAnswering", {"answer_text_key": "t", "answer_start_key": "s"},
         {"answer_text": "t", "answer_start": "s"}),
        ("Summarization", {"document_key": "a", "summary_key": "b"},
         {"document": "a", "summary": "b"}),
        ("Translation", {"source_lang": "en", "target_lang": "ro"}, {}),
        ("TextGeneration", {"text_key": "a", "ground_truth_key": "b"},
         {"text": "a", "ground_truth": "b"}),
        ("ChatCompletion", {"messages_key": "m"}, {"messages": "m"}),
        ("ImageClassification", {"image_key": "i", "label_key": "l"},
         {"image": "i", "label": "l"}),
    ],
)  # fmt: skip
def test_columns_become_roles_of_our_task(task, given, columns):
    words = preprocess_words(preprocess(task, **given))
    processing = ProcessingSpec.model_validate(words["processing"])
    assert processing_problems(words["task"], processing) == []
    assert processing.source_lang == given.get("source_lang")
    assert words["task"] == TASKS[task]
    assert processing.columns == columns
    assert processing.multi_label is (task == "MultiLabelClassification")


def test_the_words_of_two_steps_make_one_spec():
    prepared = preprocess_words(preprocess("Translation", source_lang="en", target_lang="ro"))
    trained = finetune_words(finetune(learning_rate="3e-4", apply_lora="true"))
    assert set(prepared).isdisjoint(trained)
    job = spec(trained, **prepared)
    assert (job.task, job.processing.target_lang) == ("translation", "ro")
    assert (job.training.learning_rate, job.adapter.lora_r) == (3e-4, 8)


def test_lengths_and_windows_become_processing():
    args = preprocess("QuestionAnswering", max_seq_length="384", doc_stride="64",
                      max_answer_length_in_tokens="15", pad_to_max_length="True")  # fmt: skip
    processing = ProcessingSpec.model_validate(preprocess_words(args)["processing"])
    assert (processing.max_seq_length, processing.doc_stride) == (384, 64)
    assert (processing.max_answer_length, processing.pad_to_max_length) == (15, True)
    untold = preprocess_words(preprocess("Summarization"))["processing"]
    assert "max_seq_length" not in untold, "-1 is the model's own limit"


def test_a_metric_must_be_one_that_the_task_measures():
    assert metric_problems("loss", "ChatCompletion") == []
    assert metric_problems("bleu", "Translation") == []
    [problem] = metric_problems("bleu", "Summarization")
    assert "it measures: loss, rouge1" in str(problem)
    assert set(METRICS) == set(TASKS)
    for task, metrics in METRICS.items():
        facts = find("task", TASKS[task]).facts
        several = facts.get("multi_label_metrics") if task.startswith("MultiLabel") else None
        measured = {metric.name for metric in several or facts["metrics"]}
        assert set(metrics) <= measured, task


def test_the_door_loads_no_model_library():
    heavy = {"torch", "transformers", "numpy", "pyarrow", "pydantic"}
    code = (
        "import sys\nfrom luthier.doors import component, component_yaml, deepspeed_config\n"
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy.isdisjoint(done.stdout.split())
