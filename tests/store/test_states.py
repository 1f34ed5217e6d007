"""A state in a folder: a generation is there whole or not at all, and nothing is overwritten."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import state_writers
from state_writers import make

from luthier import environment
from luthier.errors import (
    CorruptBundle,
    DiskFull,
    NotFound,
    SpecError,
    StateConflict,
    StoreError,
    UnsafeLocation,
)
from luthier.store.atomic import new_folder
from luthier.store.bundle import MANIFEST, Bundle, open_bundle
from luthier.store.states import commit_state, head, prune, read_state
from luthier.testing.crashfs import lay_out, watched

#: Points that stand for no write, which could meet a full or broken disk.
AFTER_A_WRITE = ("folder.durable", "new.durable", "state.stored", "state.committed")
#: From here on the generation is there; what fails here is told, and may be committed again.
COMMITTED = ("new.linked@1", "new.durable@1", "state.committed@1")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "state_dump" / "first_model")


@pytest.fixture
def made(tmp_path: Path) -> list[Bundle]:
    return [make(tmp_path / "made" / str(i), f"update {i}") for i in range(4)]


def committed(url: str, made: list[Bundle], count: int) -> None:
    for parent in range(count):
        assert commit_state(made[parent], url, parent=parent, meta={"n": parent}) == parent + 1


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# What is committed is what is read


def test_each_update_reads_what_the_one_before_committed(
    url: str, made: list[Bundle], tmp_path: Path
) -> None:
    assert head(url) == 0
    for parent, bundle in enumerate(made):
        assert commit_state(bundle, url, parent=parent, meta={"rows": parent}) == parent + 1
        state = read_state(url, tmp_path / "cache")
        assert (state.url, state.generation, state.meta) == (url, parent + 1, {"rows": parent})
        assert (state.bundle.id, state.bundle.meta) == (bundle.id, bundle.meta)
        assert everything(state.bundle.path) == everything(bundle.path)
        assert Path(url) in state.bundle.path.parents
    assert head(url) == 4
    assert read_state(url, tmp_path, generation=2).bundle.id == made[1].id
    assert not (tmp_path / "cache").exists()


def test_a_state_outlives_what_it_was_made_of(url: str, made: list[Bundle], tmp_path: Path) -> None:
    committed(url, made, 1)
    with open(made[0].path / "model.safetensors", "r+b") as file:  # in place: no new file
        file.write(b"another")
    assert read_state(url, tmp_path).bundle.id == made[0].id
    shutil.rmtree(made[0].path)
    assert read_state(url, tmp_path).bundle.id == made[0].id


def test_a_folder_has_several_names(made: list[Bundle], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    commit_state(made[0], "./dump/a model/", parent=0, meta={})
    for name in ("dump/a model", f"{tmp_path}/dump/a model", "~/dump/a model",
                 f"file://{tmp_path}/dump/a%20model", f"file://localhost{tmp_path}/dump/a%20model/",
                 "dump/../dump/a model"):  # fmt: skip
        assert read_state(name, tmp_path).bundle.id == made[0].id


def test_an_older_bundle_may_be_the_next_generation(
    url: str, made: list[Bundle], tmp_path: Path
) -> None:
    committed(url, made, 2)
    older = read_state(url, tmp_path, generation=1).bundle
    assert commit_state(older, url, parent=2, meta={}) == 3
    assert read_state(url, tmp_path).bundle.id == made[0].id


def test_committing_the_same_again_is_fine_and_another_is_told(
    url: str, made: list[Bundle]
) -> None:
    committed(url, made, 2)
    before = everything(Path(url))
    assert commit_state(made[0], url, parent=0, meta={"n": 5}) == 1
    assert commit_state(made[1], url, parent=1, meta={}) == 2
    for parent, bundle in ((0, made[1]), (1, made[0]), (1, made[2])):
        with pytest.raises(StateConflict, match="committed meanwhile") as caught:
            commit_state(bundle, url, parent=parent, meta={})
        assert caught.value.problem()["code"] == "state_conflict"
        assert caught.value.hint == "read the state again and update from it"
        assert caught.value.where == url
    assert everything(Path(url)) == before


# What is no state


def test_a_missing_state_is_an_error_that_names_the_nearest(
    url: str, made: list[Bundle], tmp_path: Path
) -> None:
    committed(url, made, 1)
    missing = str(tmp_path / "state_dump" / "frist_model")
    for verb in (lambda: read_state(missing, tmp_path), lambda: prune(missing, keep=1)):
        with pytest.raises(NotFound, match="there is no state here") as caught:
            verb()
        assert caught.value.hint == f"did you mean '{url}'? leave it out to train from scratch"
    with pytest.raises(NotFound, match="no generation 1 to be followed"):
        commit_state(made[1], missing, parent=1, meta={})
    for generation in (0, 2, -1):
        with pytest.raises(NotFound, match="no generation") as caught:
            read_state(url, tmp_path, generation=generation)
        assert caught.value.hint == "the newest is 1"
    assert head(missing) == 0
    assert os.listdir(tmp_path / "state_dump") == ["first_model"]


def test_an_empty_folder_is_a_state_to_come(url: str, made: list[Bundle], tmp_path: Path) -> None:
    Path(url).mkdir(parents=True)
    assert head(url) == 0
    with pytest.raises(NotFound, match="leave it out"):
        read_state(url, tmp_path)
    committed(url, made, 1)
    assert head(url) == 1


@pytest.mark.parametrize(
    "name", ["photo.jpg", "generations/notes.txt", "generations/1.json", "bundles/readme", "a/b"]
)
def test_a_folder_with_other_files_is_refused_and_left_alone(
    url: str, made: list[Bundle], tmp_path: Path, name: str
) -> None:
    file = Path(url, name)
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    for verb in (
        lambda: head(url),
        lambda: read_state(url, tmp_path),
        lambda: commit_state(made[0], url, parent=0, meta={}),
        lambda: prune(url, keep=1, grace_s=0),
    ):
        with pytest.raises(UnsafeLocation, match="other files"):
            verb()
    assert everything(Path(url)) == {name: b"mine"}
    file.unlink()


def test_what_looks_like_one_but_is_none(url: str, made: list[Bundle], tmp_path: Path) -> None:
    committed(url, made, 1)
    with pytest.raises(UnsafeLocation, match="a model or a checkpoint, not a state"):
        read_state(str(made[0].path), tmp_path)
    with pytest.raises(UnsafeLocation) as caught:
        read_state(str(Path(url).parent), tmp_path)
    assert caught.value.hint == f"did you mean '{url}'?"
    (tmp_path / "file").touch()
    with pytest.raises(UnsafeLocation, match="a file, not a state"):
        head(str(tmp_path / "file"))
    with pytest.raises(StoreError, match=r"cannot be (read|written)"):
        commit_state(made[0], str(tmp_path / "file" / "below"), parent=0, meta={})
    with pytest.raises(StoreError, match="cannot be read"):
        head(str(tmp_path / ("x" * 300)))


@pytest.mark.parametrize(
    "address",
    ["", "a\0b", "https://example.org/state", "gs://bucket/state", "file://elsewhere/state",
     "simplecache::s3://bucket/state", "s3://bucket/a::file:///etc", "s3://", "s3:///state",
     "s3://bucket/../state", "s3://bucket/a//b", "s3://bucket/a?versionId=1",
     "s3://key:secret@bucket/state", "blob://0"],
)  # fmt: skip
def test_other_addresses_are_refused(address: str, made: list[Bundle], tmp_path: Path) -> None:
    for verb in (
        lambda: head(address),
        lambda: read_state(address, tmp_path),
        lambda: commit_state(made[0], address, parent=0, meta={}),
    ):
        with pytest.raises(UnsafeLocation) as caught:
            verb()
        assert "secret" not in str(caught.value)


# Damage


@pytest.mark.parametrize("name", ["model.safetensors", "shared.bin", MANIFEST])
@pytest.mark.parametrize("how", ["changed", "missing"])
def test_a_damaged_file_is_named(
    url: str, made: list[Bundle], tmp_path: Path, name: str, how: str
) -> None:
    committed(url, made, 2)
    file = read_state(url, tmp_path).bundle.path / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if how == "changed":
        file.write_bytes(data)
    else:
        file.unlink()
    with pytest.raises(CorruptBundle) as caught:
        read_state(url, tmp_path)
    assert caught.value.where == str(file)
    assert read_state(url, tmp_path, generation=1).bundle.id == made[0].id
    # Who has the bundle still may commit it, and the damaged copy gives way to the good one.
    assert commit_state(made[1], url, parent=2, meta={}) == 3
    assert read_state(url, tmp_path).bundle.id == made[1].id


def test_the_bits_of_a_note_are_guarded(url: str, made: list[Bundle], tmp_path: Path) -> None:
    committed(url, made, 2)
    note = Path(url, "generations", "00000002.json")
    good = note.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(good)), 1500):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        note.write_bytes(bad)
        with pytest.raises(CorruptBundle) as caught:
            read_state(url, tmp_path)
        assert caught.value.where == str(note)
    first = Path(url, "generations", "00000001.json").read_bytes()
    newer = good.replace(b'"format": 1', b'"format": 2')
    for other in (b"", b"[]", b"{}", good[:-1], newer, b"[" * 100_000, first):
        note.write_bytes(other)
        with pytest.raises(CorruptBundle):
            read_state(url, tmp_path)
    note.write_bytes(good)
    assert read_state(url, tmp_path).generation == 2


def test_a_note_that_points_outside_is_refused(
    url: str, made: list[Bundle], tmp_path: Path
) -> None:
    from luthier.store import states_note

    committed(url, made, 1)
    path = Path(url, "generations", "00000001.json")
    note = states_note.decode(path.read_bytes(), 1, "")
    for name in ("../../x", "/etc/x", "a\0b"):
        note.files[name] = states_note.StoredFile("0" * 64, 1)
        path.write_bytes(states_note.encode(note))
        with pytest.raises(CorruptBundle):
            read_state(url, tmp_path)
        del note.files[name]
    path.write_bytes(states_note.encode(note))
    assert read_state(url, tmp_path).generation == 1


def test_a_removed_or_exchanged_bundle_is_noticed(
    url: str, made: list[Bundle], tmp_path: Path
) -> None:
    committed(url, made, 2)
    bundles = Path(url, "bundles")
    shutil.rmtree(bundles / made[1].id)
    with pytest.raises(CorruptBundle, match="was committed, but there is no bundle here"):
        read_state(url, tmp_path)
    (bundles / made[0].id).rename(bundles / made[1].id)
    with pytest.raises(CorruptBundle, match="not the one that was committed"):
        read_state(url, tmp_path)


def test_a_bundle_that_changed_since_is_not_committed(url: str, made: list[Bundle]) -> None:
    (made[0].path / "model.safetensors").write_text("something else")
    with pytest.raises(CorruptBundle):
        commit_state(made[0], url, parent=0, meta={})
    other = Bundle(made[1].path, made[2].id, made[1].meta)
    with pytest.raises(CorruptBundle, match="changed since it was written"):
        commit_state(other, url, parent=0, meta={})
    assert head(url) == 0
    assert not Path(url).exists()


def test_reading_executes_nothing(url: str, made: list[Bundle], tmp_path: Path) -> None:
    """In a process that can neither unpickle nor import torch, and ends where code is run."""
    committed(url, made, 1)
    program = """
