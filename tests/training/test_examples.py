"""Data: what is trained on, what is held out, and how questions are laid out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.conftest import QUESTIONS
from vtc.errors import InputError
from vtc.models.base import VLMAdapter
from vtc.training.examples import Data, load_examples
from vtc.training.packing import PromptLayout, pack


def names(examples: tuple[object, ...]) -> set[str]:
    return {example.items[0].image_id for example in examples}  # type: ignore[attr-defined]


def test_questions_of_an_image_stay_together_and_held_out_images_apart(data: Data) -> None:
    assert len(data.train) == 11
    assert len(data.validation) == 1
    assert not names(data.train) & names(data.validation)
    assert sum(len(example.questions) for example in (*data.train, *data.validation)) == 24


def test_reference_uses_training_and_validation_writers(adapter: VLMAdapter) -> None:
    data = load_examples(adapter, "reference", images=3, validation=2, seed=7)
    assert names(data.train) == {f"train-7-{index:06d}" for index in range(3)}
    assert names(data.validation) == {f"validation-7-{index:06d}" for index in range(2)}
    assert all(len(example.questions) > 5 for example in data.train)


def test_one_image_is_too_few(adapter: VLMAdapter, source: Path, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes((source / "0.png").read_bytes())
    (tmp_path / "data.jsonl").write_text((source / "data.jsonl").read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match="at least two"):
        load_examples(adapter, str(tmp_path), images=10, validation=10, seed=0)


def test_packed_questions_restart_after_the_unpruned_image(adapter: VLMAdapter, data: Data) -> None:
    example = max(data.train, key=lambda one: len(one.questions))
    packed = pack(PromptLayout.of(adapter, data.beginning), [example.questions], torch.tensor([[2, 5]]))
    start = len(data.beginning)
    assert packed.position_ids[0, : start + 2].tolist() == [*range(start), start + 2, start + 5]
    assert len(example.questions) == len(QUESTIONS)
    for number in range(1, len(QUESTIONS) + 1):
        places = packed.position_ids[0][packed.block[0] == number].tolist()
        assert places == list(range(start + 16, start + 16 + len(places)))
    prompt = adapter.tokenize([adapter.chat(example.items[0].question)], [1], 2)[0][0].tolist()
    first = packed.input_ids[0][: len(prompt)].tolist()
    assert first[:start] == prompt[:start]
    assert first[start + 2 :] == prompt[start + 2 :]
