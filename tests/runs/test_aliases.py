"""Names for artifacts: compare and set, promotions and their rollbacks, who and when."""

import json
import random
import subprocess
import sys

import pytest

import luthier
from luthier.errors import Conflict, IllegalTransition, NotFound, SpecError
from luthier.runs.connection import Home, using
from luthier.store.bundle import write_bundle


def artifact(home, text, tmp_path):
    """An artifact of a home; nothing is asked of what is in it."""
    bundle = write_bundle(
        tmp_path / f"made-{text}", lambda folder: (folder / "weights").write_text(text) and None, {}
    )
    return home.store.publish(bundle, public=False)


@pytest.fixture
def home(url, tmp_path):
    found = Home(url, store=str(tmp_path / "store"))
    yield found
    found.close()


@pytest.fixture
def ids(home, tmp_path):
    return [artifact(home, text, tmp_path) for text in "abcd"]


def test_a_promotion_keeps_what_was_there_and_a_rollback_brings_it_back(home, ids):
    a, b, c, _ = ids
    names = home.aliases
    names.promote(a, by="ann", note="first")
    assert [x.name for x in names.all()] == ["production"]
    names.promote(b[:8])
    names.promote(c)
    assert (names.find("production").artifact_id, names.find("alias:previous").artifact_id) == (
        c,
        b,
    )
    assert names.rollback(by="eve").artifact_id == b
    assert names.find("previous").artifact_id == a
    assert names.rollback().artifact_id == a
    assert [x.name for x in names.all()] == ["production"]  # nothing was before the first
    with pytest.raises(IllegalTransition, match="was nothing else before"):
        names.rollback()
    told = [(x.action, x.artifact_id, x.by) for x in names.history("production")]
    assert [(t[0], t[1]) for t in told] == [
        ("rollback", a), ("rollback", b), ("promote", c), ("promote", b), ("promote", a),
    ]  # fmt: skip
    assert told[1][2] == "eve"
    assert "@" in told[0][2]  # who nobody named: the user, on this machine
    first = names.history("production")[-1]
    assert (first.revision, first.by, first.note) == (1, "ann", "first")
    assert [x.revision for x in names.history("production")] == [5, 4, 3, 2, 1]


def test_the_same_again_changes_nothing(home, ids):
    once = home.aliases.promote(ids[0])
    assert home.aliases.promote(ids[0]) == once
    assert home.aliases.set("production", ids[0]) == once
    assert len(home.aliases.history("production")) == 1


def test_compare_and_set(home, ids):
    a, b, c, _ = ids
    home.aliases.set("x", a, expected=None)
    with pytest.raises(Conflict, match=f"stands for {a[:12]}, not for nothing"):
        home.aliases.set("x", b, expected=None)
    home.aliases.set("x", b, expected=a[:6])
    for change in (
        lambda: home.aliases.set("x", c, expected=a),
        lambda: home.aliases.promote(c, name="x", expected=a),
        lambda: home.aliases.rollback("x", expected=c),
        lambda: home.aliases.remove("x", expected=c),
    ):
        with pytest.raises(Conflict, match="look again, then decide"):
            change()
    assert home.aliases.find("x").artifact_id == b
    home.aliases.remove("x", expected=b)
    with pytest.raises(NotFound, match="no alias is called 'x'"):
        home.aliases.find("x")
    assert home.aliases.set("x", c, expected=None).revision == 4  # it never goes back
    with pytest.raises(IllegalTransition):  # what was taken away does not come back by itself
        home.aliases.rollback("x")


def test_what_is_wrong_is_said(home, ids):
    home.aliases.set("production", ids[0])
    with pytest.raises(NotFound, match="did you mean 'production'"):
        home.aliases.find("productoin")
    with pytest.raises(NotFound, match="there is no artifact"):
        home.aliases.set("x", "0" * 64)
    for name in ("", "Big", "a/b", "x" * 65, "-x"):
        with pytest.raises(SpecError, match="cannot be the name"):
            home.aliases.set(name, ids[0])
    with pytest.raises(NotFound):
        home.aliases.history("never")
    with pytest.raises(NotFound):
        home.aliases.rollback("never")
    home.aliases.promote(ids[1])
    home.store.remove_artifact(ids[0])
    with pytest.raises(NotFound, match="there is no artifact"):
        home.aliases.rollback()
    assert home.aliases.find("production").artifact_id == ids[1]


