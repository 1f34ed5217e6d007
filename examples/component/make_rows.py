"""Write rows.jsonl: definitions of WordNet, and which of four subjects each is about."""

import csv
import json
from collections import Counter
from pathlib import Path

from luthier.demo.data import labelled_train_and_eval

MOST = 120  # rows a subject
SUBJECTS = {"noun.animal": "animal", "noun.body": "body", "noun.person": "person",
            "noun.plant": "plant"}  # fmt: skip

train, test = labelled_train_and_eval(Path("wordnet"))
counts: Counter[str] = Counter()
with open("rows.jsonl", "w", encoding="utf-8") as rows:
    for file in (train, test):
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                subject = SUBJECTS.get(row["label"])
                if subject is not None and counts[subject] < MOST:
                    counts[subject] += 1
                    rows.write(json.dumps({"definition": row["text"], "subject": subject}) + "\n")
print(f"rows.jsonl: {dict(counts)}")
