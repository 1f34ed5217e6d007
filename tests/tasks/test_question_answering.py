"""Question answering: windows, answers, scores, and what is refused."""

import itertools

import numpy as np
import pytest
import torch

from luthier.errors import DataError, SpecError
from luthier.spec import ProcessingSpec
from luthier.tasks import squad
from luthier.tasks.question_answering import QuestionAnswering, tokens_of
from luthier.tasks.scores import Predictions

WORDS = [f"{a}{b}{c}" for a in "bdgkl" for b in "aeo" for c in ("n", "tis", "rabo", "ku")]


def task(**options):
    return QuestionAnswering(ProcessingSpec(**options))


def story(seed, words=90):
    """A context of words, and an answer of some of them."""
    random = np.random.default_rng(seed)
    context = [str(w) for w in random.choice(WORDS, words)]
    first, length = int(random.integers(0, words - 6)), int(random.integers(1, 6))
    start = len(" ".join(context[:first])) + (first > 0)
    text = " ".join(context[first : first + length])
    question = " ".join(str(w) for w in random.choice(WORDS, int(random.integers(2, 40))))
    return {"question": question, "context": " ".join(context),
            "answers": {"text": [text], "answer_start": [start]}}  # fmt: skip


def refused(rows, content, **options):
    with pytest.raises(DataError) as caught:
        task(**options).read(rows(content))
    return str(caught.value)


@pytest.mark.parametrize(("limit", "stride"), [(64, 128), (40, 8), (32, 0)])
def test_every_answer_inside_a_window_is_found_back(rows, plain_bert, limit, stride):
    ours = task(max_seq_length=limit, doc_stride=stride)
    content = [story(seed) for seed in range(12)]
    examples = ours.read(rows(content))
    _, tokenizer = ours.load(plain_bert)
    windows = ours.windows(examples, np.arange(12), tokenizer)
    features = ours.features(examples, np.arange(12), tokenizer)
    assert [f["input_ids"] for f in features] == [w.inputs["input_ids"] for w in windows]
    whole = set()
    for window, feature in zip(windows, features, strict=True):
        row = content[window.row]
        text, begin = row["answers"]["text"][0], row["answers"]["answer_start"][0]
        spans = [span for span in window.spans if span]
        inside = spans[0][0] <= begin and begin + len(text) <= spans[-1][1]
        start, end = feature["start_positions"], feature["end_positions"]
        assert len(feature["input_ids"]) <= limit
        if inside:
            decoded = tokenizer.decode(feature["input_ids"][start : end + 1])
            assert decoded.replace(" ", "") == text.replace(" ", "")
            whole.add(window.row)
        else:
            assert (start, end) == (0, 0)
    covered = {r: [False] * len(content[r]["context"]) for r in range(12)}
    for window in windows:
        for span in filter(None, window.spans):
            covered[window.row][span[0] : span[1]] = [True] * (span[1] - span[0])
    for row, marks in covered.items():
        lost = [c for c, m in zip(content[row]["context"], marks, strict=True) if not m]
        assert set(lost) <= {" "}, "every character of a context is in a window"
    if stride:
        assert whole == set(range(12))


def test_an_answer_has_no_token_that_only_touches_it():
    spans = [None, (0, 2), (2, 5), (5, 6), (6, 8), None]
    assert tokens_of((2, "tom"), spans) == (2, 2)
    assert tokens_of((3, "o"), spans) == (2, 2), "half a token is a token"
    assert tokens_of((0, "it"), spans) == (1, 1)
    assert tokens_of((6, "me!"), spans) is None


def test_windows_share_the_stride(rows, plain_bert):
    ours = task(max_seq_length=40, doc_stride=8)
    content = [story(0) | {"question": "bo ka"}]
    examples = ours.read(rows(content))
    _, tokenizer = ours.load(plain_bert)
    windows = ours.windows(examples, np.arange(1), tokenizer)
    assert len(windows) > 3
    for one, two in itertools.pairwise(windows):
        assert [s for s in one.spans if s][-8:] == [s for s in two.spans if s][:8]


def test_it_learns_and_answers_nothing_where_there_is_nothing(rows, plain_bert, learn):
    content = [
        {"question": "who is it", "context": "it is tom of rome", "answers":
            {"text": ["tom"], "answer_start": [6]}},
        {"question": "where is it", "context": "it is tom of rome", "answers":
            {"text": ["rome", "of rome"], "answer_start": [13, 10]}},
        {"question": "why", "context": "nobody has said", "answers":
            {"text": [], "answer_start": []}},
    ]  # fmt: skip
    ours = task()
    examples = ours.read(rows(content))
    assert examples.facts["unanswerable"]
    torch.manual_seed(0)
    model, tokenizer = ours.load(plain_bert)
    learn(ours, model, tokenizer, examples, 60)
    found = ours.predict(model, examples, tokenizer, batch_size=2)
    assert found.values == ["tom", "rome", ""]
    assert ours.score(found, examples).metrics == {"f1": 100, "exact": 100}
    bare = ours.read(rows([{"question": "who is it", "context": "it is tom of rome"}]),
                     supervised=False)  # fmt: skip
    assert ours.predict(model, bare, tokenizer).values == ["tom"]


