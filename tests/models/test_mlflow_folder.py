"""MLflow models: a stock MLflow opens and serves them, and they answer as the model itself does."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

from luthier.errors import MissingExtra, ModelError, SpecError
from luthier.models.mlflow_folder import write_mlflow_model
from luthier.models.mlflow_signature import GENERATION, SERVED, generation_defaults, options_of
from luthier.spec.processing import ProcessingSpec
from luthier.testing.models import tiny_text_model, wordpiece_tokenizer

pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # MLflow warns of its own type hints when it is imported
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]

LENGTH = 64
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": LENGTH,
}  # fmt: skip
WORDS = ["bad", "fair", "good"]
CONTEXT = "the boat of nora is red, and the cabin by the lake is tiny. " * 12


def _bert(auto_class, labels=(), **more):
    names = dict(enumerate(labels))
    codes = {name: code for code, name in names.items()}
    extra = {"id2label": names, "label2id": codes} if labels else {}

    def made(tokenizer):
        config = transformers.BertConfig(vocab_size=len(tokenizer), **SHAPE, **extra, **more)
        return getattr(transformers, auto_class)(config)

    return made


def _t5(tokenizer):
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2,
        num_decoder_layers=1, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.sep_token_id, decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def _llama(tokenizer):
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), **SHAPE, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


MAKE = {
    "text-classification": _bert("BertForSequenceClassification", WORDS),
    "token-classification": _bert("BertForTokenClassification", ["O", "B-PER", "I-PER"]),
    "question-answering": _bert("BertForQuestionAnswering"),
    "summarization": _t5,
    "translation": _t5,
    "text-generation": _llama,
    "chat-completion": _llama,
}
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def _save_tiny(folder, task):
    """A random model with a head for the task; the same for the same task."""
    tokenizer = wordpiece_tokenizer(600, LENGTH, with_types=MAKE[task] not in (_t5, _llama))
    if task == "chat-completion":
        tokenizer.chat_template = TEMPLATE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = MAKE[task](tokenizer).eval()
        for name, parameter in model.named_parameters():  # away from uniform answers
            if "weight" in name and parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.3)
        model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    made = {}

    def get(task):
        if task not in made:
            made[task] = _save_tiny(tmp_path_factory.mktemp("tiny") / task, task)
        return made[task]

    return get


@pytest.fixture
def published(tiny, tmp_path):
    """A model of a task, written as MLflow's and opened by MLflow."""

    def publish(task, example=None, model=None, **options):
        folder = tmp_path / f"mlflow-{len(list(tmp_path.iterdir()))}"
        write_mlflow_model(folder, model or tiny(task), task, options=options, example=example)
        import mlflow.pyfunc

        return mlflow.pyfunc.load_model(str(folder))

    return publish


def ask(model, rows, **params):
    frame = pd.DataFrame(rows, columns=pd.Index(list(rows[0]), dtype=object), dtype=object)
    return model.predict(frame, params=params or None)


def opened(folder, auto_class):
    model = getattr(transformers, auto_class).from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


# The folder


def test_the_folder_has_what_mlflow_and_azure_look_for(tiny, tmp_path):
    example = [{"sentence1": "a nice day"}, {"sentence1": "rain"}]
    folder = tmp_path / "model"
    write_mlflow_model(folder, tiny("text-classification"), "text-classification",
                       options={"max_seq_length": 16}, example=example)  # fmt: skip
    from mlflow.models import Model

    saved = Model.load(str(folder))
    flavor = saved.flavors["python_function"]
    assert flavor["loader_module"] == "luthier.serving.pyfunc"
    assert flavor["code"] is None
    assert flavor["config"] == {
        "task": "text-classification", "max_seq_length": 16, "multi_label": False,
        "batch_size": 8, "device": "auto"}  # fmt: skip
    assert saved.signature.inputs.input_names() == ["sentence1", "sentence2"]
    assert saved.signature.inputs.required_input_names() == ["sentence1"]
    kinds = {column.type.name for column in saved.signature.inputs.inputs}
    kinds |= {column.type.name for column in saved.signature.outputs.inputs}
    assert kinds == {"string"}
    stored = saved.load_input_example(str(folder))
    assert stored["sentence1"].tolist() == ["a nice day", "rain"]
    asked = json.loads((folder / "serving_input_example.json").read_text())
    assert asked == {
        "dataframe_split": {"columns": ["sentence1"], "data": [["a nice day"], ["rain"]]}
    }


