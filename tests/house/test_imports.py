"""The rooms import one way, and what must be quick to import is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "luthier"

#: Room → the rooms that it may import, besides itself, when a module of it is loaded or used.
#: Modules at the root of the package count as rooms. ``engine.cards``, ``engine.control`` and
#: ``engine.decisions`` are tables and names without torch, which others may read.
FOUNDATION = {"errors", "environment", "spec", "registry", "luthier", "lazy"}
PARTS = FOUNDATION | {
    "store",
    "data",
    "batches",
    "models",
    "objectives",
    "updaters",
    "evaluation",
    "tasks",
}
MAY = {
    "luthier": {"lazy"},
    "lazy": set(),
    "errors": set(),
    "environment": set(),
    "spec": {"errors"},
    "registry": {"errors"},
    "store": FOUNDATION,
    "data": FOUNDATION | {"store"},
    "batches": FOUNDATION | {"data", "objectives"},
    "models": FOUNDATION | {"store"},
    "objectives": FOUNDATION,
    "updaters": FOUNDATION | {"batches"},
    "trainer": PARTS | {"engine", "doors", "search"},
    "evaluation": FOUNDATION | {"data", "store"},
    "tasks": FOUNDATION | {"data", "models"},
    # model_updater trains in this process, as Trainer does
    "tuning": FOUNDATION | {"batches", "data", "store", "doors", "engine"},
    "trackers": FOUNDATION,
    "engine": PARTS,
    "runs": FOUNDATION | {"store", "backends"},
    "backends": FOUNDATION | {"runs", "store", "worker"},
    "search": FOUNDATION | {"runs", "tuning", "store", "engine.control"},
    "worker": PARTS | {"engine", "runs", "backends", "trackers", "search"},
    "doors": FOUNDATION
    | {"tuning", "search.spaces", "search.spellings", "clicks.curriculum", "clicks.parameters",
       "clicks.settings"},
    "callback": FOUNDATION,
    "admission": FOUNDATION
    | {"store", "data", "models", "objectives", "runs", "doors", "callback", "engine.cards",
       "engine.control", "engine.decisions", "engine.ranking_problems", "tasks", "updaters",
       "search"},
    # clicks.tuning goes the whole way, from a log to a model that was compared
    "clicks": FOUNDATION
    | {"data", "batches", "store", "evaluation", "runs", "admission", "api", "doors", "inference",
       "models", "search"},
    "corpus": FOUNDATION | {"data", "store", "inference"},
    "serving": FOUNDATION | {"models", "tasks", "data"},
    "component": PARTS | {"engine", "doors", "trainer"},
    "inference": FOUNDATION | {"models", "runs", "data", "store"},
    "cli": FOUNDATION
    | {"api", "admission", "doors", "runs", "store", "data", "inference", "models", "worker",
       "demo", "callback", "benchmark", "component", "evaluation", "engine.control", "updates",
       "search", "clicks", "corpus"},
    "demo": FOUNDATION | {"api", "runs", "data", "store", "evaluation", "cli", "inference"},
    "benchmark": PARTS | {"engine", "demo", "tuning", "inference"},
    "__main__": {"cli"},
}  # fmt: skip
MAY["api"] = MAY["admission"] | {"admission"}
MAY["updates"] = MAY["api"] | {"api", "evaluation"}
MAY["testing"] = set(MAY) | PARTS | {"engine"}

FILES = sorted(SOURCE.rglob("*.py"))


def _room(module: str) -> str:
    """``luthier.store.atomic`` → ``store``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "luthier"