import sys
from pathlib import Path
for name in ("torch", "transformers", "fsspec", "pickle", "_pickle"):
    sys.modules[name] = None
from luthier.store.states import read_state
sys.addaudithook(lambda event, _: sys.exit(event) if event in
    ("pickle.find_class", "exec", "subprocess.Popen", "os.system") else None)
print(read_state(sys.argv[1], Path(sys.argv[2])).generation)
"""
    command = [sys.executable, "-c", program, url, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


# Several writers, and their ends


@pytest.mark.parametrize("rounds", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_of_two_writers_one_wins_and_the_other_is_told(
    url: str, tmp_path: Path, rounds: int
) -> None:
    winners = state_writers.race(url, tmp_path / "race", rounds)
    assert len(winners) == head(url) == rounds


def test_several_may_commit_the_same_at_once(url: str, made: list[Bundle], tmp_path: Path) -> None:
    processes = [state_writers.start("commit", url, made[0].path, 0) for _ in range(4)]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["1\n"] * 4
    assert read_state(url, tmp_path).bundle.id == made[0].id
    assert os.listdir(Path(url, "bundles")) == [made[0].id]


def test_a_full_folder_is_not_renamed_over(tmp_path: Path) -> None:
    """What ``new_folder(replaces=False)`` stands on, on this file system."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    with new_folder(tmp_path / "there", replaces=False) as aside:
        (aside / "yours").touch()
    assert os.listdir(tmp_path / "there") == ["mine"]
    assert os.listdir(tmp_path) == ["there"]


