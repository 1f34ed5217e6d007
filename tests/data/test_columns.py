"""Which column plays which role."""

from __future__ import annotations

import json
from typing import Any

import pytest


def jsonl(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("row", "form", "mapping"),
    [
        ({"anchor": "a", "positive": "b"}, "pairs", {"anchor": "anchor", "positive": "positive"}),
        ({"Document": "b", "QUERY": "a"}, "pairs", {"anchor": "QUERY", "positive": "Document"}),
        ({"question": "a", "answer": "b"}, "pairs", None),
        ({"query": "a", "passage": "b", "query_id": 7}, "pairs", None),
        ({"anchor": "a", "positive": "b", "negative": "c"}, "triplets",
         {"anchor": "anchor", "positive": "positive", "negative_1": "negative"}),
        ({"negative_2": "d", "query": "a", "pos": "b", "neg_1": "c"}, "triplets",
         {"anchor": "query", "positive": "pos", "negative_1": "neg_1", "negative_2": "negative_2"}),
        ({"sentence1": "a", "sentence2": "b", "score": 0.5}, "scored", None),
        ({"sentence_A": "a", "sentence_B": "b", "label": 1}, "scored",
         {"sentence1": "sentence_A", "sentence2": "sentence_B", "score": "label"}),
        ({"query": "a", "document": "b", "similarity": 0.5}, "scored", None),
        ({"query": "a", "positive": "b", "negative": "c", "margin": -3.5}, "margin",
         {"anchor": "query", "positive": "positive", "negative_1": "negative", "margin": "margin"}),
        ({"text": "a", "label": "x"}, "labelled", {"text": "text", "label": "label"}),
        ({"sentence": "a", "intent": "x", "id": 3}, "labelled", None),
        ({"document": "a", "category": "x"}, "labelled", {"text": "document", "label": "category"}),
    ],
)  # fmt: skip
def test_by_name(desk: Any, row: dict[str, Any], form: str, mapping: dict[str, str] | None) -> None:
    found = desk.load(jsonl(row), "data.jsonl")
    assert found.form == form
    if mapping is not None:
        assert found.mapping == mapping
    texts = [found.texts(role, [0])[0] for role in found.roles]
    assert texts == sorted(texts), "the texts a, b, c, d are given in the order of the roles"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"frage": "a", "antwort": "b"}, "match no role: 'frage', 'antwort'"),
        ({"anchor": "a", "positive": "b", "flavour": "c"}, "match no role: 'flavour'"),
        ({"query": "a", "question": "q", "document": "b"}, "'question' play the same part"),
        ({"anchor": "a", "positive": "b", "negative_2": "c"}, "make no form"),
        ({"anchor": "a", "positive": "b", "negative": "c", "score": 1}, "make no form"),
        ({"sentence1": "a", "sentence2": "b", "score": 1, "label": 1}, "make no form"),
        ({"text": "a"}, "make no form"),
        ({"anchor": "a", "label": "b", "text": "c"}, "make no form"),
    ],
)  # fmt: skip
def test_names_that_do_not_fit_are_refused(desk: Any, row: dict[str, Any], says: str) -> None:
    error = desk.error(jsonl(row), "data.jsonl")
    assert says in error.message
    assert "columns={'anchor'" in (error.hint or "")


@pytest.mark.parametrize(
    ("content", "options", "form"),
    [
        ("a,b\n", {}, "pairs"),
        ("a,b\n", {"is_labeled": True}, "labelled"),
        ("a,b,0.5\nc,d,1\n", {}, "scored"),
        ("a,b,c\nd,e,f\n", {}, "triplets"),
        ("a,b,c,d,e\n", {}, "triplets"),
        ("a,b,c,-7.5\n", {}, "margin"),
        ("a,b,7\n", {"columns": {"anchor": 1, "positive": 2, "negative": 3}}, "triplets"),
        ("x,a,y,b\n", {"columns": {"anchor": 2, "positive": 4}}, "pairs"),
        ("one,uno,label\na,b,c\n", {"columns": {"text": "uno", "label": "label"}}, "labelled"),
        ("one,two,0.5\n", {"columns": {"query": 1, "document": 2, "score": 3}}, "scored"),
    ],
)
def test_by_position_and_by_choice(
    desk: Any, content: str, options: dict[str, Any], form: str
) -> None:
    assert desk.load(content, **options).form == form


def test_the_mapping_says_where_each_role_was_found(desk: Any) -> None:
    found = desk.load("x,a,y,b\n", columns={"positive": 4, "anchor": 2})
    assert found.mapping == {"anchor": "column 2", "positive": "column 4"}
    assert desk.as_rows(found) == [("a", "b")]


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("a\nb\n", {"dialect": "excel"}, "one column"),
        ("a,b,c\n", {"is_labeled": True}, "is_labeled expects two columns"),
        ("anchor,positive\na,b\n", {"is_labeled": True}, "is_labeled says item and label"),
        ("a,b,0.5\nc,d,x\n", {}, "are they scores, or texts"),
        ("a,b,2\nc,d,3\n", {}, "a score from 0 to 1, found 2"),
        ("a,b\n", {"columns": {"anchor": 1, "positive": 3}}, "column 3; there are 2"),
        ("a,b\n", {"columns": {"anchor": 0, "positive": 1}}, "column 0; there are 2"),
        ("a,b\n", {"columns": {"anchor": 1, "positiv": 2}}, "no role is called 'positiv'"),
        ("a,b\n", {"columns": {"anchor": 1, "query": 2}}, "given twice"),
        ("a,b\n", {"columns": {"anchor": 1, "positive": 1}}, "share a column"),
        ("a,b\n", {"columns": {"anchor": 1}}, "make no form"),
        ("a,b\n", {"columns": {"anchor": "x", "positive": "y"}}, "the columns have no names"),
        ("x,y\na,b\n", {"columns": {"anchor": "x", "positive": "z"}, "header": True},
         "no column is called 'z'"),
    ],
)  # fmt: skip
def test_refused(desk: Any, content: str, options: dict[str, Any], says: str) -> None:
    assert says in desk.error(content, **options).message


def test_mixed_last_column_names_the_row(desk: Any) -> None:
    error = desk.error('a,b,0.5\n"c\nc",d,0.7\ne,f,high\n')
    assert (error.row, error.column) == (4, 3)