def test_packages_are_pinned_to_what_is_installed(tiny, tmp_path):
    write_mlflow_model(tmp_path / "m", tiny("translation"), "translation", options={})
    lines = (tmp_path / "m" / "requirements.txt").read_text().splitlines()
    for name in ("torch", "transformers", "tokenizers", "safetensors", "luthier"):
        assert f"{name}=={version(name).partition('+')[0]}" in lines
    assert all("==" in line and "+" not in line for line in lines), lines
    import yaml

    conda = yaml.safe_load((tmp_path / "m" / "conda.yaml").read_text())
    assert conda["dependencies"][-1]["pip"] == lines
    python = yaml.safe_load((tmp_path / "m" / "python_env.yaml").read_text())
    assert python["python"] == ".".join(map(str, sys.version_info[:3]))


def test_no_pickle_and_no_checkpoint_goes_along(tiny, tmp_path):
    model = tmp_path / "tuned"
    _save_tiny(model, "text-classification")
    (model / "checkpoint-4").mkdir()
    (model / "checkpoint-4" / "model.safetensors").write_bytes(b"x")
    for name in ("optimizer.pt", "training_args.bin", "rng.pkl"):
        (model / name).write_bytes(b"x")
    write_mlflow_model(tmp_path / "m", model, "text-classification", options={})
    files = [p for p in (tmp_path / "m").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {"", ".json", ".yaml", ".txt", ".safetensors"}
    assert not any("checkpoint" in str(p) for p in files)
    assert not any(p.is_symlink() for p in files), "a folder that stands by itself"
    assert sorted(p.name for p in model.iterdir() if p.suffix == ".pkl") == ["rng.pkl"]


def test_a_fresh_process_with_stock_mlflow_opens_it(tiny, tmp_path):
    write_mlflow_model(
        tmp_path / "m", tiny("text-classification"), "text-classification", options={}
    )
    code = (
        "import sys, mlflow.pyfunc\n"
        "assert 'luthier' not in sys.modules\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "print(model.predict([{'sentence1': 'a nice day'}]).to_json(orient='records'))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")], env=environment, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    [row] = json.loads(done.stdout.splitlines()[-1])
    model, tokenizer = opened(tiny("text-classification"), "AutoModelForSequenceClassification")
    with torch.no_grad():
        shares = model(**tokenizer("a nice day", return_tensors="pt")).logits.softmax(-1)[0]
    assert row["prediction"] == WORDS[int(shares.argmax())]
    assert list(json.loads(row["scores"]).values()) == pytest.approx(shares.tolist(), abs=1e-5)


def test_an_older_model_is_replaced_an_empty_folder_filled_and_anything_else_kept(tiny, tmp_path):
    model, folder = tiny("text-classification"), tmp_path / "m"
    folder.mkdir()
    inode = folder.stat().st_ino
    write_mlflow_model(folder, model, "text-classification", options={})
    assert folder.stat().st_ino == inode, "an empty folder may be a mount"
    write_mlflow_model(folder, model, "text-classification", options={"batch_size": 2})
    assert "batch_size: 2" in (folder / "MLmodel").read_text()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(ModelError, match="is not empty, and holds no MLflow model"):
        write_mlflow_model(other, model, "text-classification", options={})
    assert (other / "thesis.txt").read_text() == "mine"


def test_what_cannot_be_published_is_refused(tiny, tmp_path):
    model = tiny("text-classification")

    def refused(kind, match, source=model, task="text-classification", **more):
        with pytest.raises(kind, match=match):
            write_mlflow_model(tmp_path / "out", source, task, **({"options": {}} | more))
        assert not (tmp_path / "out").exists()

    refused(SpecError, "did you mean 'text-classification'", task="text-clasification")
    refused(SpecError, "did you mean 'multi_label'", options={"multi_lable": True})
    refused(SpecError, "text-classification has no such option", options={"doc_stride": 1})
    refused(SpecError, "options.max_seq_length: .* greater", options={"max_seq_length": 1})
    wrong = {"generation": {"num_beams": 0}}
    refused(SpecError, "num_beams must be at least 1", task="summarization", options=wrong)
    refused(SpecError, r"example\.0\.sentence1: is missing", example=[{"sentence2": "b"}])
    example = [{"sentence1": "a"}, {"sentence1": 3, "sentence": "b"}]
    refused(SpecError, "did you mean 'sentence1'", example=example)
    refused(SpecError, r"example\.1\.sentence1: is no text", example=example)
    (tmp_path / "empty").mkdir()
    refused(ModelError, "no config.json", source=tmp_path / "empty")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    refused(ModelError, "merge_lora_weights=true", source=adapter)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    refused(ModelError, "no weights in safetensors", source=pickled)


def test_what_fails_leaves_an_empty_folder_empty_and_an_older_model_whole(
    tiny, tmp_path, monkeypatch
):
    model = tiny("text-classification")
    write_mlflow_model(tmp_path / "old", model, "text-classification", options={})
    before = sorted(p.name for p in (tmp_path / "old").rglob("*"))
    (tmp_path / "empty").mkdir()
    import mlflow.pyfunc

    def half(path, **_):
        (Path(path) / "data").mkdir()
        (Path(path) / "MLmodel").write_text("half")
        raise RuntimeError("the plug was pulled")

    monkeypatch.setattr(mlflow.pyfunc, "save_model", half)
    for name in ("old", "empty", "new"):
        with pytest.raises(RuntimeError, match="plug"):
            write_mlflow_model(tmp_path / name, model, "text-classification", options={})
    assert sorted(p.name for p in (tmp_path / "old").rglob("*")) == before
    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "new").exists()


def test_without_mlflow_its_extra_is_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow.pyfunc", None)
    with pytest.raises(MissingExtra, match="luthier\\[mlflow\\]"):
        write_mlflow_model(
            tmp_path / "m", tiny("text-classification"), "text-classification", options={}
        )


def test_options_are_those_that_the_task_uses():
    spec = ProcessingSpec().model_dump()
    asks = options_of("question-answering")
    assert {"doc_stride", "n_best_size", "max_answer_length", "unanswerable"} < set(asks)
    assert asks["doc_stride"] == spec["doc_stride"]
    assert set(options_of("embedding")) == {"normalize", "device", "batch_size"}
    assert {"source_lang", "target_lang", "source_prefix"} < set(options_of("translation"))
    assert "source_lang" not in options_of("summarization")


# The answers


def test_a_text_or_a_pair_gets_its_label_and_all_scores(published, tiny):
    model = published("text-classification")
    rows = [
        {"sentence1": "a nice day", "sentence2": "rain"},
        {"sentence1": "no", "sentence2": "x y"},
    ]
    answers = ask(model, rows)
    plain, tokenizer = opened(tiny("text-classification"), "AutoModelForSequenceClassification")
    for row, (_, answer) in zip(rows, answers.iterrows(), strict=True):
        with torch.no_grad():
            features = tokenizer(row["sentence1"], row["sentence2"], return_tensors="pt")
            shares = plain(**features).logits.softmax(-1)[0]
        assert answer["prediction"] == WORDS[int(shares.argmax())]
        assert list(json.loads(answer["scores"]).values()) == pytest.approx(
            shares.tolist(), abs=1e-5
        )


def test_any_number_of_labels(published, tiny):
    rows = [{"sentence1": text} for text in ("a nice day", "rain and snow", "no")]
    plain, tokenizer = opened(tiny("text-classification"), "AutoModelForSequenceClassification")
    answers = ask(published("text-classification", multi_label=True), rows)
    for row, (_, answer) in zip(rows, answers.iterrows(), strict=True):
        with torch.no_grad():
            shares = plain(**tokenizer(row["sentence1"], return_tensors="pt")).logits.sigmoid()[0]
        wanted = [name for name, share in zip(WORDS, shares.tolist(), strict=True) if share > 0.5]
        assert json.loads(answer["prediction"]) == wanted


def test_every_word_has_a_tag_however_long_the_text(published, tiny):
    long = "nora has a boat and a cabin by the lake " * 12
    rows = [
        {"tokens": "nora sails"},
        {"tokens": json.dumps(["nora", "sails", "fast!"])},
        {"tokens": long},
    ]
    answers = ask(published("token-classification"), rows)
    tags = [json.loads(text) for text in answers["prediction"]]
    assert [len(t) for t in tags] == [2, 3, len(long.split())]
    assert answers.columns.tolist() == ["prediction"]
    plain, tokenizer = opened(tiny("token-classification"), "AutoModelForTokenClassification")
    features = tokenizer(
        [["nora", "sails", "fast!"]], is_split_into_words=True, return_tensors="pt"
    )
    with torch.no_grad():
        codes = plain(**features).logits[0].argmax(-1).tolist()
    firsts = [features.word_ids().index(word) for word in range(3)]
    assert tags[1] == [plain.config.id2label[codes[first]] for first in firsts]


def test_the_answer_is_the_best_span_by_brute_force(published, tiny):
    row = {"question": "which boat?", "context": "the boat of nora is red, by the lake."}
    [answer] = ask(
        published("question-answering", max_answer_length=5, n_best_size=64), [row]
    ).to_dict("records")
    plain, tokenizer = opened(tiny("question-answering"), "AutoModelForQuestionAnswering")
    features = tokenizer(row["question"], row["context"], return_tensors="pt",
                         return_offsets_mapping=True)  # fmt: skip
    offsets = features.pop("offset_mapping")[0].tolist()
    places = [i for i, part in enumerate(features.sequence_ids(0)) if part == 1]
    with torch.no_grad():
        out = plain(**features)
    starts, ends = out.start_logits[0].tolist(), out.end_logits[0].tolist()
    pairs = [(starts[i] + ends[j], i, j) for i in places for j in places if i <= j < i + 5]
    best, i, j = max(pairs)
    assert json.loads(answer["scores"])["score"] == pytest.approx(best, abs=1e-4)
    assert answer["prediction"] == row["context"][offsets[i][0] : offsets[j][1]]


def test_long_contexts_are_read_in_windows_and_an_answer_may_be_none(published):
    rows = [
        {"question": "which boat?", "context": CONTEXT},
        {"question": "who?", "context": "nora"},
    ]
    answers = ask(published("question-answering", doc_stride=8), rows).to_dict("records")
    for row, answer in zip(rows, answers, strict=True):
        assert answer["prediction"]
        assert answer["prediction"] in row["context"]
    free = ask(published("question-answering", doc_stride=8, unanswerable=True), rows)
    for answer, other in zip(answers, free.to_dict("records"), strict=True):
        said = json.loads(other["scores"])
        nothing = said["no_answer_score"] > said["score"]
        assert other["prediction"] == ("" if nothing else answer["prediction"])


@pytest.mark.parametrize(
    ("task", "column"), [("summarization", "document"), ("translation", "source")]
)
def test_texts_are_what_generate_makes(published, tiny, task, column):
    texts = ["a boat by the lake", "rain", "nora is in the cabin today"]
    model = published(task, source_prefix="say: ", generation={"max_new_tokens": 6})
    answers = ask(model, [{column: text} for text in texts])["prediction"].tolist()
    plain, tokenizer = opened(tiny(task), "AutoModelForSeq2SeqLM")
    for text, answer in zip(texts, answers, strict=True):
        made = plain.generate(**tokenizer(f"say: {text}", return_tensors="pt"), max_new_tokens=6)
        assert answer == tokenizer.decode(made[0], skip_special_tokens=True).strip()
    assert len(set(answers)) > 1, "a test that could not fail otherwise"


def test_a_text_goes_on_the_same_in_a_batch_or_alone_and_is_not_repeated(published, tiny):
    texts = ["a boat by the lake", "rain", "nora is in the cabin today"]
    model = published("text-generation", generation={"max_new_tokens": 5})
    together = ask(model, [{"text": text} for text in texts])["prediction"].tolist()
    plain, tokenizer = opened(tiny("text-generation"), "AutoModelForCausalLM")
    for text, answer in zip(texts, together, strict=True):
        assert ask(model, [{"text": text}])["prediction"].tolist() == [answer]
        features = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        made = plain.generate(**features, max_new_tokens=5, do_sample=False)
        rest = made[0, features["input_ids"].shape[1] :]
        assert answer == tokenizer.decode(rest, skip_special_tokens=True).strip()


def test_a_chat_is_written_by_its_template(published, tiny):
    chat = [{"role": "user", "content": "a boat?"}]
    model = published("chat-completion", generation={"max_new_tokens": 5})
    rows = [{"messages": json.dumps(chat)}, {"messages": "a boat?"}]
    listed, plain_text = ask(model, rows)["prediction"].tolist()
    assert listed == plain_text
    plain, tokenizer = opened(tiny("chat-completion"), "AutoModelForCausalLM")
    features = tokenizer("user: a boat?\nassistant:", add_special_tokens=False,
                         return_tensors="pt", return_token_type_ids=False)  # fmt: skip
    made = plain.generate(**features, max_new_tokens=5, do_sample=False)
    rest = made[0, features["input_ids"].shape[1] :]
    assert listed == tokenizer.decode(rest, skip_special_tokens=True).strip()
    with pytest.raises(Exception, match=r"request, row 1, column messages: message 1"):
        ask(model, [{"messages": '[{"role": "user"}]'}])


def test_a_model_without_a_template_is_no_chat_model(published, tiny):
    with pytest.raises(ModelError, match="no chat template"):
        published("chat-completion", model=tiny("text-generation"))


def test_generation_parameters_are_parameters_of_the_signature(published, tiny):
    model = published("summarization", generation={"max_new_tokens": 6, "num_beams": 2})
    params = {spec.name: spec.default for spec in model.metadata.signature.params}
    assert set(params) == {*GENERATION, "batch_size"}
    assert (params["max_new_tokens"], params["num_beams"], params["do_sample"]) == (6, 2, False)
    rows = [{"document": "a boat by the lake"}]
    _, tokenizer = opened(tiny("summarization"), "AutoModelForSeq2SeqLM")
    [short] = ask(model, rows, max_new_tokens=2)["prediction"]
    assert len(tokenizer(short, add_special_tokens=False).input_ids) <= 2
    assert short != ask(model, rows)["prediction"][0]
    torch.manual_seed(0)
    sampled = {ask(model, rows, do_sample=True, temperature=5.0)["prediction"][0] for _ in range(4)}
    assert len(sampled) > 1
    with pytest.raises(Exception, match="max_new_tokens must be at least 1"):
        ask(model, rows, max_new_tokens=0)


def test_defaults_come_from_the_models_own_generation_config(tmp_path):
    (tmp_path / "generation_config.json").write_text(
        '{"num_beams": 4, "max_length": 62, "temperature": null, "top_k": -3, "pad_token_id": 1}'
    )
    found = generation_defaults(tmp_path, {"generation": {"num_beams": 2}})
    assert (found["num_beams"], found["max_new_tokens"], found["temperature"]) == (2, 62, 1.0)
    assert found["top_k"] == 50, "what is out of range is not taken over"
    assert generation_defaults(tmp_path, {"max_target_length": 9})["max_new_tokens"] == 9


def test_images_come_as_base64_or_bytes(published, tmp_path):
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    config = transformers.ViTConfig(
        image_size=16, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, id2label=dict(enumerate(WORDS)),
        label2id={name: code for code, name in enumerate(WORDS)},
    )  # fmt: skip
    folder = tmp_path / "vit"
    torch.manual_seed(0)
    plain = transformers.ViTForImageClassification(config).eval()
    plain.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    made = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": size,
            "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
            "do_rescale": True, "rescale_factor": 1 / 255, "resample": 2}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(made))
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    image_module.fromarray(pixels).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    model = published("image-classification", model=folder)
    rows = [{"image": text}, {"image": file.getvalue()}, {"image": f"data:image/png;base64,{text}"}]
    answers = ask(model, rows)
    with torch.no_grad():
        tensor = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255 * 2 - 1
        shares = plain(pixel_values=tensor).logits.softmax(-1)[0]
    for _, answer in answers.iterrows():
        assert answer["prediction"] == WORDS[int(shares.argmax())]
        scores = list(json.loads(answer["scores"]).values())
        assert scores == pytest.approx(shares.tolist(), abs=1e-4)
    here = tmp_path / "here.png"  # a picture that is there: nobody may name files of the server
    here.write_bytes(file.getvalue())
    for wrong in ("%%", "aGVsbG8=", str(here)):
        with pytest.raises(Exception, match="request, row 2, column image"):
            ask(model, [{"image": text}, {"image": wrong}])


