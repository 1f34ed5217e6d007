"""``luthier drift`` on real files: texts through a model, features, labels, and what is wrong."""

from __future__ import annotations

import csv
import functools
import http.server
import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from luthier.demo.data import labelled_train_and_eval


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """``subjects("noun.food", 80)`` → a file of definitions of that subject in WordNet; None:
    of any. Texts of different halves of the sample do not meet."""
    folder = tmp_path_factory.mktemp("wordnet")
    found = []
    for file in labelled_train_and_eval(folder):
        with file.open(encoding="utf-8", newline="") as opened:
            found += list(csv.DictReader(opened))

    def write(subject, n, half=0):
        rows = [r for r in found[half::2] if subject in (None, r["label"])][:n]
        file = folder / f"{subject}-{n}-{half}.csv"
        with file.open("w", encoding="utf-8", newline="") as opened:
            writer = csv.DictWriter(opened, ["text", "label"])
            writer.writeheader()
            writer.writerows(rows)
        return file

    return write


@pytest.fixture
def vectors(tmp_path):
    """``vectors(shift, seed)`` → a .npy of 80 rows of 4 features."""

    def write(shift, seed):
        file = tmp_path / f"{shift}-{seed}.npy"
        np.save(file, np.random.default_rng(seed).normal(size=(80, 4)) + shift)
        return file

    return write


@pytest.mark.real
def test_two_subjects_of_wordnet_and_two_halves_of_one(luthier, subjects):
    """Definitions of animals after those of food are new ground; other definitions of artifacts
    are none."""
    said = luthier("drift", subjects("noun.food", 40), subjects("noun.animal", 40), "--json")
    assert said.code == 0
    assert said.document["decision"] == "retrain"
    assert said.document["findings"][0]["p"] == pytest.approx(1 / 1001)
    assert said.document["ground"]["off"] > 0.5
    assert said.document["compared"] == "column 'text' by all-minilm-l6-v2"
    said = luthier(
        "drift", subjects("noun.artifact", 60, 0), subjects("noun.artifact", 60, 1), "--json"
    )
    assert (said.code, said.document["decision"]) == (0, "skip")
    assert said.document["findings"][0]["smallest"]["shift"] < 2


def test_a_table_for_people(luthier, vectors):
    said = luthier("drift", vectors(0, 0), vectors(3, 1), "--test", "mmd", "--test", "ks")
    assert said.code == 0
    first, *rest = said.out.splitlines()
    assert first.split() == ["decision", "retrain"]
    heads = next(line for line in rest if line.startswith("TEST"))
    assert "WOULD HAVE NOTICED" in heads
    assert [line.split()[0] for line in rest[rest.index(heads) + 1 :]] == ["mmd", "ks"]
    assert "100.0% of the new rows" in said.out


def test_texts_by_a_model_and_lines_of_a_text_file(luthier, tiny, subjects, tmp_path):
    file = subjects(None, 40)
    with file.open(encoding="utf-8", newline="") as opened:
        texts = [row["text"] for row in csv.DictReader(opened)]
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(texts) + "\n", encoding="utf-8")
    said = luthier("drift", file, lines, "--model", tiny, "--json")
    assert said.document["decision"] == "skip"
    assert said.document["compared"] == f"column 'text' by {tiny}"
    assert [f["test"] for f in said.document["findings"]] == ["mmd"]  # lines have no labels
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"q": t, "n": i}) + "\n" for i, t in enumerate(texts)))
    said = luthier("drift", rows, rows, "--model", tiny, "--column", "q", "--json")
    assert said.document["compared"] == f"column 'q' by {tiny}"


