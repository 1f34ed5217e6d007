"""The shipped sample: well formed, licensed, and without a word or definition on both sides."""

from __future__ import annotations

import csv
import json
import sys
from importlib.resources import files
from pathlib import Path

from luthier.data import load_dataset
from luthier.demo.data import SAMPLE, labelled_train_and_eval, train_and_eval
from luthier.spec import CSVOptions

ROOT = Path(__file__).parents[2]


def rows():
    text = files("luthier.demo").joinpath(SAMPLE).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_no_word_and_no_definition_occurs_twice():
    """So nothing of the evaluation is known from training, and each query has one answer."""
    words = [word for row in rows() for word in set(row["words"].lower().split(", "))]
    definitions = [row["definition"].lower() for row in rows()]
    assert len(words) == len(set(words))
    assert len(definitions) == len(set(definitions))
    assert {row["split"] for row in rows()} == {"train", "eval"}


def test_no_definition_names_its_word():
    for row in rows():
        text = " " + "".join(c if c.isalpha() else " " for c in row["definition"].lower()) + " "
        assert not any(f" {word.lower()} " in text for word in row["words"].split(", ")), row


def test_the_licence_travels_with_the_data(tmp_path):
    licence = files("luthier.demo").joinpath("wordnet-LICENSE.txt").read_text(encoding="utf-8")
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in licence
    assert licence.strip() in (ROOT / "NOTICE").read_text(encoding="utf-8")
    train_and_eval(tmp_path)
    assert (tmp_path / "wordnet-LICENSE.txt").read_text(encoding="utf-8") == licence


def test_the_files_are_read_as_pairs_and_as_labels(tmp_path):
    train, test = train_and_eval(tmp_path / "new" / "folder")
    data = load_dataset(train, CSVOptions(), tmp_path / "cache")
    assert (data.form, len(data)) == ("pairs", 3840)
    assert data.mapping == {"anchor": "query", "positive": "document"}
    with test.open(encoding="utf-8", newline="") as file:
        assert len(list(csv.reader(file))) == 1201
    changed = train.stat().st_mtime_ns
    assert train_and_eval(tmp_path / "new" / "folder")[0].stat().st_mtime_ns == changed
    labelled, _ = labelled_train_and_eval(tmp_path)
    data = load_dataset(labelled, CSVOptions(is_labeled=True), tmp_path / "cache")
    assert (data.form, len(data)) == ("labelled", 3840)


def test_the_builder_reads_wordnets_format(tmp_path):
    """Two meanings written as wndb(5WN) says, one of them unfit."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import build_wordnet_sample as builder
    finally:
        sys.path.pop(0)
    licence = "  1 This software and database is being provided  \n"
    data = (
        "00000042 06 n 02 fiddle 0 violin 0 001 @ 00000099 n 0000 | "
        'a bowed stringed instrument; held under the chin; "he plays it"  \n'
        "00000099 06 n 01 lute 0 000 | a lute is an instrument of some kind  \n"
    )
    for part in builder.PARTS:
        mine = part == "noun"
        (tmp_path / f"data.{part}").write_text(licence + (data if mine else ""))
        index = "fiddle n 1 1 @ 1 1 00000042  \nlute n 1 0 1 1 00000099  \n"
        (tmp_path / f"index.{part}").write_text(licence + (index if mine else ""))
    (found,) = builder.choose(tmp_path, 10)
    assert found.words == ("fiddle", "violin")
    assert found.definition == "a bowed stringed instrument; held under the chin"
    assert found.subject == "noun.artifact"
