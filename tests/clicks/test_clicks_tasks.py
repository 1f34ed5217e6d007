"""Tasks of fine-tuning: their states, keys under real concurrency, conflicts, kills, promotion."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from luthier.clicks.store import ClickStore
from luthier.clicks.task_runs import Tuned, run_task, work
from luthier.clicks.tasks import FineTuningTaskRunRequest, FineTuningTasks
from luthier.errors import Conflict, DataError, IllegalTransition, LeaseLost, NotFound, SpecError
from luthier.runs.connection import Home
from luthier.store.bundle import write_bundle

RESULTS = [{"object_id": "a"}, {"object_id": "b"}]


@pytest.fixture
def home(url, tmp_path):
    found = Home(url, store=str(tmp_path / "store"))
    yield found
    found.close()


@pytest.fixture
def ids(home, tmp_path):
    """Artifacts; nothing is asked of what is in them."""
    found = []
    for text in "abcd":
        bundle = write_bundle(
            tmp_path / f"made-{text}", lambda f, t=text: (f / "weights").write_text(t) and None, {}
        )
        found.append(home.store.publish(bundle, public=False))
    return found


@pytest.fixture
def board(home):
    return FineTuningTasks(home)


@pytest.fixture
def clicks(home):
    found = ClickStore(home.url)
    found.register_session("s1", "red hat", RESULTS)
    yield found
    found.close()


def states(clicks):
    return [batch["state"] for batch in clicks.list_batches()]


def gives(artifact, verdict="better"):
    return lambda home, order: Tuned(artifact, verdict, {"ndcg": 0.5})


def test_a_task_goes_its_way_and_its_batch_with_it(home, board, clicks, ids):
    made = board.create_task({"embedding_model_id": ids[0][:9], "metadata": {"x": [1]}})
    assert (made["status"], made["batch_id"], made["detail"]) == ("pending", None, "")
    assert states(clicks) == ["collecting"]
    seen = []

    def tune(home, order):
        seen.append((order.start, order.metadata, states(clicks)))
        clicks.register_session("s2", "what comes meanwhile", RESULTS)
        return Tuned(ids[1], "no clear difference", {"ndcg": 0.5})

    done = run_task(home, made["id"], tune)
    assert seen == [(ids[0], {"x": [1]}, ["fine_tuning"])]
    assert (done["status"], done["detail"]) == ("done", "")
    assert done["result"]["artifact_id"] == ids[1]
    assert states(clicks) == ["archived", "collecting"]
    assert clicks.list_batches()[0]["batch_id"] == done["batch_id"]
    assert home.aliases.all() == []  # nobody asked for it
    for verb in (board.cancel_task, board.restart_task, lambda i: run_task(home, i, tune)):
        with pytest.raises(IllegalTransition, match="the task is done"):
            verb(made["id"])


def test_fields_are_checked_and_named(board, ids):
    with pytest.raises(SpecError, match="did you mean 'batch_id'"):
        board.create_task({"embedding_model_id": ids[0], "batchid": "x"})
    with pytest.raises(SpecError, match="embedding_model_id"):
        board.create_task({})
    with pytest.raises(SpecError, match="metadata: is not JSON"):
        board.create_task({"embedding_model_id": ids[0], "metadata": {"x": float("nan")}})
    with pytest.raises(NotFound, match="no batch is called 'x'"):
        board.create_task({"embedding_model_id": ids[0], "batch_id": "x"})
    with pytest.raises(NotFound, match="neither a run nor an artifact"):
        board.create_task({"embedding_model_id": "nonesuch"})
    with pytest.raises(NotFound, match="no task"):
        board.get_task("x")
    with pytest.raises(SpecError, match="did you mean 'pending'"):
        board.list_tasks(status="pendin")
    with pytest.raises(SpecError, match="2 problems"):
        board.list_tasks(offset=-1, limit=0)
    assert board.list_tasks() == []


def test_pages_of_tasks(board, clicks, ids):
    made = [
        board.create_task({"embedding_model_id": i, "wait_on_conflict": True})["id"]
        for i in [*ids, ids[0]]
    ]
    assert [t["id"] for t in board.list_tasks()] == made[::-1]
    assert [t["id"] for t in board.list_tasks(offset=1, limit=2)] == [made[3], made[2]]
    board.cancel_task(made[2])
    assert [t["id"] for t in board.list_tasks(status="canceled")] == [made[2]]
    assert len(board.list_tasks(status="pending")) == 4


def test_a_key_is_one_task(board, clicks, ids):
    request = FineTuningTaskRunRequest(embedding_model_id=ids[0], idempotency_key="k")
    once = board.create_task(request)
    assert board.create_task(request) == once
    with pytest.raises(Conflict, match="asked for otherwise"):
        board.create_task({"embedding_model_id": ids[1], "idempotency_key": "k"})
    assert len(board.list_tasks()) == 1


CREATOR = """
import sys
from luthier.clicks.tasks import FineTuningTasks
from luthier.runs.connection import Home
url, store, model = sys.argv[1:]
home = Home(url, store=store)
board = FineTuningTasks(home)
sys.stdin.read(1)
for i in range(12):
    print(board.create_task({"embedding_model_id": model, "idempotency_key": f"k{i}",
                             "wait_on_conflict": True})["id"])
