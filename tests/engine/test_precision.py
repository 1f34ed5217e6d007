"""Which arithmetic a run computes in: decided by figures, once a run, and undone at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier import environment
from luthier.engine import precision
from luthier.engine.precision import (
    Autocast,
    better_precision,
    encoding_in,
    encoding_precision,
    measure_autocast,
)
from luthier.engine.resolved import RESOLVED
from luthier.engine.run import run
from luthier.errors import SpecError
from luthier.inference import build_model
from luthier.models import matmul
from luthier.models.figures import FILE
from luthier.models.matmul import (
    Matmul,
    better_matmul,
    matmul_figures,
    matmul_precision,
    measure_matmul,
)

pytestmark = pytest.mark.usefixtures("one_thread", "own_figures")


@pytest.fixture
def own_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each home measures for itself, as it does where nobody says otherwise."""
    monkeypatch.delenv(environment.FIGURES)


# --- decisions, from figures of machines of both kinds -----------------------------------


@pytest.mark.parametrize(
    ("figures", "word"),
    [
        (Matmul(0.0360, 0.0181, 9e-7, 5e-7), "medium"),  # AMD with avx512_bf16: oneDNN, twice
        (Matmul(0.0360, 0.0360, 9e-7, 9e-7), "highest"),  # an Intel Xeon without AMX: the same
        (Matmul(0.0360, 0.0060, 9e-7, 2e-3), "highest"),  # AMX: "medium" multiplies in bf16
        (Matmul(0.0360, 0.0340, 9e-7, 9e-7), "highest"),  # a gain within the noise
        (Matmul(0.0360, 0.0720, 9e-7, 5e-7), "highest"),  # slower
        (Matmul(0.0716, 0.0551, 4.3e-7, 8.8e-7), "medium"),  # another AMD: the error of oneDNN
        (Matmul(0.0360, 0.0180, 4e-7, 1.7e-6), "highest"),  # more than four times the error
        (Matmul(0.0360, 0.0180, 1.5e-6, 2.1e-6), "highest"),  # beyond any fp32
        (Matmul(0.0360, 0.0180, 0.0, float("nan")), "highest"),
    ],
)
def test_medium_is_chosen_where_it_is_as_exact_and_clearly_faster(
    figures: Matmul, word: str
) -> None:
    assert better_matmul(figures) == word


@pytest.mark.parametrize(
    ("figures", "word"),
    [
        (Autocast(fp32_s=0.116, bf16_s=0.334), "fp32"),  # Intel Xeon 2.8 GHz, bf16 emulated
        (Autocast(fp32_s=0.100, bf16_s=0.055), "bf16"),  # bf16 in hardware
        (Autocast(fp32_s=0.100, bf16_s=0.080), "fp32"),  # gains less than its casts may cost
        (Autocast(fp32_s=0.100, bf16_s=0.0769), "bf16"),  # just 1.3 times
        (Autocast(fp32_s=0.100, bf16_s=0.0771), "fp32"),
    ],
)
def test_bf16_is_chosen_where_it_is_clearly_faster(figures: Autocast, word: str) -> None:
    assert better_precision(figures) == word


# --- measurements -------------------------------------------------------------------------


def test_both_libraries_are_measured_against_float64_and_nothing_is_left_changed() -> None:
    random, word = torch.get_rng_state(), torch.get_float32_matmul_precision()
    found = measure_matmul()
    assert 1e-8 < found.highest_error < matmul.MOST_ERROR  # fp32 rounds, and so much
    assert found.medium_error > 1e-8
    assert found.highest_s >= 0
    assert found.medium_s >= 0
    assert torch.equal(random, torch.get_rng_state())
    assert torch.get_float32_matmul_precision() == word


def test_the_error_of_a_bf16_product_is_seen() -> None:
    tokens, weight, _ = matmul.operands()
    found = matmul._products("highest", tokens.bfloat16(), weight.bfloat16())
    assert matmul._error(tokens, weight, *(product.float() for product in found)) > 1e-4


def test_products_go_into_the_room_that_is_there() -> None:
    tokens, weight, _ = matmul.operands()
    room = matmul._products("highest", tokens, weight)
    plain = [product.clone() for product in room]
    again = matmul._products("highest", 2 * tokens, weight, room)
    assert [a.data_ptr() for a in again] == [r.data_ptr() for r in room]
    assert torch.allclose(room[0], 2 * plain[0])
    assert torch.allclose(room[1], 4 * plain[1])
    assert torch.allclose(room[2], 2 * plain[2])


