"""Tune a text encoder on labelled texts: definitions of the same subject come together."""

from pathlib import Path

import luthier
from luthier.demo.data import labelled_train_and_eval

train, test = labelled_train_and_eval(Path("wordnet"))
run = luthier.fit(
    model="all-minilm-l6-v2",
    train_data=str(train),  # a CSV with the columns text and label
    eval_data=str(test),
    loss="SupConLoss",
    num_items_per_class=4,  # a batch holds 8 subjects with 4 definitions each
    learning_rate=5e-5,
    epochs=1,
    batch_size=32,
    wait=True,
)
run.display_metrics()
