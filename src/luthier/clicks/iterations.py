"""What a training goes on from: a model, and what earlier searches found best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.clicks.preparing import known_variant
from luthier.doors.clicks import params_of
from luthier.errors import Problem, SpecError

if TYPE_CHECKING:
    from luthier.runs.connection import Home


def starting_model(model: str, artifact: str | None, home: Home) -> tuple[str, str | None]:
    """The model by name or folder, and the artifact to go on from. Raises SpecError, NotFound."""
    from luthier.admission import tuned_from
    from luthier.inference import find_model

    if artifact is not None:
        artifact = home.find_artifact(artifact)
        return model or tuned_from(home.store.artifact(artifact)), artifact
    if not model:
        raise SpecError([Problem("model", "nothing says what to tune", "model=…")])
    place = find_model(model, home)
    if place.kind != "artifact":
        return place.name, None
    return tuned_from(home.store.artifact(place.name)), place.name


def best_params(searches: Sequence[str], home: Home, top: int = 3) -> list[dict[str, Any]]:
    """The best parameter sets of earlier searches (or the one of a plain run), the best first of
    each. Raises NotFound."""
    from luthier.search.space import applied
    from luthier.search.summary import read_summary

    found: list[dict[str, Any]] = []
    for name in searches:
        record = home.ledger.find(name)
        specs = [record.spec]
        if record.spec.search is not None:
            ranked = read_summary(home, record.id).ranked()[:top]
            specs = [applied(record.spec, trial.values) for trial in ranked]
        for spec in specs:
            uri = spec.data.train.uri
            variant = known_variant(home, uri)
            found.append(params_of(spec, {uri: variant} if variant else {}, {}))
    return found
