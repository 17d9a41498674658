"""A small data set whose questions share images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import image
from vtc.models.base import VLMAdapter
from vtc.training.examples import Data, load_examples

RECIPE = """version: 1
name: small
stages:
- kind: prune
  keep: 4
  selector:
    name: learned
    training: {{steps: {steps}, imitation_steps: 6, batch: 4, images: 20, validation: 2, dropped: 4}}
  positions: original
"""
QUESTIONS = {"what is it ?": "a circle", "where is the star ?": "top left", "how many stars are there ?": "2"}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with data.jsonl: 12 images, one to three questions each."""
    directory = tmp_path_factory.mktemp("data")
    lines = []
    for number in range(12):
        image(number).save(directory / f"{number}.png")
        for index, (question, answer) in enumerate(list(QUESTIONS.items())[: 1 + number % 3]):
            entry = {"id": f"{number}-{index}", "image": f"{number}.png", "question": question}
            lines.append(json.dumps(entry | {"answers": [answer], "category": "c"}))
    (directory / "data.jsonl").write_text("\n".join(lines) + "\n")
    return directory


@pytest.fixture
def data(adapter: VLMAdapter, source: Path) -> Data:
    """Its images and questions, for the tiny model."""
    return load_examples(adapter, str(source), images=100, validation=3, seed=0)
