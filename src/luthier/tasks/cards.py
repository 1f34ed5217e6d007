"""The tasks that a model can be trained for, known without torch: roles, options, metrics.

A card's ``facts``: ``roles`` (which columns it reads), ``processing`` (the fields of
``ProcessingSpec`` that it uses; others are refused), ``metrics`` (the first is the main one),
``best`` (what a better model has less or more of, unless the job says otherwise), ``learns``
(whether rows of labels, "classes", are learnt, or texts).
"""

from __future__ import annotations

from typing import Any

from luthier.errors import Problem, nearest
from luthier.registry import Card, find
from luthier.spec.processing import ProcessingSpec, idle
from luthier.tasks.roles import Metric, Role

_LENGTH = ("max_seq_length", "pad_to_max_length")
_GENERATING = ("max_target_length", "generation")
_LOSS = Metric("loss", greater_is_better=False)


def _metrics(*names: str) -> tuple[Metric, ...]:
    return tuple(Metric(name) for name in names)


def _card(
    name: str, target: str, summary: str, roles: tuple[Role, ...], *,
    processing: tuple[str, ...], metrics: tuple[Metric, ...], **facts: Any,
) -> Card:  # fmt: skip
    known = {
        "roles": roles, "processing": ("columns", *processing),
        "metrics": metrics, "best": _LOSS, "extra": None, **facts,
    }  # fmt: skip
    return Card("task", name, f"luthier.tasks.{target}", summary, extra=known["extra"], facts=known)


_FIRST = Role(
    "sentence1", "text",
    ("sentence1", "sentence_1", "sentence_a", "premise", "text", "sentence", "content", "review",
     "utterance", "question1", "text1", "text_a", "query"),
)  # fmt: skip
_SECOND = Role(
    "sentence2", "text",
    ("sentence2", "sentence_2", "sentence_b", "hypothesis", "question2", "text2", "text_b"),
    required=False,
)  # fmt: skip
_LABELS = ("label", "labels", "class", "category", "target", "intent", "topic", "sentiment")

CARDS = (
    _card(
        "text-classification", "text_classification:TextClassification",
        "one label a text or pair of texts; any number with multi_label",
        (_FIRST, _SECOND, Role("label", "label", _LABELS, target=True)),
        processing=(*_LENGTH, "multi_label"),
        metrics=_metrics("accuracy", "f1_macro", "mcc", "precision_macro", "recall_macro"),
        multi_label_metrics=_metrics(
            "f1_micro", "f1_macro", "accuracy", "precision_micro", "recall_micro"),
        learns="classes",
    ),
    _card(
        "token-classification", "token_classification:TokenClassification",
        "a tag for every word: named entities, parts of speech",
        (Role("tokens", "tokens", ("tokens", "words", "token", "text", "sentence")),
         Role("tags", "tags", ("tags", "ner_tags", "ner", "labels", "tag", "pos_tags", "label"),
              target=True)),
        processing=_LENGTH, metrics=_metrics("f1", "accuracy", "precision", "recall"),
        learns="classes",
    ),
    _card(
        "question-answering", "question_answering:QuestionAnswering",
        "the span of a context that answers a question, or none",
        (Role("question", "text", ("question", "query")),
         Role("context", "text", ("context", "passage", "document", "paragraph")),
         Role("answers", "answers", ("answers",), required=False, target=True),
         Role("answer_start", "numbers", ("answer_start", "answer_starts", "start"),
              required=False, target=True),
         Role("answer_text", "texts", ("answer_text", "answer_texts", "answer", "text"),
              required=False, target=True)),
        processing=(*_LENGTH, "doc_stride", "n_best_size", "max_answer_length"),
        metrics=_metrics("f1", "exact"), learns="spans",
    ),
    _card(
        "summarization", "sequence_to_sequence:Summarization", "a short text for a long one",
        (Role("document", "text", ("document", "article", "text", "dialogue", "content", "body")),
         Role("summary", "text", ("summary", "highlights", "abstract", "title", "headline"),
              target=True)),
        processing=(*_LENGTH, *_GENERATING, "source_prefix"),
        metrics=_metrics("rougeL", "rouge1", "rouge2", "rougeLsum"), learns="texts",
    ),
    _card(
        "translation", "sequence_to_sequence:Translation", "a text in another language",
        (Role("source", "text", ("source", "src", "source_text", "input"), required=False),
         Role("target", "text", ("target", "tgt", "target_text", "output"), required=False,
              target=True),
         Role("translation", "pair", ("translation",), required=False)),
        processing=(*_LENGTH, *_GENERATING, "source_prefix", "source_lang", "target_lang"),
        metrics=_metrics("bleu", "chrf"), learns="texts",
    ),
    _card(
        "text-generation", "text_generation:TextGeneration",
        "texts as they go on: a causal language model, or answers to prompts",
        (Role("text", "text", ("text", "prompt", "content", "input", "instruction")),
         Role("ground_truth", "text", ("ground_truth", "completion", "response", "output",
                                       "answer"), required=False, target=True)),
        processing=(*_LENGTH, "generation"),
        metrics=(_LOSS, Metric("perplexity", greater_is_better=False)), learns="texts",
    ),
    _card(
        "chat-completion", "chat_completion:ChatCompletion",
        "what the assistant says in a conversation",
        (Role("messages", "messages", ("messages", "conversation", "conversations", "chat")),),
        processing=(*_LENGTH, "generation"),
        metrics=(_LOSS, Metric("perplexity", greater_is_better=False)), learns="texts",
    ),
    _card(
        "image-classification", "image_classification:ImageClassification", "one label an image",
        (Role("image", "image", ("image", "img", "picture", "photo", "image_path", "file_name",
                                 "path", "file")),
         Role("label", "label", _LABELS, target=True)),
        processing=(), learns="classes",
        metrics=_metrics("accuracy", "f1_macro", "mcc", "precision_macro", "recall_macro"),
    ),
)  # fmt: skip


def processing_problems(task: str, processing: ProcessingSpec) -> list[Problem]:
    """Options that this task has no use for, and columns of roles that it does not have."""
    facts = find("task", task).facts
    roles = [role.name for role in facts["roles"]]
    given = processing.model_dump()
    defaults = ProcessingSpec().model_dump()
    found = [
        Problem(
            f"processing.{name}",
            f"means nothing for {task}",
            f"it uses: {', '.join(facts['processing'])}",
        )
        for name, value in given.items()
        if value != defaults[name] and name not in facts["processing"]
    ]
    found += [
        Problem(
            f"processing.columns.{role}",
            f"{task} has no role '{role}'",
            nearest(role, roles) or f"its roles are: {', '.join(roles)}",
        )
        for role in processing.columns
        if role not in roles
    ]
    return found


def job_problems(task: str, processing: ProcessingSpec) -> list[Problem]:
    """All that is to be said of a job's processing when it is submitted: the above, and options
    of generation that others switch off. (A served model writes all of them down, and may.)"""
    switched_off = [Problem("processing.generation", text) for text in idle(processing.generation)]
    return processing_problems(task, processing) + switched_off
