"""The run of a search: led to its end, and its best model made the next state where asked for."""

from __future__ import annotations

from typing import Any

from luthier.engine.control import Control
from luthier.engine.past import PARENT, commit
from luthier.engine.read import Place
from luthier.engine.resolved import RESOLVED, Resolved
from luthier.runs.connection import Home
from luthier.runs.records import Claim
from luthier.search.conductor import conduct
from luthier.store.bundle import open_bundle
from luthier.store.states import head
from luthier.worker.teller import Teller


def lead(
    home: Home, claim: Claim, teller: Teller, control: Control, max_crashes: int
) -> tuple[str, dict[str, Any]]:
    """The artifact of the best trial, and the search's metrics. Trials commit no state: the best
    of them does, once the search has ended. Raises what ``conduct`` raises, and StateConflict."""
    url = claim.run.spec.update.output_state_url
    folder = home.run_folder(claim.run)
    if url is not None:  # it must follow what is there now
        Resolved(folder / RESOLVED).once(PARENT, lambda: head(url))
    artifact_id, metrics = conduct(home, claim, teller, control, max_crashes)
    if url is not None:
        place = Place(folder, home.cache, home.store.blob, home.store.artifact)
        if metrics.get("update", {}).get("promoted", True):
            commit(url, open_bundle(home.store.artifact(artifact_id)), place, teller)
        else:
            message = f"{url} stays as it is: nothing is committed"
            teller("log", {"level": "warning", "message": message})
    return artifact_id, metrics