@pytest.mark.parametrize("end", ["kill", "enospc", "eio"])
def test_a_writer_that_ends_at_any_point_leaves_the_generation_before(
    made: list[Bundle], tmp_path: Path, end: str
) -> None:
    def prepared(name: str) -> str:
        url = str(tmp_path / name)
        committed(url, made, 1)
        return url

    words = ("commit", prepared("calm"), made[1].path, 1)
    passed = state_writers.points(*words, trace=tmp_path / "trace")
    assert {"new.linked@1", "state.stored@1", "state.copied@5"} <= set(passed)
    for point in passed:
        if end != "kill" and point.partition("@")[0] in AFTER_A_WRITE:
            continue
        url = prepared(f"at {point}")
        code, said = state_writers.run(
            "commit", url, made[1].path, 1, **{environment.FAILPOINT: f"{point}={end}"}
        )
        if end == "kill":
            assert code == -signal.SIGKILL, point
        else:
            expected = "disk_full" if end == "enospc" else "store_error"
            assert (code, said.split()[0]) == (9, expected), (point, said)
        state = read_state(url, tmp_path)
        assert state.generation == (2 if point in COMMITTED else 1), point
        assert state.bundle.id == made[state.generation - 1].id
        # The same writer again, and the one after it.
        assert commit_state(made[1], url, parent=1, meta={}) == 2
        assert commit_state(made[2], url, parent=2, meta={}) == 3
        assert read_state(url, tmp_path).bundle.id == made[2].id
        prune(url, keep=3, grace_s=0)
        assert list(Path(url).rglob(".*")) == []


