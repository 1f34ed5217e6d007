"""Tasks on real data: before, after, and what does without a model.

    python benchmarks/tasks.py                          some twenty minutes on two idle cores
    python benchmarks/tasks.py classification --share 0.1     a quick look

classification   WordNet definitions and their subject, of 43 (shipped); all-MiniLM-L6-v2. Beside
                 it logistic regression, on tf-idf and on the vectors of the untuned model.
tagging          names of places and people in WordNet's definitions, as WordNet itself lists them
                 (instances of noun.location, noun.object, noun.person). Beside it a list of the
                 names of the training rows.
answers          questions on lives, nationalities and places, answered by a span of the WordNet
                 entries of three names. Beside it the first span of the right kind.
summaries        Debian's long package descriptions and their short ones; Flan-T5-small with LoRA
                 (``flan_t5.py``). Beside it the first words of the long one.

tagging and answers need ``apt-get download wordnet-base``, done here; summaries the apt lists.
Each trains through ``luthier.fit`` on the queue, in a home of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import luthier
from luthier.benchmark.places import data_folder

Rows = list[dict[str, Any]]
MODEL = "all-minilm-l6-v2"
_DIRECTION = r"(?:north|south)?(?:ern|eastern|western)|eastern|western|central"
NAME = r"[A-Z][\w'.-]*(?: (?:[A-Z][\w'.-]*|of|de|the))*"


# --- WordNet ---------------------------------------------------------------------------------


def wordnet() -> Path:
    """The folder with data.noun, fetched once."""
    folder = data_folder() / "wordnet-base"
    found = folder / "usr" / "share" / "wordnet"
    if not (found / "data.noun").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["apt-get", "-qq", "-oAPT::Sandbox::User=root", "download", "wordnet-base"],
            cwd=folder,
            check=True,
        )
        (package,) = folder.glob("wordnet-base_*.deb")
        subprocess.run(["dpkg-deb", "-x", package.name, "."], cwd=folder, check=True)
    return found


def nouns() -> Iterator[tuple[list[str], int, bool, str]]:
    """(words, number of the subject, whether it is an instance, definition) of each meaning."""
    for line in (wordnet() / "data.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        left, _, gloss = line.partition(" | ")
        fields = left.split(" ")
        count = int(fields[3], 16)
        words = [fields[4 + 2 * i].replace("_", " ") for i in range(count)]
        parts = (piece.strip() for piece in gloss.split("; "))
        definition = "; ".join(piece for piece in parts if not piece.startswith('"'))
        yield words, int(fields[1]), "@i" in fields, definition


def parted(rows: Rows, by: Callable[[dict[str, Any]], str], train: int, test: int) -> Any:
    """So many rows to train and to test on, by a hash that has nothing to do with the order."""
    ordered = sorted(rows, key=lambda row: hashlib.sha256(by(row).encode()).hexdigest())
    return ordered[test : test + train], ordered[:test]


# --- the tasks: rows, words of fit(), and what does without a model --------------------------


def classification(share: float) -> Any:
    from luthier.demo.data import labelled_train_and_eval
    from luthier.inference import build_model, encode

    with tempfile.TemporaryDirectory() as folder:
        files = labelled_train_and_eval(Path(folder))
        import csv

        train, test = (list(csv.DictReader(file.open())) for file in files)
    train, test = train[: int(share * len(train))], test[: int(share * len(test))]
    known = {row["label"] for row in train}
    test = [row for row in test if row["label"] in known]
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    labels = [[row["label"] for row in rows] for rows in (train, test)]
    texts = [[row["text"] for row in rows] for rows in (train, test)]
    by_words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)).fit(texts[0])
    untuned, beside = build_model(MODEL), {}
    for name, features in (
        ("logistic regression, tf-idf", [by_words.transform(t) for t in texts]),
        ("logistic regression, untuned vectors", [encode(untuned, t) for t in texts]),
    ):
        scores = []
        for strength in (1.0, 10.0, 100.0):  # the best of three, chosen on the test rows for it
            model = LogisticRegression(C=strength, max_iter=2000).fit(features[0], labels[0])
            scores.append(float(model.score(features[1], labels[1])))
        beside[name] = {"accuracy": max(scores)}
    words = {"learning_rate": 2e-4, "epochs": 6, "batch_size": 32}
    return MODEL, train, test, words, beside


def tagging(share: float) -> Any:
    kinds = {15: "place", 17: "place", 18: "person"}
    names: dict[str, set[str]] = {}
    glosses = []
    for words, subject, instance, definition in nouns():
        glosses.append(definition)
        if instance and subject in kinds:
            for word in words:
                if word[0].isupper() and len(word) > 2:
                    names.setdefault(word, set()).add(kinds[subject])
    sure = {name: next(iter(found)) for name, found in names.items() if len(found) == 1}
    rows = [row for row in (_tagged(gloss, sure) for gloss in glosses) if row]
    train, test = parted(
        rows, lambda row: " ".join(row["tokens"]), int(share * 2400), int(share * 600)
    )
    learnt: dict[str, Counter[str]] = {}
    for row in train:
        for span, kind in _spans(row):
            learnt.setdefault(span, Counter())[kind] += 1
    known = {span: kinds.most_common(1)[0][0] for span, kinds in learnt.items()}
    from seqeval.metrics import f1_score

    looked_up = [_tags(row["tokens"], known) for row in test]
    beside = {
        "names of the training rows": {"f1": float(f1_score([r["tags"] for r in test], looked_up))}
    }
    words = {"learning_rate": 2e-4, "epochs": 4, "batch_size": 16}
    return MODEL, train, test, words, beside


def _tagged(gloss: str, names: dict[str, str]) -> dict[str, Any] | None:
    tokens = re.findall(r"[\w'-]+|[^\w\s]", gloss)
    tags = _tags(tokens, names)
    return {"tokens": tokens, "tags": tags} if len(tokens) > 4 and set(tags) != {"O"} else None


def _tags(tokens: list[str], names: dict[str, str]) -> list[str]:
    """The longest names from left to right."""
    tags = ["O"] * len(tokens)
    start = 0
    while start < len(tokens):
        for end in range(min(len(tokens), start + 5), start, -1):
            kind = names.get(" ".join(tokens[start:end]))
            if kind:
                tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
                start = end
                break
        else:
            start += 1
    return tags


def _spans(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from seqeval.metrics.sequence_labeling import get_entities

    for kind, first, last in get_entities(row["tags"]):
        yield " ".join(row["tokens"][first : last + 1]), kind


def answers(share: float) -> Any:
    patterns = (
        (18, "When did {} live?", r"\((\d{3,4}-\d{3,4})\)"),
        (18, "Of what nationality was {}?", r"^(?:an? )?([A-Z][a-z]+)\b"),
        (15, "Where is {}?", rf"\b(?:in|of) ((?:(?:the|{_DIRECTION}) )*{NAME})"),
    )  # fmt: skip
    entries = [
        (words[0], subject, definition)
        for words, subject, instance, definition in nouns()
        if instance and subject in (15, 18) and len(definition) > 20
    ]
    chance = random.Random(0)
    rows, first = [], {}
    for name, subject, definition in entries:
        for kind, question, pattern in patterns:
            match = re.search(pattern, definition)
            if kind != subject or not match:
                continue
            others = [e for e in chance.sample(entries, 12) if e[1] == kind and e[0] != name]
            three = [(name, definition), *((e[0], e[2]) for e in others[:2])]
            chance.shuffle(three)
            context = " ".join(f"{n}: {d}." for n, d in three)
            start = context.index(f"{name}: {definition}.") + len(name) + 2 + match.start(1)
            asked = question.format(name)
            rows.append({
                "question": asked, "context": context, "of": name,
                "answers": {"text": [match[1]], "answer_start": [start]},
            })  # fmt: skip
            spans = (re.search(pattern, d) for _, d in three)
            first[asked, context] = next(found[1] for found in spans if found)
    train, test = parted(rows, lambda row: row["of"], int(share * 6000), int(share * 600))
    right = [first[r["question"], r["context"]] == r["answers"]["text"][0] for r in test]
    beside = {"the first span of that kind": {"exact": 100 * sum(right) / len(right)}}
    for row in (*train, *test):
        del row["of"]
    words = {"learning_rate": 3e-4, "epochs": 3, "batch_size": 16, "max_seq_length": 160}
    return MODEL, train, test, words, beside


def summaries(share: float) -> Any:
    import flan_t5

    from luthier.benchmark import debian

    with open(debian.build(data_folder()), encoding="utf-8") as file:
        found = [json.loads(line) for line in file]
    rows = {
        split: [
            {"document": r["doc"], "summary": r["query"]}
            for r in found
            if r["split"] == split and 100 < len(r["doc"]) < 600
        ]
        for split in ("train", "test")
    }
    one = lambda row: row["document"]  # noqa: E731
    train, _ = parted(rows["train"], one, int(share * 1600), 0)
    test, _ = parted(rows["test"], one, int(share * 200), 0)
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [
        scorer.score(row["summary"], " ".join(row["document"].split()[:8]))["rougeL"].fmeasure
        for row in test
    ]
    beside = {"the first eight words": {"rougeL": sum(scores) / len(scores)}}
    words = {
        "learning_rate": 2e-3, "epochs": 1, "batch_size": 8, "lora_r": 16, "lora_alpha": 32,
        "target_modules": "all-linear", "max_seq_length": 128, "max_target_length": 32,
        "source_prefix": "summarize: ", "generation": {"max_new_tokens": 24},
    }  # fmt: skip
    return str(flan_t5.build(data_folder() / "flan-t5")), train, test, words, beside


TASKS = {
    "classification": (classification, "text-classification"),
    "tagging": (tagging, "token-classification"),
    "answers": (answers, "question-answering"),
    "summaries": (summaries, "summarization"),
}
COMMON = {"optimizer": "AdamW", "scheduler": "linear", "num_workers": 0, "max_grad_norm": 1.0}


def measure(name: str, share: float) -> None:
    """Train one, and print."""
    build, task = TASKS[name]
    model, train, test, words, beside = build(share)
    print(f"{name}: {len(train)} rows, {len(test)} to test on", flush=True)
    start = time.perf_counter()
    run = luthier.fit(
        model, train, test, task=task, **COMMON, scheduler_options={"num_warmup_steps": 10}, **words
    )
    found = run.wait().metrics()
    seconds = time.perf_counter() - start
    for title, scores in beside.items():
        said = ", ".join(f"{metric} {value:.3f}" for metric, value in scores.items())
        print(f"  {title:38}{said}")
    for moment in ("before", "after"):
        said = ", ".join(f"{metric} {value:.3f}" for metric, value in found[moment].items())
        print(f"  {moment:38}{said}")
    print(f"  {seconds:.0f} s from fit() to the measured result", flush=True)


def main() -> None:
    """Measure those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("tasks", nargs="*", choices=[[], *TASKS], default=list(TASKS))
    parser.add_argument("--share", type=float, default=1.0, help="of the rows")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        luthier.connect(folder)
        for name in given.tasks or TASKS:
            measure(name, given.share)


if __name__ == "__main__":
    main()