def test_embeddings_are_the_encoders_own(published, tmp_path):
    from luthier.models.loading import open_text_model

    folder = tiny_text_model(tmp_path / "encoder")
    model = published("embedding", model=folder, normalize=True)
    texts = ["a boat", "rain", "the cabin by the lake"]
    vectors = np.array(ask(model, [{"text": t} for t in texts], batch_size=2)["embedding"].tolist())
    assert np.allclose(vectors, open_text_model(folder).encode(texts, normalize=True), atol=1e-6)


def test_rows_keep_their_order_and_index_and_none_gives_none(published):
    model = published("text-classification")
    texts = ["a " * n for n in (1, 30, 2, 20, 3)]
    frame = pd.DataFrame({"sentence1": pd.Series(texts, index=[9, 7, 5, 3, 1], dtype=object)})
    answers = model.predict(frame, params={"batch_size": 2})
    assert answers.index.tolist() == [9, 7, 5, 3, 1]
    alone = [model.predict(frame.iloc[[i]])["scores"].iloc[0] for i in range(5)]
    for one, other in zip(answers["scores"], alone, strict=True):
        assert list(json.loads(one).values()) == pytest.approx(
            list(json.loads(other).values()), abs=1e-5
        )
    assert model.predict(frame.iloc[:0]).columns.tolist() == ["prediction", "scores"]


