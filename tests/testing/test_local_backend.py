"""The local backend is a backend."""

from __future__ import annotations

from luthier.backends import local
from luthier.runs.connection import Home
from luthier.testing.backends import BackendCase


class TestLocalBackend(BackendCase):
    starts = "luthier.backends.local:ensure_worker"

    def test_who_starts_a_worker_holds_the_lock(self, home: Home) -> None:
        with local.locked(home.path / local.LOCK) as descriptor:
            assert descriptor is not None
            assert not self.ensure(home)
        assert home.ledger.workers() == []
        assert not home.log.exists()