def test_a_walk_of_changes_is_as_a_list_would_have_it(home, ids):
    """The slow oracle: a stack of artifacts."""
    dice, stack = random.Random(3), []
    for _ in range(60):
        if stack and dice.random() < 0.4:
            if len(stack) == 1:
                with pytest.raises(IllegalTransition):
                    home.aliases.rollback()
            else:
                stack.pop()
                home.aliases.rollback()
        else:
            chosen = dice.choice(ids)
            home.aliases.promote(chosen)
            if not stack or stack[-1] != chosen:
                stack.append(chosen)
        known = {x.name: x.artifact_id for x in home.aliases.all()}
        expected = {"production": stack[-1]} | ({"previous": stack[-2]} if stack[1:] else {})
        assert known == expected


RACE = """
import sys
from luthier.errors import Conflict
from luthier.runs.connection import Home
url, store, *ids = sys.argv[1:]
home = Home(url, store=store)
won = 0
for before, after in zip(ids, ids[1:]):
    for name in "xyz":
        try:
            home.aliases.set(name, after, expected=None if before == "none" else before)
            won += 1
        except Conflict:
            pass
print(won)
"""


def test_of_many_who_change_from_the_same_exactly_one_wins(home, url, ids):
    """Real processes, three names, four changes of each, one upon the other."""
    a, b, c, d = ids
    command = [sys.executable, "-c", RACE, url, str(home.path), "none", a, b, c, d]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    won = [int(process.communicate(timeout=120)[0]) for process in running]
    assert sum(won) == 12
    for name in "xyz":
        assert [x.artifact_id for x in home.aliases.history(name)] == [d, c, b, a]


def test_what_has_a_name_is_not_deleted_with_its_run(home, ids):
    assert home.ledger.artifact_users(ids[0]) == 0
    home.aliases.promote(ids[0])
    home.aliases.promote(ids[1])
    assert [home.ledger.artifact_users(i) for i in ids[:3]] == [1, 1, 0]


def test_an_alias_does_wherever_an_artifact_does(home, tiny_model, tmp_path):
    import shutil

    def fill(folder):
        shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
        (folder / "luthier").mkdir(exist_ok=True)
        (folder / "luthier" / "spec.json").write_text(
            json.dumps({"model": {"name": str(tiny_model)}})
        )

    bundle = write_bundle(tmp_path / "bundle", fill, {})
    made = home.store.publish(bundle, public=False)
    home.aliases.set("blue", made)
    rows = [{"anchor": f"word {i}", "positive": f"words {i}"} for i in range(8)]
    with using(home), pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_WORKER", "none")
        by_name = luthier.get_model("alias:blue").encode(["a word"])
        assert (by_name == luthier.get_model(made).encode(["a word"])).all()
        words = {"loss": "MultipleNegativesRankingLoss", "batch_size": 4}
        run = luthier.fit("alias:blue", rows, **words)
        assert (run.spec.model.name, run.spec.model.artifact) == (str(tiny_model), made)
        again = luthier.fit(str(tiny_model), rows, model_artifact="alias:blue", **words)
        assert again.spec.id == run.spec.id
        with pytest.raises(NotFound, match="no alias is called 'green'"):
            luthier.fit("alias:green", rows, **words)
        with pytest.raises(NotFound, match="no alias"):
            luthier.get_model("alias:green")
    assert home.artifact_of("alias:blue") == home.artifact_of(made[:7]) == made
    with pytest.raises(NotFound, match="neither a run nor an artifact"):
        home.artifact_of("nonesuch")
    with pytest.raises(IllegalTransition, match="no artifact"):
        home.artifact_of(run.name)
