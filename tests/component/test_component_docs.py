"""The commands of docs/component.md, in their order, do what the page says."""

import json
import re
import shlex
from pathlib import Path

import pytest
from component_world import write_rows

from luthier.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "component.md"
BLOCK = re.compile(r"^```(sh|py)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.real
def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capfd):
    """Without a process for each; a pipeline's steps are shown, for other tests run them."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", "SingleLabelClassification", 40)
    called = []
    for kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "py":
            exec(text, {})
            continue
        for line in text.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line)
            assert program == "luthier"
            if words[:2] == ["component", "run"] and "--inputs" not in words:
                words.append("--dry-run")
            code = main.run(words)
            assert code == 0, capfd.readouterr().err
            called.append(words[1])
    assert called == [
        *("import", "preprocess", "finetune", "evaluate", "finetune", "evaluate"),
        *("yaml", "yaml", "run", "run", "run"),
    ]
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    same = [
        json.loads((tmp_path / name / "metrics.json").read_text())
        for name in ("found", "adapter-found")
    ]
    assert same[0]["rows"] == same[1]["rows"] == 4
    for name in ("train.parquet", "validation.parquet", "test.parquet", "tokenizer", "tokenized",
                 "label_maps.json", "preprocess_args.json"):  # fmt: skip
        assert (tmp_path / "prepared" / name).exists()
    for name in ("metrics.json", "report.json", "report.html", "checkpoint-2", ".luthier"):
        assert (tmp_path / "tuned" / name).exists()
    assert (tmp_path / "found" / "predictions.jsonl").read_text().count("\n") == 4
    assert (tmp_path / "selected" / "finetune_config.json").is_file()