"""


def test_a_key_is_one_task_however_many_come_at_once(home, url, board, ids):
    """Real processes, released at the same moment."""
    command = [sys.executable, "-c", CREATOR, url, str(home.path), ids[0]]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [process.communicate("x", timeout=120)[0].split() for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert len(said[0]) == 12
    assert said[0] == said[1] == said[2] == said[3]
    assert len(board.list_tasks()) == 12


def test_another_task_on_the_same_is_refused_or_waits(home, board, clicks, ids):
    first = board.create_task({"embedding_model_id": ids[0]})
    refused = board.create_task({"embedding_model_id": ids[0][:10]})
    assert refused["status"] == "refused"
    assert refused["detail"] == f"task {first['id']} on the same model is pending"
    waits = board.create_task({"embedding_model_id": ids[0], "wait_on_conflict": True})
    assert waits["status"] == "pending"

    def tune(home, order):
        with pytest.raises(Conflict, match=f"it waits for task {first['id']}"):
            run_task(home, waits["id"], gives(ids[1]))
        with pytest.raises(Conflict, match="another works on the task"):
            run_task(home, first["id"], gives(ids[1]))
        clicks.register_session("s2", "q", RESULTS)
        return Tuned(ids[1], "worse")

    assert run_task(home, first["id"], tune)["status"] == "done"
    assert run_task(home, waits["id"], gives(ids[2]))["status"] == "done"
    again = board.restart_task(refused["id"])  # nothing is in its way now
    assert again["status"] == "pending"
    assert run_task(home, refused["id"], gives(ids[2]))["status"] == "refused"
    assert "no batch collects" in board.get_task(refused["id"])["detail"]


def test_batches_that_cannot_be_trained_with_are_refused_with_the_reason(home, board, clicks, ids):
    batch = clicks.list_batches()[0]["batch_id"]

    def ask(**more):
        return board.create_task({"embedding_model_id": ids[0], "batch_id": batch} | more)

    assert "still collects" in ask()["detail"]
    clicks.release_batch("r")
    made = ask()
    assert made["status"] == "pending"
    other = ask(embedding_model_id=ids[1])
    assert "on the same batch is pending" in other["detail"]
    clicks.set_batch_state(batch, "fine_tuning")  # somebody who asked nobody
    assert (
        run_task(home, made["id"], gives(ids[1]))["detail"] == f"the batch {batch} is fine_tuning"
    )
    assert "is being trained with" in ask()["detail"]
    clicks.set_batch_state(batch, "archived")
    assert "is archived" in ask()["detail"]


def test_what_fails_says_why_gives_its_batch_back_and_can_be_done_again(home, board, clicks, ids):
    made = board.create_task({"embedding_model_id": ids[0]})

    def bad(home, order):
        raise DataError("no item of the log is in the catalogue", file="items.jsonl", row=3)

    failed = run_task(home, made["id"], bad)
    assert failed["status"] == "failed"
    assert failed["detail"] == "items.jsonl, row 3: no item of the log is in the catalogue"
    assert states(clicks) == ["released"]
    keys = []

    def worse(home, order):
        keys.append(order.key)
        raise ZeroDivisionError("in the plugin")

    board.restart_task(made["id"])
    failed = run_task(home, made["id"], worse)
    assert failed["detail"] == "ZeroDivisionError: in the plugin"
    board.restart_task(made["id"])
    done = run_task(home, made["id"], lambda h, o: keys.append(o.key) or Tuned(ids[1], "better"))
    assert done["status"] == "done"
    assert keys == [f"task-{made['id']}-1", f"task-{made['id']}-2"]  # another run each time
    assert done["batch_id"] == failed["batch_id"]
    assert states(clicks) == ["archived"]


def test_what_is_interrupted_is_given_back(home, board, clicks, ids):
    made = board.create_task({"embedding_model_id": ids[0]})

    def stopped(home, order):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_task(home, made["id"], stopped)
    assert board.get_task(made["id"])["status"] == "pending"
    assert states(clicks) == ["released"]
    assert [t["status"] for t in work(home, gives(ids[1]))] == ["done"]


def test_a_canceled_task_is_never_done(home, board, clicks, ids):
    waiting = board.create_task({"embedding_model_id": ids[0]})
    assert board.cancel_task(waiting["id"])["status"] == "canceled"
    assert board.cancel_task(waiting["id"])["status"] == "canceled"
    made = board.create_task({"embedding_model_id": ids[0], "deploy_as_blue": True})

    def tune(home, order):
        assert board.cancel_task(order.task_id)["status"] == "processing"
        return Tuned(ids[1], "better")

    done = run_task(home, made["id"], tune)
    assert (done["status"], done["result"]) == ("canceled", None)
    assert home.aliases.all() == []
    assert states(clicks) == ["released"]


def test_canceling_a_task_cancels_its_run(home, board, clicks, ids, monkeypatch):
    from luthier.testing.toy_engine import toy_spec

    monkeypatch.setenv("LUTHIER_WORKER", "none")
    made = board.create_task({"embedding_model_id": ids[0]})
    runs, stopped = [], threading.Event()

    def tune(home, order):
        runs.append(home.submit(toy_spec(3), idempotency_key=order.key))
        board.cancel_task(order.task_id)
        while runs[0].status()["status"] != "CANCELLED":
            assert not stopped.wait(0.05)
        raise DataError("the run was cancelled")

    assert run_task(home, made["id"], tune, lease_s=3)["status"] == "canceled"
    assert runs[0].status()["reason"] == "task"


def test_the_run_of_a_worker_that_died_is_canceled_with_its_task(
    home, board, clicks, ids, monkeypatch
):
    from luthier.testing.toy_engine import toy_spec

    monkeypatch.setenv("LUTHIER_WORKER", "none")
    made = board.create_task({"embedding_model_id": ids[0]})
    runs = []

    def dies(home, order):
        runs.append(home.submit(toy_spec(3), idempotency_key=order.key))
        with home.ledger.database.write() as connection:  # as if it had not been heard of for long
            connection.exec_driver_sql("UPDATE click_tasks SET lease_expires_at = 1")
        assert board.cancel_task(order.task_id)["status"] == "canceled"
        return Tuned(ids[1], "better")

    with pytest.raises(LeaseLost):
        run_task(home, made["id"], dies, lease_s=1000)
    assert board.get_task(made["id"])["status"] == "canceled"
    assert runs[0].status() == {"status": "CANCELLED", "details": "", "reason": "task"}
    assert states(clicks) == ["released"]


def test_only_what_is_better_becomes_production(home, board, clicks, ids):
    def goes(start, to, verdict):
        clicks.register_session(f"for {start}{to}{verdict}", "q", RESULTS)
        made = board.create_task({"embedding_model_id": start, "deploy_as_blue": True})
        return run_task(home, made["id"], gives(to, verdict))

    assert goes(ids[0], ids[1], "worse")["result"]["promoted"] is False
    assert home.aliases.all() == []
    done = goes(ids[0], ids[1], "better")
    assert done["result"] | {"metrics": None} == {
        "artifact_id": ids[1], "verdict": "better", "start": ids[0], "promoted": True,
        "reason": None, "metrics": None,
    }  # fmt: skip
    done = goes("alias:production", ids[2], "better")
    assert done["result"]["start"] == ids[1]
    named = {x.name: x.artifact_id for x in home.aliases.all()}
    assert named == {"production": ids[2], "previous": ids[1]}
    done = goes("alias:production", ids[3], "no clear difference")
    assert done["detail"] == "not promoted: the verdict is 'no clear difference'"
    done = goes(ids[0], ids[3], "better")
    assert f"not compared with {ids[2][:12]}" in done["detail"]
    assert home.aliases.rollback().artifact_id == ids[1]
    assert done["id"] not in home.aliases.history("production")[0].note


WORKER = """
import sys
from luthier.clicks.task_runs import Tuned, run_task
from luthier.runs.connection import Home
url, store, task, artifact, where = sys.argv[1:]
home = Home(url, store=store)
def tune(home, order):
    print("at work", order.key, flush=True)
    sys.stdin.read() if where == "training" else None
    return Tuned(artifact, "better")
