"""One thread for torch in all tests of this room."""

import pytest


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """torch on one thread."""
