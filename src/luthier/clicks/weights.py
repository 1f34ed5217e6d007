"""What propensities are for: weights that undo the position's part in a click.

Joachims, Swaminathan, Schnabel, *Unbiased learning-to-rank with biased feedback*, WSDM 2017
(inverse propensity scoring); Oosterhuis, *Doubly robust estimation for correcting position bias
in click feedback for unbiased learning to rank*, TOIS 2023.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from luthier.clicks.conversion import Inputs
from luthier.clicks.propensity import Propensities
from luthier.clicks.query_rankings import pairs_shown, relevance_by_query
from luthier.clicks.sessions import Bools, Floats, Ints, Sessions
from luthier.errors import DataError


def inverse_propensity(p: Floats, clip: float = 0.0) -> Floats:
    """1 / max(p, clip). A clip costs bias where p is smaller, and bounds the variance.

    >>> inverse_propensity(np.array([1.0, 0.5, 0.01]), clip=0.1).tolist()
    [1.0, 2.0, 10.0]
    """
    if not 0 <= clip <= 1:
        raise DataError(f"clip is {clip}", hint="a propensity, from 0 to 1")
    if clip == 0 and (p <= 0).any():
        raise DataError("a propensity is 0", hint="clip it, or leave its position out")
    found: Floats = 1.0 / np.maximum(p, clip)
    return found


def weights_of(sessions: Sessions, propensities: Propensities, clip: float = 0.1) -> Floats:
    """A weight for each impression, [m], for ``Inputs.weighted``. For clicks; what a missing
    click says of relevance no weight corrects (it may not have been seen)."""
    return inverse_propensity(propensities.at(sessions.positions), clip)


def ips_relevance(clicked: Bools | Floats, p: Floats, clip: float = 0.0) -> Floats:
    """Of each impression an estimate of its relevance whose mean is right: c / max(p, clip).
    Without a clip it is unbiased where the propensities are right."""
    return np.asarray(clicked, np.float64) * inverse_propensity(p, clip)


def doubly_robust_relevance(
    clicked: Bools | Floats, p: Floats, predicted: Floats, clip: float = 0.1
) -> Floats:  # fmt: skip
    """r + (c - p r) / max(p, clip), of a predicted relevance r: right where either the
    prediction is, or p is and is not clipped; so a clip costs no bias where r is right."""
    weight = inverse_propensity(p, clip)
    found: Floats = predicted + (np.asarray(clicked, np.float64) - p * predicted) * weight
    return found


def doubly_robust(inputs: Inputs, propensities: Propensities, clip: float = 0.1) -> Inputs:
    """Inputs whose relevance is the doubly robust estimate of each item for its query: the mean
    over its impressions, by all sessions of the inputs, and not below 0.

    What is predicted are clicks (or grades) over expected looks, smoothed towards the query's
    mean. ListwiseSoftmaxLoss is linear in the relevance, so that what is right in the mean trains
    as the truth would; other losses go by the order that it makes. Sessions without a click stay
    what they are: negatives.
    """
    sessions = inputs.sessions
    examined = propensities.at(sessions.positions)
    usual = relevance_by_query(sessions, inputs.relevance, examined)
    at = pairs_shown(sessions)[2]
    single = doubly_robust_relevance(inputs.relevance, examined, usual.relevance[at], clip)
    _, _, means, _ = by_pair(sessions, single)
    relevance = np.maximum(means[at], 0.0)
    relevance[inputs.irrelevant[sessions.owner]] = 0.0
    return replace(inputs, relevance=relevance)


def by_pair(sessions: Sessions, values: Floats) -> tuple[Ints, Ints, Floats, Floats]:
    """Means of values [m] by query and item: codes of both, means and counts, [c] each."""
    queries, items, cell = pairs_shown(sessions)
    counts = np.bincount(cell, minlength=len(queries)).astype(np.float64)
    means = np.bincount(cell, values, len(queries)) / counts
    return queries, items, means, counts