run_task(home, task, tune)
"""


@pytest.mark.parametrize("request_batch", [False, True])
def test_what_a_killed_worker_left_is_taken_up(home, url, board, clicks, ids, request_batch):
    """A real process, killed by the system while it trains; its batch is the same again."""
    batch = clicks.release_batch("r")["batch_id"] if request_batch else None
    made = board.create_task(
        {"embedding_model_id": ids[0], "batch_id": batch, "deploy_as_blue": True}
    )
    words = [url, str(home.path), made["id"], ids[1], "training"]
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = process.stdout.readline().split()
    left = board.get_task(made["id"])
    assert left["status"] == "processing"
    assert work(home, gives(ids[1])) == []  # it lives, so it is not disturbed
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    keys = []
    [done] = work(home, lambda h, o: keys.append(o.key) or Tuned(ids[1], "better"))
    assert (done["status"], done["attempts"]) == ("done", 2)
    assert keys == said[2:]  # the same run
    assert done["batch_id"] == left["batch_id"]
    assert states(clicks) == ["archived"]
    assert home.aliases.find("production").artifact_id == ids[1]


def test_who_lost_the_lease_ends_nothing(home, board, clicks, ids):
    made = board.create_task({"embedding_model_id": ids[0], "deploy_as_blue": True})

    def slow(inner, order):
        with home.ledger.database.write() as connection:  # as if it had slept for an hour
            connection.exec_driver_sql("UPDATE click_tasks SET lease_expires_at = 1")
        assert run_task(home, order.task_id, gives(ids[2]), lease_s=1000)["status"] == "done"
        return Tuned(ids[1], "better")

    with pytest.raises(LeaseLost):
        run_task(home, made["id"], slow, lease_s=1000)
    assert board.get_task(made["id"])["result"]["artifact_id"] == ids[2]
    assert home.aliases.find("production").artifact_id == ids[2]


def test_work_takes_the_oldest_first_and_leaves_nothing(home, board, clicks, ids):
    for i in range(3):
        clicks.register_session(f"more{i}", "q", RESULTS)
        clicks.release_batch(f"r{i}")
    batches = [b["batch_id"] for b in clicks.list_batches()]
    made = [
        board.create_task(
            {"embedding_model_id": ids[0], "batch_id": batch, "wait_on_conflict": True}
        )["id"]
        for batch in batches
    ]
    assert [t["id"] for t in work(home, gives(ids[1]))] == made
    assert states(clicks) == ["archived"] * 3
    assert work(home, gives(ids[1])) == []