@pytest.mark.skipif(
    bool({"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text().split()))
    if Path("/proc/cpuinfo").exists()
    else True,
    reason="only where the CPU emulates bf16",
)
def test_where_bf16_is_emulated_fp32_is_chosen() -> None:
    assert better_precision(measure_autocast("highest")) == "fp32"


def test_a_setting_lasts_as_long_as_asked_also_when_it_ends_by_an_error() -> None:
    before = torch.get_float32_matmul_precision()
    seen = []

    def inside() -> None:
        with matmul_precision("medium"):
            seen.append(torch.get_float32_matmul_precision())
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - raised above
        inside()
    assert seen == ["medium"]
    assert torch.get_float32_matmul_precision() == before


# --- once a machine -----------------------------------------------------------------------


FIGURES = Matmul(0.04, 0.02, 9e-7, 5e-7)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measurements that are asked for; each gives figures of a machine where oneDNN is faster."""
    asked: list[str] = []

    def products() -> Matmul:
        asked.append("matmul")
        return FIGURES

    def autocast(word: str) -> Autocast:
        asked.append(f"autocast after {word}")
        return Autocast(0.1, 0.05)

    monkeypatch.setattr(matmul, "measure_matmul", products)
    monkeypatch.setattr(precision, "measure_autocast", autocast)
    return asked


def test_a_machine_is_measured_once(tmp_path: Path, counted: list[str]) -> None:
    assert matmul_figures(tmp_path / "new") == matmul_figures(tmp_path / "new") == FIGURES
    assert counted == ["matmul"]


def test_homes_can_share_what_was_measured(
    tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environment.FIGURES, str(tmp_path / "shared" / "figures.json"))
    assert matmul_figures(tmp_path / "one") == matmul_figures(tmp_path / "two") == FIGURES
    assert counted == ["matmul"]
    assert [p.name for p in tmp_path.iterdir()] == ["shared"]


def test_of_processes_that_measure_at_once_the_first_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured_late() -> Matmul:
        monkeypatch.setattr(matmul, "measure_matmul", lambda: FIGURES)
        assert matmul_figures(tmp_path) == FIGURES  # another process, meanwhile
        return Matmul(1.0, 2.0, 5e-7, 5e-7)

    monkeypatch.setattr(matmul, "measure_matmul", measured_late)
    assert matmul_figures(tmp_path) == FIGURES


def test_another_number_of_threads_is_another_machine(tmp_path: Path, counted: list[str]) -> None:
    matmul_figures(tmp_path)
    torch.set_num_threads(2)  # put back by the fixture
    matmul_figures(tmp_path)
    assert counted == ["matmul", "matmul"]
    assert len(json.loads((tmp_path / FILE).read_text())["machines"]) == 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"format": 0, "machines": {}}',
        '{"format": 2, "machines": 7}',
        '{"format": 2, "machines": {"x": {"matmul": {"highest_s": 1.0}}}}',
        '{"format": 2, "machines": {"x": {"other": {}}}}',
    ],
)
def test_a_damaged_file_is_measured_over(tmp_path: Path, counted: list[str], content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert matmul_figures(tmp_path) == matmul_figures(tmp_path) == FIGURES
    assert counted == ["matmul"]


def test_bf16_is_compared_with_the_better_fp32(tmp_path: Path, counted: list[str]) -> None:
    assert precision.fast_precision("cpu", tmp_path) == "bf16"
    assert counted == ["matmul", "autocast after medium"]
    assert precision.fast_precision("mps", tmp_path) == "fp32"


# --- once a run ---------------------------------------------------------------------------


def told(events: list[tuple[str, dict[str, Any]]], kind: str) -> list[dict[str, Any]]:
    return [data for name, data in events if name == kind]


def test_a_run_computes_in_what_it_decided_and_puts_it_back(
    make_spec, place, counted: list[str]
) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    seen: set[str] = set()

    def tell(kind: str, data: dict[str, Any]) -> None:
        events.append((kind, data))
        if kind == "step":
            seen.add(torch.get_float32_matmul_precision())

    run(make_spec(max_steps=2, precision="auto"), place, tell)
    assert seen == {"medium"}
    assert torch.get_float32_matmul_precision() == "highest"
    report = told(events, "preflight")[0]
    assert (report["matmul"], report["precision"]) == ("medium", "bf16")
    said = [data["message"] for data in told(events, "log")]
    assert any("oneDNN" in message for message in said)
    assert any("bf16 is the faster" in message for message in said)


def test_the_setting_is_put_back_when_a_run_fails(make_spec, place, counted: list[str]) -> None:
    with pytest.raises(SpecError):
        run(make_spec(precision="fp16"), place)  # not on a CPU
    assert counted == ["matmul"]
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_resumed_run_does_not_decide_anew(
    make_spec, place, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(max_steps=4, save_steps=2, precision="auto")
    stops = iter([None, None, None, "interrupt"])

    def control() -> Any:
        return next(stops)

    from luthier.engine.control import Interrupted

    with pytest.raises(Interrupted):
        run(spec, place, control=control)
    decided = json.loads((place.folder / RESOLVED).read_text())
    assert (decided["matmul"], decided["precision"]) == ("medium", "bf16")
    # The machine has changed meanwhile: it would now decide otherwise.
    (place.cache / FILE).unlink()
    monkeypatch.setattr(matmul, "measure_matmul", lambda: Matmul(0.02, 0.04, 9e-7, 5e-7))
    monkeypatch.setattr(precision, "measure_autocast", lambda _: Autocast(0.1, 0.3))
    reports: list[dict[str, Any]] = []
    run(spec, place, lambda kind, data: reports.append(data) if kind == "preflight" else None)
    assert (reports[0]["matmul"], reports[0]["precision"]) == ("medium", "bf16")


def test_the_plain_path_is_left_alone(make_spec, place, counted: list[str]) -> None:
    reports: list[dict[str, Any]] = []
    spec = make_spec(max_steps=1, execution="padded")
    run(spec, place, lambda kind, data: reports.append(data) if kind == "preflight" else None)
    assert reports[0]["matmul"] == "highest"
    assert counted == []


# --- evaluation ---------------------------------------------------------------------------


@pytest.fixture
def model(tiny_model: Path) -> Any:
    from luthier.models.loading import load_text_model
    from luthier.spec import ModelSpec

    return load_text_model(ModelSpec(name=str(tiny_model)), artifact=None, device="cpu")


MANY = [f"text number {n} of many" for n in range(1200)]


def test_an_evaluation_encodes_in_bf16_where_that_is_faster_and_the_same(
    model: Any, place, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(texts: list[str] = MANY, plain: bool = False) -> str:
        return encoding_precision(model, texts, place, plain, lambda *_: None)

    assert ask(plain=True) == ask(MANY[:999]) == "fp32"
    assert counted == []
    monkeypatch.setattr(precision, "LEAST_COSINE", 0.99)  # a random model's vectors turn more
    assert ask() == "bf16"
    monkeypatch.setattr(precision, "fast_precision", lambda *_: "fp32")
    assert ask() == "bf16"  # decided


@pytest.mark.parametrize("cosine", [0.9998, float("nan")])
def test_vectors_that_turn_are_encoded_in_fp32(
    model: Any, place, counted: list[str], monkeypatch: pytest.MonkeyPatch, cosine: float
) -> None:
    monkeypatch.setattr(precision, "least_cosine", lambda *_: cosine)
    assert encoding_precision(model, MANY, place, False, lambda *_: None) == "fp32"


def test_where_bf16_is_slower_nothing_is_compared(
    model: Any, place, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "measure_autocast", lambda _: Autocast(0.1, 0.3))
    monkeypatch.setattr(precision, "least_cosine", lambda *_: pytest.fail("compared"))
    assert encoding_precision(model, MANY, place, False, lambda *_: None) == "fp32"


def test_the_forced_choice_reaches_the_encoder(model: Any) -> None:
    """bf16 computes other, nearly equal vectors; fp32 the very ones of a plain call."""
    plain = model.encode(MANY[:40])
    with encoding_in(model, "fp32"):
        assert (model.encode(MANY[:40]) == plain).all()
    with encoding_in(model, "bf16"):
        half = model.encode(MANY[:40])
    assert half.dtype == plain.dtype
    assert (half != plain).any()
    assert 0.99 < float((half * plain).sum(axis=1).min()) < 1
    assert precision.least_cosine(model, MANY[:40]) == pytest.approx(
        float((half * plain).sum(axis=1).min())
    )


# --- many texts that are encoded outside of a run ------------------------------------------


def test_only_many_texts_are_encoded_by_the_better_library(monkeypatch, tiny_model) -> None:
    encoder, words, asked = build_model(str(tiny_model)), [], []
    plain = encoder.model.encode

    def encode(texts: Any, **more: Any) -> Any:
        words.append(torch.get_float32_matmul_precision())
        return plain(texts, **more)

    def measured() -> Matmul:
        asked.append(1)
        return Matmul(2.0, 1.0, 5e-7, 5e-7)

    monkeypatch.setattr(encoder.model, "encode", encode)
    monkeypatch.setattr(matmul, "measure_matmul", measured)
    matmul._of_this_process.cache_clear()
    try:
        for count in (3, 2000, 2000, 3):
            assert len(encoder.encode(["a boat"] * count)) == count
    finally:
        matmul._of_this_process.cache_clear()
    assert words == ["highest", "medium", "medium", "highest"]
    assert len(asked) == 1
    with matmul.quickest_products(torch.device("cuda"), 10**6):
        assert torch.get_float32_matmul_precision() == "highest"
