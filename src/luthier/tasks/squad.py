"""Exact match and F1 of answers, as SQuAD v1.1 and v2.0 define them (in percent).

Rajpurkar et al. 2016, section 6.1, and Rajpurkar et al. 2018: answers are compared without
case, punctuation, articles and spare spaces; of several right answers the nearest counts; a
question without an answer is answered by the empty text.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact(answer: str, right: Sequence[str]) -> float:
    """100 when the answer is one of the right ones, else 0.

    >>> exact("The  Eiffel Tower!", ["eiffel tower"])
    100.0
    """
    return 100.0 * max(normal(answer) == normal(one) for one in right or ("",))


def f1(answer: str, right: Sequence[str]) -> float:
    """The best harmonic mean of precision and recall of words, in percent.

    >>> round(f1("in Paris, France", ["Paris"]), 1)
    50.0
    """
    return 100.0 * max(_f1(normal(answer).split(), normal(one).split()) for one in right or ("",))


def normal(answer: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    bare = answer.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def _f1(ours: list[str], theirs: list[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    same = (Counter(ours) & Counter(theirs)).total()
    return 2 * same / (len(ours) + len(theirs))