def test_the_best_span_is_that_of_a_slow_search():
    random = np.random.default_rng(0)
    context = "aa bb cc dd ee ff gg hh"
    spans = [None, None, *((3 * i, 3 * i + 2) for i in range(8)), None]
    for _ in range(20):
        start, end = random.normal(size=(2, len(spans)))
        best = max(
            (start[i] + end[j], context[spans[i][0] : spans[j][1]])
            for i in range(2, 10) for j in range(i, min(i + 3, 10))
        )  # fmt: skip
        found = task(max_answer_length=3)._best(start, end, spans, context)
        assert found == (pytest.approx(best[0]), best[1])


@pytest.mark.parametrize(
    ("answer", "right", "exact", "f1"),
    [
        ("Denver Broncos", ["Denver Broncos"], 100, 100),
        ("the denver  broncos.", ["Denver Broncos"], 100, 100),
        ("Broncos", ["Denver Broncos", "The Broncos!"], 100, 100),
        ("Denver Broncos of Colorado", ["Denver Broncos"], 0, 200 * 0.5 / 1.5),
        ("b b c", ["b c d"], 0, 200 * (2 / 3) * (2 / 3) / (4 / 3)),
        ("", [], 100, 100),
        ("something", [], 0, 0),
        ("", ["something"], 0, 0),
    ],
)
def test_golden_values_of_squad(answer, right, exact, f1):
    assert squad.exact(answer, right) == exact
    assert squad.f1(answer, right) == pytest.approx(f1)


def test_spaces_around_an_answer_are_no_part_of_it(rows, plain_bert):
    ours = task()
    content = [{"question": "who", "context": "it is tom ", "answers":
                {"text": [" tom "], "answer_start": [5]}}]  # fmt: skip
    examples = ours.read(rows(content))
    _, tokenizer = ours.load(plain_bert)
    feature = ours.features(examples, np.arange(1), tokenizer)[0]
    start, end = feature["start_positions"], feature["end_positions"]
    assert tokenizer.decode(feature["input_ids"][start : end + 1]) == "tom"


def test_answers_in_columns_of_their_own_and_under_other_names(rows):
    flat = [{"q": "who", "context": "it is tom", "start": 6, "answer": "tom"}]
    ours = task(columns={"question": "q"})
    examples = ours.read(rows(flat))
    assert ours.answers(examples) == [[(6, "tom")]]
    nested = [{"question": "who", "context": "it is tom", "gold": {"words": ["tom"], "at": [6]}}]
    ours = task(columns={"answers": "gold", "answer_text": "words", "answer_start": "at"})
    examples = ours.read(rows(nested))
    assert ours.answers(examples) == [[(6, "tom")]]
    text = "question,context,answers\nwho,it is tom,\"{'text': ['tom'], 'answer_start': [6]}\"\n"
    ours = task()
    assert ours.answers(ours.read(rows(text, "q.csv"))) == [[(6, "tom")]]
    scores = ours.score(Predictions(["Tom."]), ours.read(rows(text, "q.csv")))
    assert ours.resampled(scores, np.array([[3.0]]))["exact"].tolist() == [100]


def test_what_is_wrong_is_named(rows):
    good = {
        "question": "who",
        "context": "çççç it is tom",
        "answers": {"text": ["tom"], "answer_start": [11]},
    }
    bytes_ = good | {"answers": {"text": ["tom"], "answer_start": [15]}}
    absent = good | {"answers": {"text": ["ann"], "answer_start": [0]}}
    uneven = good | {"answers": {"text": ["tom", "it"], "answer_start": [11]}}
    message = refused(rows, [good, bytes_, absent, uneven, good | {"context": " "}])
    assert (
        "row 2, column answers: the answer 'tom' is not in the context at 15: there is ''"
        in message
    )
    assert "hint: it begins at 11; answer_start counts characters, not bytes" in message
    assert "also row 3, column answers: the answer 'ann' is not in the context at 0" in message
    assert "also row 4, column answers: 1 starts for 2 answers" in message
    assert "also row 5, column context: the text is empty" in message
    assert "the answers lack the field 'text'" in refused(
        rows, [good | {"answers": {"words": ["tom"], "answer_start": [11]}}]
    )
    assert "no column for 'answer_start'" in refused(rows, [{"question": "a", "context": "b"}])


def test_a_limit_without_room_is_refused(plain_bert):
    with pytest.raises(SpecError, match="8 tokens hold no question with a context"):
        task(max_seq_length=8).load(plain_bert)
