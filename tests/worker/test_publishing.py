"""What a run has made is verified once, on its way among the artifacts."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.errors import CorruptBundle, NotFound
from luthier.runs.connection import Home
from luthier.store.bundle import MANIFEST, open_bundle, sealed_bundle, write_bundle


def fill(folder: Path) -> None:
    (folder / "luthier").mkdir()
    (folder / "weights").write_bytes(b"0123456789")


@pytest.mark.parametrize("change", ["weights", "another file", "manifest", "no file"])
def test_what_was_changed_since_it_was_sealed_is_not_published(
    home: Home, tmp_path: Path, change: str
) -> None:
    made = write_bundle(tmp_path / "result", fill, {"step": 3})
    if change == "weights":
        (made.path / "weights").write_bytes(b"0123456780")
    elif change == "another file":
        (made.path / "more").write_bytes(b"")
    elif change == "no file":
        (made.path / "weights").unlink()
    else:
        manifest = made.path / MANIFEST
        manifest.write_bytes(manifest.read_bytes().replace(b'"step": 3', b'"step": 4'))
    with pytest.raises(CorruptBundle):
        home.store.publish(sealed_bundle(made.path), public=False)
    assert home.store.artifact_ids() == []


def test_a_whole_bundle_is_published_as_what_it_says_it_is(home: Home, tmp_path: Path) -> None:
    made = write_bundle(tmp_path / "result", fill, {"step": 3})
    assert sealed_bundle(made.path) == open_bundle(made.path) == made
    assert home.store.publish(sealed_bundle(made.path), public=False) == made.id
    assert open_bundle(home.store.artifact(made.id)).meta == {"step": 3}
    with pytest.raises(NotFound):
        sealed_bundle(tmp_path / "nowhere")