def test_pairs_without_names_are_read_as_fit_reads_them(luthier, tiny, tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("".join(f"word {i},the meaning of number {i}\n" for i in range(30)))
    said = luthier("drift", file, file, "--model", tiny, "--json")
    assert said.code == 0, said
    assert said.document["reference_rows"] == 30


def test_vectors_that_encode_wrote_need_no_model(luthier, tiny, subjects, tmp_path):
    files = []
    for half in (0, 1):
        files.append(tmp_path / f"vectors-{half}.parquet")
        words = [tiny, subjects(None, 40, half), "--column", "text", "--output", files[-1]]
        assert luthier("encode", *words).code == 0
    stored = luthier("drift", *files, "--json").document
    assert stored["compared"] == "column 'embedding'"
    again = luthier("drift", *files, "--model", tiny, "--json").document
    assert again["compared"] == f"column 'text' by {tiny}"
    statistics = [d["findings"][0]["statistic"] for d in (stored, again)]
    assert statistics[0] == pytest.approx(statistics[1], abs=1e-5)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_columns_of_numbers_are_features(luthier, tmp_path, suffix):
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = []
    for seed, shift in ((0, 0), (1, 2)):
        values = np.random.default_rng(seed).normal(size=(60, 2)) + shift
        rows = [{"id": i + 900 * seed, "height": a, "weight": b} for i, (a, b) in
                enumerate(values.tolist())]  # fmt: skip
        files.append(tmp_path / f"{seed}{suffix}")
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), files[-1])
        elif suffix == ".jsonl":
            files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            with files[-1].open("w", newline="") as opened:
                writer = csv.DictWriter(opened, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    said = luthier("drift", *files, "--test", "ks", "--json")
    assert said.code == 0, said
    assert said.document["compared"] == "columns height, weight"  # the id is none
    assert said.document["findings"][0]["detail"]["changed_features"] == [0, 1]
    one = luthier("drift", *files, "--test", "ks", "--column", "weight", "--json")
    assert one.document["compared"] == "columns weight"


def test_a_side_may_be_a_url(luthier, vectors, tmp_path, monkeypatch):
    file = vectors(0, 0)
    handler = functools.partial(Quiet, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/{file.name}"
        assert luthier("drift", file, url).code == 10  # an address of this machine
        monkeypatch.setenv("LUTHIER_ALLOW_PRIVATE_URLS", "1")
        said = luthier("drift", file.as_uri(), url, "--json")
        assert (said.code, said.document["decision"]) == (0, "skip")
        assert luthier("drift", file, url + "x").code == 3
    finally:
        server.shutdown()
        server.server_close()
    assert luthier("drift", file, "ssh://host/rows.npy").code == 10


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, *args):
        pass


def test_labels_predictions_and_quality(luthier, tmp_path):
    rng = np.random.default_rng(0)

    def write(name, shares, right, known=True):
        true = rng.choice(["cat", "dog"], 300, p=shares)
        other = np.where(true == "cat", "dog", "cat")
        said = np.where(rng.random(300) < right, true, other)
        file = tmp_path / name
        with file.open("w", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(["label", "said", "sure"] if known else ["said", "sure"])
            for t, s in zip(true, said, strict=True):
                writer.writerow([t, s, 0.5] if known else [s, 0.5])
        return file, (true == "dog").mean()

    old, _ = write("old.csv", [0.5, 0.5], 0.9)
    worse, _ = write("worse.csv", [0.5, 0.5], 0.5)
    blind, truth = write("blind.csv", [0.2, 0.8], 0.9, known=False)
    words = ["--test", "labels", "--predictions", "said", "--json"]
    said = luthier("drift", old, worse, *words)
    assert said.document["decision"] == "retrain"
    assert [f["test"] for f in said.document["findings"]] == ["labels", "quality"]
    said = luthier("drift", old, blind, *words)
    assert said.code == 0, said
    assert said.document["findings"][0]["test"] == "predictions"
    share, low, high = said.document["shares"]["dog"]
    assert low <= truth <= high
    assert share == pytest.approx(truth, abs=0.1)
    named = luthier("drift", old, blind, *words, "--labels", "label")
    assert named.document["shares"] == said.document["shares"]
    shown = luthier("drift", old, blind, *words[:-1])
    assert "ESTIMATED SHARE" in shown.out
    said = luthier("drift", old, worse, "--test", "labels", "--quality", "sure", "--json")
    assert said.document["findings"][1]["p"] == 1.0


def test_arrays_with_labels_and_a_sample_of_rows(luthier, tmp_path):
    file = tmp_path / "rows.npz"
    rng = np.random.default_rng(0)
    np.savez(file, features=rng.normal(size=(90, 3)), labels=rng.integers(0, 2, 90))
    said = luthier("drift", file, file, "--rows", 50, "--json")
    document = said.document
    assert (document["reference_rows"], document["reference_used"]) == (90, 50)
    assert [f["test"] for f in document["findings"]] == ["mmd", "labels"]
    assert document["findings"][1]["detail"]["classes"] == 2
    assert "a sample of 50 compared" in luthier("drift", file, file, "--rows", 50).out


def test_what_is_wrong_is_named_by_file_row_and_column(luthier, vectors, subjects, tmp_path):
    good, text = vectors(0, 0), subjects(None, 40)

    def refused(code, *says, words):
        said = luthier("drift", *words)
        assert said.code == code, said
        assert "Traceback" not in said.err
        for part in says:
            assert part in said.err
        assert luthier("drift", *words, "--json").document["title"]

    wrong = np.load(good)
    wrong[6, 2] = np.nan
    np.save(tmp_path / "nan.npy", wrong)
    refused(3, "nan.npy, row 7, column 3", words=[good, tmp_path / "nan.npy"])
    refused(3, "there is no such file", "did you mean", words=[good, tmp_path / "nann.npy"])
    refused(3, "there is no column 'txt'", "'text'", words=[text, text, "--column", "txt"])
    refused(3, "did you mean 'mmd'", words=[good, good, "--test", "mdm"])
    refused(3, "alpha is a probability", words=[good, good, "--alpha", "2"])
    refused(3, "holds features and no texts", words=[good, text])
    refused(3, "no labels to compare", words=[good, good, "--test", "labels"])
    refused(3, "there is no array 'y'", words=[good, good, "--labels", "y"])
    refused(2, "--rows", words=[good, good, "--rows", "2"])
    (tmp_path / "broken.npz").write_bytes(b"PK no zip at all")
    refused(3, "broken.npz", "no arrays", words=[good, tmp_path / "broken.npz"])
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused(3, "objects.npy", words=[good, tmp_path / "objects.npy"])
    np.save(tmp_path / "wide.npy", np.ones((9, 7)))
    refused(3, "4 features a row, the new rows 7", words=[good, tmp_path / "wide.npy"])
    (tmp_path / "gap.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": null}\n' * 3)
    refused(3, "gap.jsonl, row 2", words=[text, tmp_path / "gap.jsonl"])
    (tmp_path / "odd.jsonl").write_text('{"flavour": "a", "colour": "b"}\n' * 9)
    refused(3, "odd.jsonl", "--column with one of: flavour, colour",
            words=[tmp_path / "odd.jsonl", text])  # fmt: skip
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    refused(3, "few.txt: 2 rows are too few", words=[text, tmp_path / "few.txt"])
    (tmp_path / "quality.csv").write_text("text,ok\na,1\nb,maybe\n")
    refused(3, "quality.csv, row 3, column ok", "no number",
            words=[tmp_path / "quality.csv", text, "--quality", "ok"])  # fmt: skip
    (tmp_path / "blank.csv").write_text("text,label\na,x\nb,\n")
    refused(3, "blank.csv, row 3, column label: is empty", words=[text, tmp_path / "blank.csv"])
    refused(3, "there is no column 'kind'", words=[text, text, "--labels", "kind"])


def test_features_load_no_model_library(vectors, tmp_path):
    """A gate that looks at features answers without torch."""
    program = (
        "import sys\nfrom luthier.cli.main import run\n"
        f"assert run(['drift', {str(vectors(0, 0))!r}, {str(vectors(0, 1))!r}, "
        f"'--home', {str(tmp_path / 'home')!r}]) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)


def test_who_waits_is_told_and_stdout_stays_json(luthier, tiny, subjects, monkeypatch):
    from luthier.cli import drift

    monkeypatch.setattr(drift, "_PATIENCE_S", -1.0)
    said = luthier("drift", subjects(None, 40), subjects(None, 40, 1), "--model", tiny, "--json")
    assert said.document["decision"] == "skip"
    assert "loading" in said.err
    assert luthier("drift", subjects(None, 40), subjects(None, 40, 1), "--test", "labels").err == (
        "labels 0%\n"
    )
