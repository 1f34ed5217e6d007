"""A small world of words, rows for each task, and the steps as one calls them."""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

from luthier.component.evaluate import evaluate
from luthier.component.finetune import finetune
from luthier.component.model_import import import_model
from luthier.component.preprocess import preprocess
from luthier.doors.component import parse
from luthier.engine.control import ignore, keep_going

SEA, LAND = ("boat", "lake", "nora", "tide"), ("cabin", "rain", "sun", "tree")


def words(i: int, count: int = 5) -> str:
    return " ".join(random.Random(i).choices(SEA if i % 2 else LAND, k=count))


def image(i: int) -> bytes:
    from PIL import Image

    made = io.BytesIO()
    colour = (200, 30, i % 256) if i % 2 else (10, i % 256, 220)  # no two alike
    Image.new("RGB", (16, 16), colour).save(made, "PNG")
    return made.getvalue()


def answered(i: int) -> dict[str, Any]:
    word = random.Random(i).choice(SEA)
    context = f"the {word} is red and the {random.Random(i).choice(LAND)} is blue as {i}"
    answers = {"text": [word], "answer_start": [context.index(word)]}
    return {"question": "what is red", "context": context, "answers": answers}


#: Task of the components → (row i, more flags of preprocess).
ROWS: dict[str, Any] = {
    "SingleLabelClassification": lambda i: {"text": words(i), "label": ("land", "sea")[i % 2]},
    "MultiLabelClassification": lambda i: {
        "text": words(i), "labels": (["land"], ["sea"], ["land", "sea"])[i % 3]},
    "NamedEntityRecognition": lambda i: {
        "tokens": words(i).split(), "ner_tags": [f"B-{('land', 'sea')[i % 2]}", *["O"] * 4]},
    "QuestionAnswering": answered,
    "Summarization": lambda i: {"document": words(i, 8), "summary": words(i, 1)},
    "Translation": lambda i: {"en": words(i, 3), "ro": words(i + 1, 3)},
    "TextGeneration": lambda i: {"text": words(i)},
    "ChatCompletion": lambda i: {"messages": [
        {"role": "user", "content": words(i)}, {"role": "assistant", "content": words(i + 1, 2)}]},
    "ImageClassification": lambda i: {
        "image": base64.b64encode(image(i)).decode(), "label": ("blue", "red")[i % 2]},
}  # fmt: skip

MORE = {"Translation": {"source_lang": "en", "target_lang": "ro"}}


def write_rows(file: Path, task_name: str, count: int, start: int = 0) -> Path:
    rows = (ROWS[task_name](i) for i in range(start, start + count))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


class Steps:
    """The four steps with folders beside each other; each takes more flags, as text."""

    def __init__(self, folder: Path, tiny: Any, task_name: str = "SingleLabelClassification"):
        self.folder, self.tiny, self.task_name = folder, tiny, task_name
        self.selected, self.prepared = folder / "selected", folder / "prepared"
        self.tuned, self.mlflow, self.measured = (folder / n for n in ("tuned", "mlflow", "found"))
        self.told: list[tuple[str, dict[str, Any]]] = []

    def tell(self, kind: str, data: dict[str, Any]) -> None:
        self.told.append((kind, data))

    @property
    def messages(self) -> str:
        return "\n".join(str(d.get("message")) for kind, d in self.told if kind == "log")

    def select(self, **given: Any):
        model = {} if given else {"model_path": self.tiny(self.task_name)}
        flags = {"task_name": self.task_name, "model_selector_output": self.selected}
        return import_model(parse("import", _texts(flags | model | given)), ignore)

    def prepare(self, count: int = 40, **given: Any):
        if "train_file_path" not in given:
            file = write_rows(self.folder / "rows.jsonl", self.task_name, count)
            given["train_file_path"] = file
        flags = {
            "task_name": self.task_name, "model_selector_output": self.selected,
            "preprocess_output": self.prepared, **MORE.get(self.task_name, {}),
        }  # fmt: skip
        return preprocess(parse("preprocess", _texts(flags | given)), self.tell, keep_going)

    def flags(self, **given: Any) -> dict[str, str]:
        """Those of finetune."""
        return _texts(
            {
                "preprocess_output": self.prepared, "model_selector_output": self.selected,
                "pytorch_model_folder": self.tuned, "mlflow_model_folder": self.mlflow,
                "learning_rate": 1e-3, "num_train_epochs": 1, **given,
            }
        )  # fmt: skip

    def tune(self, control: Any = keep_going, **given: Any):
        return finetune(parse("finetune", self.flags(**given)), self.tell, control)

    def measure(self, **given: Any):
        flags = {
            "pytorch_model_folder": self.tuned, "preprocess_output": self.prepared,
            "evaluation_output": self.measured,
        }  # fmt: skip
        return evaluate(parse("evaluate", _texts(flags | given)), self.tell, keep_going)


def _texts(flags: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in flags.items()}
