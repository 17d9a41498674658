"""The training code: labels, subsets and packing, and a tiny run of all stages."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration

from vtc.reference.scenes import scene
from vtc.reference.tokenizer import build_tokenizer
from vtc.reference.training.checkpoint import model_config
from vtc.reference.training.dense import CLASSES, dense_scene, label_patches
from vtc.reference.training.packing import VISUAL_TOKENS, answer_logits, pack_scenes, tokenize
from vtc.reference.training.subsets import BUDGETS, covering_subset, oracle_subset, uniform_subset
from vtc.reference.training.train import SMOKE, train


def test_patches_under_an_object_are_labelled_with_it() -> None:
    one = dense_scene(0, 0)
    labels = label_patches(one.objects)
    for thing in one.objects:
        if thing.kind == "number":
            continue
        column, row = (int(c // 14) for c in thing.center)
        assert CLASSES[labels.kind[row * 16 + column]] == thing.value


def test_far_from_objects_nothing_is_labelled() -> None:
    labels = label_patches(scene("train", 0, 0).objects)
    empty = labels.share == 0
    assert np.all(labels.kind[empty] == 0)
    assert np.all(labels.owner[empty] == -1)


@pytest.mark.parametrize("keep", BUDGETS)
def test_training_subsets_have_the_size_and_something_of_every_glyph(keep: int) -> None:
    rng = np.random.default_rng(keep)
    for index in range(20):
        owner = label_patches(scene("train", 0, index).objects).owner
        subset = covering_subset(owner, keep, rng)
        assert len(set(subset.tolist())) == keep
        assert np.all(np.diff(subset) > 0)
        assert set(owner[owner >= 0]) == set(owner[subset]) - {-1}


def test_oracle_subset_covers_every_glyph_and_uniform_is_spread() -> None:
    for index in range(20):
        labels = label_patches(scene("test", 0, index).objects)
        subset = oracle_subset(labels.owner, labels.share, 14)
        assert set(labels.owner[labels.owner >= 0]) <= set(labels.owner[subset])
    assert uniform_subset(14).tolist() == sorted(set(uniform_subset(14).tolist()))


@pytest.mark.parametrize("renumber", [False, True])
def test_a_packed_question_sees_what_it_would_see_alone(renumber: bool) -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = LlavaForConditionalGeneration(model_config(tokenizer, 1, 2, 32)).eval()
    tokens = tokenize(scene("train", 0, 0).questions, tokenizer)
    keep = torch.tensor([[3, 50, 200]])
    visual = torch.randn(1, 3, 32)
    together = pack_scenes([tokens], keep, renumber, tokenizer)
    with torch.no_grad():
        packed = answer_logits(model, together, visual)
        for index, one in enumerate(tokens):
            alone = answer_logits(model, pack_scenes([[one]], keep, renumber, tokenizer), visual)
            assert torch.allclose(packed[together.question == index], alone, atol=1e-5)


def test_an_image_without_tokens_takes_its_positions_unless_renumbered() -> None:
    tokenizer = build_tokenizer()
    tokens = tokenize(scene("train", 0, 0).questions, tokenizer)
    for renumber, first in ((False, 2 + VISUAL_TOKENS), (True, 2)):
        packed = pack_scenes([tokens], torch.zeros(1, 0, dtype=torch.long), renumber, tokenizer)
        assert packed.position_ids[packed.block == 1].tolist()[:2] == [first, first + 1]
        assert packed.position_ids[packed.block == 0].tolist() == [0, 1]


@pytest.mark.slow
def test_smoke_training_learns_resumes_and_writes_a_checkpoint(tmp_path: Path) -> None:
    output, work = tmp_path / "weights", tmp_path / "work"
    train(SMOKE, output, work)
    with (output / "training_log.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["name"] == "loss"]
    for stage in ("crowded", "instruct"):
        losses = [float(row["value"]) for row in rows if row["stage"] == stage]
        assert losses[-1] < losses[0]
    AutoModelForImageTextToText.from_pretrained(output)
    # A second run finds every stage finished and changes nothing.
    before = (output / "model.safetensors").read_bytes()
    train(SMOKE, output, work)
    assert (output / "model.safetensors").read_bytes() == before