def test_a_missing_text_is_refused_by_row_and_column(published):
    with pytest.raises(Exception, match="row 2, column sentence1: is missing"):
        ask(published("text-classification"), [{"sentence1": "a"}, {"sentence1": None}])


def test_every_task_is_served_by_columns_of_its_own_roles():
    from luthier.registry import cards

    names = {card.name: card for card in cards("task")}
    assert set(names) | {"embedding"} == set(SERVED)
    for task in names:
        assert set(SERVED[task].inputs) <= {role.name for role in names[task].facts["roles"]}


def test_what_is_served_is_what_was_measured(published, tiny):
    """The predictions are those of luthier.tasks, which the scores of a run come from."""
    import pyarrow as pa

    from luthier.data.rows import Rows
    from luthier.registry import find

    rows = {"tokens": [["nora", "sails"], ["a", "boat", "by", "the", "lake"]]}
    task = find("task", "token-classification").load()()
    model, tokenizer = task.load(str(tiny("token-classification")), random_head_ok=False)
    labels = ["O", "B-PER", "I-PER"]
    examples = task.read(Rows("rows", pa.table(rows)), labels, supervised=False)
    wanted = task.predict(model, examples, tokenizer).values
    asked = [{"tokens": json.dumps(words)} for words in rows["tokens"]]
    served = ask(published("token-classification"), asked)["prediction"]
    assert [json.loads(text) for text in served] == wanted


