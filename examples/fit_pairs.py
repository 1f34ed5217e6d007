"""Tune a text encoder on pairs: definitions, and the words that they define."""

from pathlib import Path

import luthier
from luthier.demo.data import train_and_eval

train, test = train_and_eval(Path("wordnet"))
run = luthier.fit(
    model="all-minilm-l6-v2",
    train_data=str(train),  # a CSV with the columns query and document
    eval_data=str(test),
    loss="MultipleNegativesRankingLoss",
    optimizer="AdamW",
    learning_rate=1e-4,
    epochs=1,
    batch_size=32,
    wait=True,  # without it, fit() returns at once and the run goes on by itself
)
run.display_metrics()
run.display_examples(k=3)
print(run.save_artifact("artifacts"))
