"""The shipped checkpoint loads with no code of ours and scores what it claims."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from vtc.reference import reference_dir
from vtc.reference.questions import CATEGORIES, lexicon
from vtc.reference.scenes import question_set
from vtc.reference.training.evaluate import load_set, score


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(reference_dir()).eval()


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return AutoProcessor.from_pretrained(reference_dir())


def _prompt(text: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def test_architecture_is_what_the_toolkit_needs(model: LlavaForConditionalGeneration) -> None:
    text, vision = model.config.text_config, model.config.vision_config
    assert text.num_hidden_layers >= 8
    assert text.num_key_value_heads < text.num_attention_heads
    assert (vision.image_size // vision.patch_size) ** 2 >= 256
    assert sum(f.stat().st_size for f in reference_dir().iterdir()) < 25e6


def test_chat_template_and_placeholders(processor: LlavaProcessor) -> None:
    text = processor.apply_chat_template(_prompt("what digit is shown?"), add_generation_prompt=True)
    assert text == "<s><|user|><image>what digit is shown?<|assistant|>"
    batch = processor(text=text, images=Image.new("RGB", (300, 200)), return_tensors="pt")
    assert int((batch["input_ids"] == processor.image_token_id).sum()) == 256
    assert tuple(batch["pixel_values"].shape) == (1, 3, 224, 224)


def test_finished_turns_end_with_the_end_token(processor: LlavaProcessor) -> None:
    turns = [*_prompt("what digit is shown?"), {"role": "assistant", "content": "7"}]
    text = processor.apply_chat_template(turns)
    assert text == "<s><|user|><image>what digit is shown?<|assistant|>7</s>"


def test_every_word_is_one_token_and_other_text_survives(processor: LlavaProcessor) -> None:
    for line in lexicon():
        words = line.replace("?", " ?").split()
        assert len(processor.tokenizer(line).input_ids) == len(words)
    for text in ("zebra crossing", "naïve café 12%", "\u4f60\u597d"):
        assert processor.tokenizer.decode(processor.tokenizer(text).input_ids) == text
    assert len(processor.tokenizer("47").input_ids) == 2


def test_packed_scoring_equals_generation(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """What ``score`` counts as right is what ``generate`` answers, question by question."""
    hits: dict[str, list[bool]] = {c: [] for c in CATEGORIES}
    for _, scene, question in question_set("test", 21, 24):
        text = processor.apply_chat_template(_prompt(question.text), add_generation_prompt=True)
        batch = processor(text=text, images=Image.fromarray(scene.image), return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**batch)[0, batch["input_ids"].shape[1] :]
        answer = processor.decode(tokens, skip_special_tokens=True).strip()
        hits[question.category].append(answer == question.answer)
    scores = score(model, load_set("test", 21, 24), modes=["full"])["full"]
    assert {c: float(np.mean(h)) for c, h in hits.items()} == {c: scores[c] for c in hits}


def test_recorded_scores_meet_the_bar() -> None:
    scores = json.loads((reference_dir() / "scores.json").read_text())
    assert scores["questions"] >= 2000
    assert scores["accuracy"]["full"]["all"] >= 0.90
    assert min(scores["accuracy"]["full"][c] for c in CATEGORIES) >= 0.75
    assert max(scores["blind_above_chance"].values()) <= 0.02
    assert scores["retention"]["oracle"] >= 0.95
    assert scores["retention"]["uniform"] <= 0.75


def test_recorded_scores_are_measured_again(model: LlavaForConditionalGeneration) -> None:
    recorded = json.loads((reference_dir() / "scores.json").read_text())["accuracy"]
    again = score(model, load_set("test", 31, 120), modes=["full", "oracle", "uniform"])
    for mode, found in again.items():
        expected = recorded[mode]["all"]
        error = np.sqrt(expected * (1 - expected) / 120)
        assert abs(found["all"] - expected) <= 4 * error, mode