# The server


def _post(address, body):
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def _until_it_answers(address, server, log, deadline_s=180):
    """Poll the server's own health page until it is up; a server that ends is a failure."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/ping", timeout=5) as reply:
                assert reply.status == 200
                return
        except OSError:
            try:
                server.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                continue
    pytest.fail(f"no answer in {deadline_s} s: {log.read_text()}")


@pytest.mark.slow
def test_mlflow_models_serve_answers_over_http(tiny, tmp_path):
    """The real command, a real process, a real port."""
    write_mlflow_model(tmp_path / "m", tiny("summarization"), "summarization",
                       options={"generation": {"max_new_tokens": 6}})  # fmt: skip
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    scripts = Path(sys.executable).parent  # mlflow starts "uvicorn" by its name
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    log, address = tmp_path / "server.log", f"http://127.0.0.1:{port}"
    command = [str(scripts / "mlflow"), "models", "serve", "--model-uri", str(tmp_path / "m"),
               "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    with open(log, "w") as out:
        server = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        _until_it_answers(address, server, log)
        rows = [{"document": "a boat by the lake"}, {"document": "rain"}]
        status, reply = _post(address, {"dataframe_records": rows})
        assert status == 200, reply
        plain, tokenizer = opened(tiny("summarization"), "AutoModelForSeq2SeqLM")
        made = [
            plain.generate(**tokenizer(row["document"], return_tensors="pt"), max_new_tokens=6)
            for row in rows
        ]
        texts = [tokenizer.decode(ids[0], skip_special_tokens=True).strip() for ids in made]
        assert [row["prediction"] for row in reply["predictions"]] == texts
        status, reply = _post(address, {"dataframe_records": rows, "params": {"max_new_tokens": 1}})
        assert status == 200
        assert [row["prediction"] for row in reply["predictions"]] != texts
        status, reply = _post(address, {"dataframe_records": [{"documnt": "x"}]})
        assert status == 400
        assert "missing inputs ['document']" in reply["message"]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)
