"""``python -m vtc.training`` takes the options of every command that reads a data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from vtc.data.datasets import load_dataset
from vtc.errors import InputError
from vtc.training import __main__ as command


@pytest.mark.parametrize("outside", [True, False])
def test_images_may_lie_outside_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outside: bool
) -> None:
    (tmp_path / "data").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "p.png")
    item = {"id": "1", "image": "../p.png", "question": "?", "answers": ["a"], "category": "c"}
    (tmp_path / "data/data.jsonl").write_text(json.dumps(item))

    def trained(_model: Any, out: Path, calibration: Any, _tell: Any) -> Callable[..., Path]:
        def train(*_: Any) -> Path:
            load_dataset(calibration.data, None, 0)
            return out / "part"

        return train

    monkeypatch.setattr(command, "load_checkpoint", lambda _: None)
    monkeypatch.setattr(command, "trained_parts", trained)
    monkeypatch.setattr(command, "read_metadata", lambda _: {})
    words = ["reference", "--recipe", "learnpruner", "--data", str(tmp_path / "data"), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(command.main, [*words, *["--images-outside"] * outside])
    assert (result.exit_code == 0) == outside, result.output
    assert outside or isinstance(result.exception, InputError)
