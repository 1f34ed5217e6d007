"""A bundle is complete and unchanged, or it is not used."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from luthier.errors import CorruptBundle, DiskFull, NotFound, StoreError
from luthier.store.atomic import new_folder, remove, sweep, write_bytes
from luthier.store.bundle import MANIFEST, newest_bundle, open_bundle, write_bundle


def fill(folder: Path) -> None:
    (folder / "luthier").mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 3)
    (folder / "luthier" / "state.json").write_text('{"step": 3}')
    (folder / "empty").write_bytes(b"")


def fail_on_bad(path: Path, error: CorruptBundle) -> None:
    raise AssertionError(f"{path} is not corrupt: {error}")


def test_round_trip_and_equal_content_gives_equal_ids(tmp_path: Path) -> None:
    first = write_bundle(tmp_path / "a", fill, {"step": 3, "loss": 0.1})
    second = write_bundle(tmp_path / "b", fill, {"loss": 0.1, "step": 3})
    other = write_bundle(tmp_path / "c", fill, {"step": 4, "loss": 0.1})
    assert open_bundle(tmp_path / "a") == first
    assert first.id == second.id != other.id
    assert first.meta == {"step": 3, "loss": 0.1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_every_single_bit_of_every_file_is_guarded(tmp_path: Path) -> None:
    """All bits of the manifest and of the small files; the model's by sample."""
    bundle = write_bundle(tmp_path / "a", fill, {"step": 3})
    flips = 0
    for file in [p for p in bundle.path.rglob("*") if p.is_file()]:
        data = file.read_bytes()
        bits = range(8 * len(data))
        for bit in bits if len(data) < 2000 else random.Random(0).sample(bits, 300):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            file.write_bytes(damaged)
            with pytest.raises(CorruptBundle):
                open_bundle(bundle.path)
            flips += 1
        file.write_bytes(data)
    assert open_bundle(bundle.path) == bundle
    assert flips > 3000


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: (p / "empty").unlink(),
        lambda p: (p / "more.py").write_text("surprise"),
        lambda p: (p / MANIFEST).unlink(),
        lambda p: (p / MANIFEST).write_text("[" * 100_000),
        lambda p: (p / MANIFEST).write_text("[]"),
        lambda p: (p / "empty").unlink() or (p / "empty").symlink_to("/dev/null"),
        lambda p: os.mkfifo(p / "pipe"),
        lambda p: os.truncate(p / "model.safetensors", 5),
    ],
)
def test_other_damage_is_noticed(tmp_path: Path, damage) -> None:
    bundle = write_bundle(tmp_path / "a", fill, {})
    damage(bundle.path)
    with pytest.raises(CorruptBundle):
        open_bundle(bundle.path)


def test_a_manifest_that_points_outside_is_refused(tmp_path: Path) -> None:
    from luthier.store import bundle as module

    made = write_bundle(tmp_path / "a", fill, {})
    manifest = json.loads((made.path / MANIFEST).read_bytes())
    del manifest["seal"]
    manifest["files"]["../b"] = {"sha256": "0" * 64, "bytes": 1}
    (made.path / MANIFEST).write_bytes(module._seal(manifest))
    with pytest.raises(CorruptBundle, match="outside"):
        open_bundle(made.path)


def test_newest_is_by_number_and_falls_back_when_corrupt(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        write_bundle(tmp_path / f"step-{step}", fill, {"step": step})
    os.utime(tmp_path / "step-9")  # the youngest by the clock is not the newest
    newest = newest_bundle(tmp_path, fail_on_bad)
    assert newest is not None
    assert newest.meta == {"step": 100}
    with (tmp_path / "step-100" / "model.safetensors").open("r+b") as file:
        file.write(b"\xff")
    bad: list[str] = []
    newest = newest_bundle(tmp_path, lambda path, error: bad.append(path.name))
    assert newest is not None
    assert newest.meta == {"step": 10}
    assert bad == ["step-100"]
    shutil.rmtree(tmp_path / "step-10" / "luthier")
    shutil.rmtree(tmp_path / "step-9")
    assert newest_bundle(tmp_path, lambda path, error: bad.append(path.name)) is None
    assert newest_bundle(tmp_path / "none", fail_on_bad) is None


def test_what_a_block_left_unfinished_is_not_there(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a", fill, {"old": True})

    def stopped_halfway() -> None:
        with new_folder(tmp_path / "a") as folder:
            (folder / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_halfway()
    assert open_bundle(tmp_path / "a").meta == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_bundle_replaces_the_one_of_its_name(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a", fill, {"old": True})
    write_bundle(tmp_path / "a", lambda folder: (folder / "x").write_text("1"), {"old": False})  # type: ignore[arg-type,return-value]
    assert open_bundle(tmp_path / "a").meta == {"old": False}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_odd_files_are_not_bundled(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a plain file"):
        write_bundle(tmp_path / "a", lambda folder: (folder / "l").symlink_to("/etc/passwd"), {})
    assert list(tmp_path.iterdir()) == []


def test_remove_sweep_and_missing(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a", fill, {})
    remove(tmp_path / "a")
    remove(tmp_path / "a")
    (tmp_path / ".b.1-2.aside").mkdir()
    (tmp_path / ".c.1-2.aside").write_text("")
    assert sweep(tmp_path) == 2
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotFound):
        open_bundle(tmp_path / "a")


def test_write_bytes_names_the_path_that_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        write_bytes(tmp_path / "file" / "below", b"x")
    write_bytes(tmp_path / "new", b"x")
    assert (tmp_path / "new").read_bytes() == b"x"


@pytest.mark.parametrize(
    "point", ["folder.made", "folder.filled", "folder.synced", "bundle.filled", "bundle.sealed"]
)
@pytest.mark.parametrize(("action", "kind"), [("enospc", DiskFull), ("eio", StoreError)])
def test_a_failing_disk_leaves_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, action: str, kind: type
) -> None:
    from luthier.store import failpoint

    write_bundle(tmp_path / "a", fill, {"old": True})
    monkeypatch.setattr(failpoint, "_passed", {})
    monkeypatch.setenv("LUTHIER_FAILPOINT", f"{point}={action}")
    with pytest.raises(kind) as caught:
        write_bundle(tmp_path / "a", fill, {"old": False})
    assert type(caught.value) is kind
    assert open_bundle(tmp_path / "a").meta == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_safetensors_reports_a_full_disk_in_its_own_words(tmp_path: Path) -> None:
    class SafetensorError(Exception):
        pass

    def fill_up(folder: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left (os error 28)")

    with pytest.raises(DiskFull):
        write_bundle(tmp_path / "a", fill_up, {})
