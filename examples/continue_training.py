"""Go on from the artifact of an earlier run, with more data and a smaller learning rate."""

import csv
from pathlib import Path

import luthier
from luthier.demo.data import train_and_eval

train, test = train_and_eval(Path("wordnet"))
with train.open(encoding="utf-8", newline="") as file:
    pairs = list(csv.DictReader(file))

today = luthier.fit(
    model="all-minilm-l6-v2",
    train_data=pairs[:1920],  # a list of dicts will do as well
    eval_data=str(test),
    loss="MultipleNegativesRankingLoss",
    learning_rate=5e-5,
    epochs=1,
    batch_size=32,
    wait=True,
)
tomorrow = luthier.fit(
    model="all-minilm-l6-v2",
    model_artifact=today.artifact_id,
    train_data=pairs[1920:],
    eval_data=str(test),
    loss="MultipleNegativesRankingLoss",
    learning_rate=2e-5,
    epochs=1,
    batch_size=32,
    wait=True,
)
for run in (today, tomorrow):
    print(run.name, run.metrics()["verdict"], run.metrics()["after"]["ndcg_at_k"])

model = luthier.get_model(tomorrow.artifact_id)
vectors = luthier.encode(model, ["someone who makes violins", "luthier", "carpenter"])
print(luthier.cos_sim(vectors[:1], vectors[1:]))
