"""The example of docs/extending.md, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from vtc.data.datasets import load_dataset
from vtc.runtime.vlm import VLM

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def test_example_selects_answers_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    selector, exporting = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in selector.splitlines() if line.strip()]) <= 30
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    exec(selector, names)
    exec(exporting, names)
    model, bundle = names["model"], VLM.load(tmp_path / "bundle")
    item = load_dataset("reference", 1, seed=3).items[0]
    asked = [[item.load()]], [model.adapter.chat(item.question)]
    (kept,) = model.kept(*asked)
    assert kept.shape == (1, 32)
    assert bundle.kept(*asked)[0].tolist() == kept.tolist()
    assert bundle.generate(*asked)[0].text == model.generate(*asked)[0].text
    assert kept.tolist() != [[4 + 8 * place for place in range(32)]]
