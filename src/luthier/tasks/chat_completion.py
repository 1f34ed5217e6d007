"""Chat completion: what the assistant says in a conversation, in the model's own template."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import TemplateError

from luthier.data.problems import Problems
from luthier.data.rows import Places, Rows
from luthier.errors import ModelError
from luthier.tasks.batching import TOKENIZING, Feature
from luthier.tasks.examples import Examples, Parser
from luthier.tasks.task import all_rows
from luthier.tasks.text_generation import (
    IGNORED,
    CausalLanguage,
    feature,
    prompt,
    refuse_unlearnable,
)
from luthier.tasks.values import Message, conversation

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


class UnstableTemplate(ValueError):
    """A template that writes a turn differently when another follows."""


class ChatCompletion(CausalLanguage):
    """The conversation is written by the tokenizer's chat template; the assistant's turns are
    learnt, each with its end, and all else is masked.

    A template with ``{% generation %}`` says itself what the assistant writes. Otherwise a turn
    is what the template adds to the conversation before it, the assistant's header included in
    what is before. A conversation longer than the model takes loses its end.
    """

    name = "chat-completion"

    def parser(self, role: str, rows: Rows, supervised: bool) -> Parser:
        return conversation if supervised else super().parser(role, rows, supervised)

    def prepare(self, model: Any, processor: Any) -> None:
        super().prepare(model, processor)
        if not processor.chat_template:
            raise ModelError(
                "its tokenizer has no chat template",
                where=str(processor.name_or_path),
                hint="take a model tuned for chat, or text-generation with a prompt of your own",
            )

    def owned_features(
        self, examples: Examples, rows: Places, processor: Any
    ) -> list[tuple[int, Feature]]:
        limit = self.limit(processor)
        found = Problems(examples.rows.file)
        owned = []
        with TOKENIZING:
            for i, messages in enumerate(examples.values("messages", rows)):
                try:
                    ids, labels = learnt(messages, processor)
                except (UnstableTemplate, TemplateError) as error:
                    line = examples.rows.line(int(rows[i]))
                    column = examples.columns["messages"]
                    found.add(f"the chat template cannot write this: {error}",
                              row=line, column=column)  # fmt: skip
                    if found.full:
                        break
                    continue
                owned.append((i, feature(ids[:limit], labels[:limit])))
        found.check()
        refuse_unlearnable(
            owned, rows, examples, "messages",
            f"no token of the assistant is among the first {limit}",
        )  # fmt: skip
        return owned

    def prompts(self, examples: Examples, processor: Any) -> list[Feature]:
        limit = self.limit(processor)
        room = None if limit is None else max(1, limit // 2)  # the rest is for the answer
        found = []
        with TOKENIZING:
            for messages in examples.values("messages", all_rows(examples)):
                before = messages[:-1] if messages[-1]["role"] == "assistant" else messages
                text = _written(processor, before, turn=True)
                ids = processor(text, add_special_tokens=False, verbose=False)["input_ids"]
                found.append(prompt(ids if room is None else ids[-room:]))
        return found


def learnt(messages: list[Message], processor: Any) -> tuple[list[int], list[int]]:
    """The tokens of a conversation, and the labels: IGNORED where the assistant does not speak."""
    if _MARKED.search(str(processor.chat_template)):
        encoded = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    else:
        text = _written(processor, messages)
        turns = _turns(messages, text, processor)
        encoded = processor(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids = encoded["input_ids"]
        mask = [
            any(first < end and last > begin for begin, end in turns)
            for first, last in encoded["offset_mapping"]
        ]
    return list(ids), [i if spoken else IGNORED for i, spoken in zip(ids, mask, strict=True)]


def _turns(messages: list[Message], text: str, processor: Any) -> list[tuple[int, int]]:
    """From where to where in the text the assistant speaks, in characters."""
    found = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _written(processor, messages[:i], turn=True) if i else ""
        until = _written(processor, messages[: i + 1])
        end = len(until) if text.startswith(until) else _end(message, before, until, text)
        if end is None or not (until.startswith(before) and text.startswith(before)):
            raise UnstableTemplate(
                f"it writes message {i + 1} differently when others follow; a template with "
                "{% generation %} says what the assistant writes"
            )
        found.append((len(before), end))
    return found


def _end(message: Message, before: str, until: str, text: str) -> int | None:
    """Where a turn ends in a text that does not write it as it does when it is the last, as
    templates do that leave out earlier thoughts: at the end mark after what was said."""
    said = str(message.get("content") or "").strip()
    if not said or said not in until[len(before) :]:
        return None
    mark = until[until.rindex(said) + len(said) :]
    place = text.find(said + mark, len(before))
    return None if place < 0 or not mark else place + len(said) + len(mark)


def _written(processor: Any, messages: list[Message], *, turn: bool = False) -> str:
    """A conversation as text; with ``turn`` up to where the assistant is to speak."""
    text: str = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=turn)
    return text
