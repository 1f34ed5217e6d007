"""Tune a classifier on the queue: measured before and after, with intervals and a verdict."""

from pathlib import Path

import luthier
from luthier.demo.data import labelled_train_and_eval

train, _ = labelled_train_and_eval(Path("wordnet"))
run = luthier.fit(
    model="all-minilm-l6-v2",
    train_data=str(train),  # a CSV with the columns text and label
    val_split=0.25,  # held out, with every subject in its share
    task="text-classification",
    optimizer="AdamW",
    learning_rate=2e-4,
    scheduler="linear",
    epochs=2,
    batch_size=32,
    wait=True,
)
run.display_metrics()