def _imports(file: Path):
    """Every luthier module that a file imports, anywhere in it, but for type checking."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = (SOURCE.parent / Path(*name.split("."))).with_suffix(".py").exists()
                is_room = (SOURCE.parent / Path(*name.split("."))).is_dir()
                yield (name if is_module or is_room else node.module or "", node.lineno)


def test_every_room_has_a_rule():
    rooms = {_room(".".join(["luthier", *f.relative_to(SOURCE).with_suffix("").parts]))
             for f in FILES if f.name != "__init__.py" or f.parent != SOURCE}  # fmt: skip
    assert rooms - set(MAY) == set()


def _wrong(room: str, file: Path) -> list[str]:
    """The imports of a file that its room may not have."""
    wrong = []
    for module, line in _imports(file):
        if module.split(".")[0] != "luthier" or _room(module) == room:
            continue
        narrow = ".".join(module.split(".")[1:3])
        if _room(module) not in MAY[room] and narrow not in MAY[room]:
            wrong.append(f"{file.name}:{line} ({room}) imports {module}")
    return wrong


def test_imports_go_one_way():
    wrong = []
    for file in FILES:
        inside = file.relative_to(SOURCE).with_suffix("").parts
        wrong += _wrong("luthier" if inside == ("__init__",) else inside[0], file)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("from luthier.engine import run", True),
        ("import luthier.engine.run", True),
        ("from luthier import engine", True),
        ("def f():\n    from luthier.engine.loop import Loop", True),
        ("if TYPE_CHECKING:\n    from luthier.engine.loop import Loop", False),
        ("from luthier.runs.client import Run", False),
    ],
)
def test_the_rule_notices_an_import_that_goes_back(tmp_path, line, wrong):
    file = tmp_path / "verb.py"
    file.write_text(line)
    assert bool(_wrong("cli", file)) is wrong


HEAVY = ("torch", "transformers", "sentence_transformers", "datasets", "pandas", "scipy")


def _loaded_after(program: str) -> set[str]:
    code = f"import sys\n{program}\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "luthier",
        "luthier.spec",
        "luthier.registry",
        "luthier.api",
        "luthier.doors.fit",
        "luthier.search.conductor",
        "luthier.runs.client",
        "luthier.cli.main",
        "luthier.cli.jobs",
        "luthier.cli.runs",
        "luthier.cli.bench",
        "luthier.cli.component",
        "luthier.cli.drift",
        "luthier.evaluation.drift",
        "luthier.benchmark.race",
        "luthier.benchmark.page",
        "luthier.callback",
        "luthier.clicks.importing",
        "luthier.clicks.conversion",
        "luthier.clicks.off_policy",
        "luthier.clicks.propensity",
        "luthier.clicks.simulate",
        "luthier.clicks.store",
        "luthier.clicks.methods",
        "luthier.clicks.images",
        "luthier.doors.clicks",
        "luthier.clicks.tasks",
        "luthier.clicks.task_runs",
        "luthier.corpus.encoding",
        "luthier.cli.clicks",
        "luthier.cli.encode_corpus",
        "luthier.worker.main",
    ],
)
def test_what_only_submits_or_looks_loads_no_model_library(module):
    assert _loaded_after(f"import {module}").isdisjoint(HEAVY)


def test_all_cards_are_known_without_torch():
    kinds = ("loss", "miner", "optimizer", "scheduler", "model", "pooler", "task")
    program = f"from luthier.registry import cards\nassert all(cards(k) for k in {kinds!r})"
    assert _loaded_after(program).isdisjoint(HEAVY)


def test_importing_luthier_loads_nothing_to_speak_of():
    loaded = _loaded_after("import luthier")
    assert loaded.isdisjoint({*HEAVY, "pydantic", "pyarrow", "numpy", "yaml", "rich", "sqlalchemy"})


def _cpu_s(program: str) -> float:
    """CPU seconds of a program, the least of five: what it costs when nothing disturbs it."""
    code = (
        "import time\nstart = time.process_time()\n"
        f"{program}\n"
        "import sys\nprint('\\n', time.process_time() - start, file=sys.stderr)"
    )
    times = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        times.append(float(done.stderr.split()[-1]))
    return min(times)


def test_import_luthier_takes_under_60_ms():
    assert _cpu_s("import luthier") < 0.060


def test_help_takes_under_200_ms_of_cpu():
    """The whole process, the interpreter's own start included."""
    program = "from luthier.cli.main import run\nassert run(['--help']) == 0\nstart = 0.0"
    assert _cpu_s(program) < 0.200