def test_a_power_cut_at_any_point_leaves_a_whole_generation(
    made: list[Bundle], tmp_path: Path
) -> None:
    """Whatever the disk forgets that was not fsynced; and nothing of what was returned."""
    root = tmp_path / "disk"
    root.mkdir()
    url = str(root / "dump" / "state")
    for parent in (0, 1):
        with watched(root) as disk:
            commit_state(made[parent], url, parent=parent, meta={})
        assert len(disk.states) > 10
        for number, views in enumerate(disk.states):
            for kind, files in views.items():
                place = tmp_path / f"{parent}-{number}-{kind}"
                place.mkdir()
                lay_out(files, place)
                after = str(place / "dump" / "state")
                found = head(after)
                is_last = number == len(disk.states) - 1
                assert found in ((parent + 1,) if is_last else (parent, parent + 1))
                if found:
                    assert read_state(after, tmp_path).bundle.id == made[found - 1].id
                assert commit_state(made[3], after, parent=found, meta={}) == found + 1


def test_a_full_disk_is_said_and_the_state_stays(
    url: str, made: list[Bundle], tmp_path: Path
) -> None:
    """By the kernel: no file of this process may grow beyond a limit."""
    committed(url, made, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(DiskFull):
            commit_state(made[1], url, parent=1, meta={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_state(url, tmp_path).bundle.id == made[0].id
    assert list(Path(url).rglob(".*")) == []
    assert commit_state(made[1], url, parent=1, meta={}) == 2


def test_a_folder_that_may_not_be_written_or_read(
    url: str, made: list[Bundle], tmp_path: Path
) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is forbidden to root")
    committed(url, made, 1)
    notes = Path(url, "generations")
    notes.chmod(0o500)
    with pytest.raises(StoreError, match="Permission denied"):
        commit_state(made[1], url, parent=1, meta={})
    notes.chmod(0o000)
    with pytest.raises(StoreError, match="cannot be read"):
        read_state(url, tmp_path)
    notes.chmod(0o700)
    assert read_state(url, tmp_path).generation == 1


# Pruning


def test_pruning_keeps_the_newest_and_every_number(
    url: str, made: list[Bundle], tmp_path: Path
) -> None:
    committed(url, made, 4)
    assert prune(url, keep=2) == 0  # all of them are too young
    assert prune(url, keep=2, grace_s=0) == 2
    assert prune(url, keep=2, grace_s=0) == 0
    assert [read_state(url, tmp_path, generation=g).bundle.id for g in (3, 4)] == [
        made[2].id,
        made[3].id,
    ]
    with pytest.raises(NotFound, match="generation 1 was pruned"):
        read_state(url, tmp_path, generation=1)
    # A writer from before the pruning cannot slip into the gap.
    for parent in (0, 1):
        with pytest.raises(StateConflict):
            commit_state(made[3], url, parent=parent, meta={})
    assert prune(url, keep=1, grace_s=0) == 1
    assert read_state(url, tmp_path).bundle.id == made[3].id
    # What was pruned may come back, as a new generation.
    assert commit_state(made[0], url, parent=4, meta={}) == 5
    assert read_state(url, tmp_path).bundle.id == made[0].id


def test_pruning_removes_what_killed_writers_left_and_nothing_younger(
    url: str, made: list[Bundle], tmp_path: Path
) -> None:
    committed(url, made, 1)
    for point in ("folder.filled", "new.synced"):
        code, _ = state_writers.run(
            "commit", url, made[1].path, 1, **{environment.FAILPOINT: f"{point}=kill"}
        )
        assert code == -signal.SIGKILL
    left = [*Path(url).rglob(".*"), Path(url, "bundles", made[1].id)]
    assert len(left) == 3
    assert prune(url, keep=1, grace_s=3600) == 0
    for path in left:
        os.utime(path, (0, 0))
    assert prune(url, keep=1, grace_s=3600) == 3
    assert everything(Path(url, "bundles", made[0].id)) == everything(made[0].path)
    assert not any(path.exists() for path in left)
    assert read_state(url, tmp_path).generation == 1


def test_a_reader_that_is_overtaken_by_pruning_reads_what_is_newest(
    url: str, made: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.store import states_folder

    committed(url, made, 1)

    def meanwhile(path: Path) -> Bundle:
        monkeypatch.undo()
        commit_state(made[1], url, parent=1, meta={})
        prune(url, keep=1, grace_s=0)
        return open_bundle(path)

    monkeypatch.setattr(states_folder, "open_bundle", meanwhile)
    state = read_state(url, tmp_path)
    assert (state.generation, state.bundle.id) == (2, made[1].id)


@pytest.mark.parametrize("keep", [0, -1])
def test_pruning_all_is_refused(url: str, made: list[Bundle], keep: int) -> None:
    committed(url, made, 1)
    with pytest.raises(SpecError, match="keep"):
        prune(url, keep=keep)


def test_meta_that_is_not_json_is_refused_before_anything_is_written(
    url: str, made: list[Bundle]
) -> None:
    for meta in ({"loss": float("nan")}, {"path": Path("x")}):
        with pytest.raises((ValueError, TypeError)):
            commit_state(made[0], url, parent=0, meta=meta)
    assert not Path(url).exists()
    commit_state(made[0], url, parent=0, meta={"ü": [1, 2.5, None, "\ud800"]})
    note = json.loads(Path(url, "generations", "00000001.json").read_bytes())
    assert note["meta"] == {"ü": [1, 2.5, None, "\ud800"]}
