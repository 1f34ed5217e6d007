"""Chat completion: only what the assistant says is learnt, by either way of finding it."""

import numpy as np
import pytest
import torch

from luthier.errors import DataError, ModelError
from luthier.spec import ProcessingSpec
from luthier.tasks.chat_completion import ChatCompletion

PLAIN = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}</s>\n{% endgeneration %}{% else %}"
    "{{ m['content'] }}</s>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
UNSTABLE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{{ '!' if loop.last and m['role'] == 'assistant' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
THINKING = (
    "{% for m in messages %}<{{ m['role'] }}>"
    "{{ '<think></think>' if loop.last and m['role'] == 'assistant' }}{{ m['content'] }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
PICKY = "{{ raise_exception('roles must alternate') }}"
TALK = [
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
                  {"role": "assistant", "content": "Hé!"}, {"role": "user", "content": "Who?"},
                  {"role": "assistant", "content": "Me"}]},
    {"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]},
]  # fmt: skip


def load(folder, template, **options):
    ours = ChatCompletion(ProcessingSpec(**options))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return ours, *ours.load(folder)


@pytest.fixture
def chat(plain_gpt2, tmp_path):
    """A copy of the tiny GPT-2 that a template can be written into."""
    import shutil

    return shutil.copytree(plain_gpt2, tmp_path / "chat")


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_only_the_assistant_is_learnt(rows, chat, template):
    ours, model, tokenizer = load(chat, template)
    examples = ours.read(rows(TALK))
    features = ours.features(examples, np.arange(2), tokenizer)
    learnt = [tokenizer.decode([i for i in f["labels"] if i != -100]) for f in features]
    assert learnt == ["Hé!</s>\nMe</s>\n", "4</s>\n"]
    assert tokenizer.decode(features[1]["input_ids"]) == "<user>2+2</s>\n<assistant>4</s>\n"
    batch = ours.collator(tokenizer, model)(features)
    assert batch["labels"].shape == batch["input_ids"].shape
    found = ours.predict(model, examples, tokenizer)
    kept = (np.array(features[0]["labels"][1:]) != -100).sum()
    assert found.arrays["tokens"][0] == kept == len("Hé!".encode()) + len("Me") + 10


def test_a_template_may_leave_out_earlier_thoughts(rows, chat):
    ours, _, tokenizer = load(chat, THINKING)
    talk = [{"messages": TALK[0]["messages"][1:]}, TALK[1]]
    features = ours.features(ours.read(rows(talk)), np.arange(2), tokenizer)
    learnt = [tokenizer.decode([i for i in f["labels"] if i != -100]) for f in features]
    assert learnt == ["Hé!</s>\n<think></think>Me</s>\n", "<think></think>4</s>\n"]


def test_it_learns_to_answer(rows, chat, learn):
    ours, model, tokenizer = load(chat, PLAIN, generation={"max_new_tokens": 6})
    examples = ours.read(rows(TALK[1:]))
    torch.manual_seed(0)
    learn(ours, model, tokenizer, examples, 50)
    assert ours.predict(model, examples, tokenizer, generation={}).values[0].startswith("4</s>")
    question = [{"messages": TALK[1]["messages"][:1]}]
    bare = ours.read(rows(question), supervised=False)
    assert ours.predict(model, bare, tokenizer).values[0].startswith("4</s>")


def test_other_ways_to_write_a_conversation(rows, chat):
    ours, _, tokenizer = load(chat, PLAIN)
    theirs = [{"conversations": [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": "4"}]}]
    features = ours.features(ours.read(rows(theirs)), np.arange(1), tokenizer)
    assert tokenizer.decode(features[0]["input_ids"]) == "<user>2+2</s>\n<assistant>4</s>\n"


def test_what_cannot_be_learnt_is_refused(rows, chat, plain_gpt2):
    ours, _, tokenizer = load(chat, UNSTABLE)
    examples = ours.read(rows(TALK))
    with pytest.raises(DataError, match="writes message 3 differently when others follow"):
        ours.features(examples, np.arange(2), tokenizer)
    assert ours.features(examples, np.array([1]), tokenizer)
    ours, _, tokenizer = load(chat, PICKY)
    with pytest.raises(DataError, match=r"data.jsonl, row 2, column messages: .* must alternate"):
        ours.features(examples, np.array([1]), tokenizer)
    ours, _, tokenizer = load(chat, PLAIN, max_seq_length=16)
    with pytest.raises(
        DataError, match=r"row 1, .*no token of the assistant is among the first 16"
    ):
        ours.features(examples, np.arange(2), tokenizer)
    with pytest.raises(ModelError, match="no chat template"):
        ours.load(plain_gpt2)


def test_conversations_are_checked(rows):
    ours = ChatCompletion()
    content = [TALK[1], {"messages": [{"role": "user", "content": "x"}]},
               {"messages": []}, {"messages": [{"role": "user"}]}]  # fmt: skip
    with pytest.raises(DataError) as caught:
        ours.read(rows(content))
    message = str(caught.value)
    assert "data.jsonl, row 2, column messages: the assistant says nothing" in message
    assert "also row 3, column messages: there are no messages" in message
    assert "also row 4, column messages: message 1 has no content" in message
