"""The store in a folder is a store, and what is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.errors import NotFound
from luthier.store.blobs import Store
from luthier.store.bundle import Bundle
from luthier.store.urls import local_file
from luthier.testing.stores import StoreCase


class TestLocalStore(StoreCase):
    opens = "luthier.store.blobs:Store"

    def test_what_was_made_public_stays_public(self, store: Store, bundle: Bundle) -> None:
        store.publish(bundle, public=False)
        assert store.artifact(bundle.id) == store.artifacts / bundle.id
        modes = []
        for public in (False, True, False):
            store.publish(bundle, public=public)
            modes.append(store.artifact(bundle.id).stat().st_mode & 0o777)
        assert modes == [0o700, 0o755, 0o755]

    def test_digits_that_several_begin_with_name_none(self, store: Store) -> None:
        for last in "01":
            (store.artifacts / ("abcd" + "0" * 59 + last)).mkdir(parents=True)
        with pytest.raises(NotFound, match="several artifacts begin with 'abcd'"):
            store.find("abcd")

    def test_a_blob_is_a_location(self, store: Store, file: Path, tmp_path: Path) -> None:
        name = store.put_blob(file)
        assert local_file(f"blob:{name}", tmp_path, store.blob) == store.blob(name)
