"""The tasks' table, and the options of processing."""

import json

import pytest
from pydantic import ValidationError

from luthier.registry import cards
from luthier.spec import ProcessingSpec
from luthier.tasks.cards import job_problems, processing_problems
from luthier.tasks.roles import Metric
from luthier.tasks.task import Task


@pytest.mark.parametrize("card", cards("task"), ids=lambda card: card.name)
def test_every_card_is_of_a_task_that_agrees_with_it(card):
    kind = card.load()
    assert issubclass(kind, Task)
    assert kind.name == card.name
    task = kind()
    assert task.best == Metric("loss", greater_is_better=False)
    assert task.metrics
    assert len({role.name for role in task.roles}) == len(task.roles)
    assert set(card.facts["processing"]) <= set(ProcessingSpec.model_fields)


def test_every_option_is_used_by_some_task():
    used = {name for card in cards("task") for name in card.facts["processing"]}
    assert used == set(ProcessingSpec.model_fields)


def test_options_survive_json():
    spec = ProcessingSpec(
        columns={"label": "y"},
        max_seq_length=64,
        generation={"num_beams": 4, "early_stopping": True},
    )
    assert ProcessingSpec.model_validate(json.loads(spec.model_dump_json())) == spec
    assert ProcessingSpec.model_validate_json(ProcessingSpec().model_dump_json()) == (
        ProcessingSpec()
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_seq_length": 0}, "max_seq_length"),
        ({"doc_stride": -1}, "doc_stride"),
        ({"columns": {"label": ""}}, "the column of 'label' has no name"),
        ({"generation": {"num_beam": 2}}, "no option 'num_beam' .did you mean 'num_beams'"),
        ({"generation": {"num_beams": 2.5}}, "num_beams is a whole number, not 2.5"),
        ({"generation": {"num_beams": True}}, "num_beams is a whole number, not True"),
        ({"generation": {"top_p": 1.5}}, "top_p must be at most 1"),
        ({"generation": {"temperature": 0}}, "temperature must be more than 0"),
        ({"generation": {"do_sample": "yes"}}, "do_sample is true or false, not 'yes'"),
        ({"max_length": 3}, "max_length"),
    ],
)
def test_wrong_options_are_named(given, message):
    with pytest.raises(ValidationError, match=message):
        ProcessingSpec(**given)


def test_options_that_a_task_does_not_use_are_problems():
    spec = ProcessingSpec(doc_stride=3, multi_label=True, columns={"text": "t"})
    fields = [problem.field for problem in processing_problems("summarization", spec)]
    assert fields == ["processing.multi_label", "processing.doc_stride", "processing.columns.text"]


def test_a_job_is_told_of_options_that_others_switch_off():
    spec = ProcessingSpec(generation={"top_p": 0.9, "early_stopping": True, "num_beams": 4})
    assert [str(problem) for problem in job_problems("summarization", spec)] == [
        "processing.generation: top_p means nothing without do_sample=true"
    ]
    asked = ProcessingSpec(generation={"top_p": 0.9, "do_sample": True, "max_new_tokens": 4})
    assert job_problems("summarization", asked) == []
    fields = [p.field for p in job_problems("text-classification", spec)]
    assert fields == ["processing.generation", "processing.generation"]
