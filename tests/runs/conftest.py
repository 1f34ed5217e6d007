"""A ledger of each kind: SQLite always, PostgreSQL where a server can be started."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from luthier.runs.ledger import Ledger


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """A ledger in a new database."""
    opened = Ledger(url)
    yield opened
    opened.close()
