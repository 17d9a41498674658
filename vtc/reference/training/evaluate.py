"""Scores of a checkpoint on the reference scenes: full, blind, and with 14 of the 256 visual tokens.

Usage: ``python -m vtc.reference.training.evaluate [-m DIR] [--count 2400] [--split test] [--seed 1] [-o scores.json]``
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vtc.reference import reference_dir
from vtc.reference.questions import CATEGORIES, Question
from vtc.reference.scenes import Scene, generate, question_set
from vtc.reference.training.dense import label_patches
from vtc.reference.training.instruct import choose, take
from vtc.reference.training.packing import answer_logits, pack_scenes, tokenize
from vtc.reference.training.pretrain import to_pixels
from vtc.training.evaluation import exact
from vtc.training.packing import QuestionTokens

MODES = ("full", "oracle", "oracle_renumbered", "uniform", "none", "blank")
Images = dict[int, tuple[Scene, list[Question]]]


def load_set(split: str, seed: int, count: int) -> Images:
    """A question set grouped by scene."""
    images: Images = {}
    for index, scene, question in question_set(split, seed, count):
        images.setdefault(index, (scene, []))[1].append(question)
    return images


@torch.no_grad()
def score(
    model: LlavaForConditionalGeneration, images: Images, modes: Sequence[str] = MODES, keep: int = 14
) -> dict[str, dict[str, float]]:
    """Exact-answer accuracy of greedy decoding in every mode, overall and per category, in fp32.

    Parameters
    ----------
    model : LlavaForConditionalGeneration
    images : dict
        From ``load_set``.
    modes : sequence of str
        Out of ``MODES``: all visual tokens; ``keep`` of them chosen by the objects' boxes, with original or
        contiguous positions; ``keep`` evenly spaced; none; all of a grey image.
    keep : int

    Returns
    -------
    dict
        Mode -> {"all": .., category: ..}, in 0..1.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model.config._name_or_path)
    model.train(False)
    hits: dict[str, dict[str, list[bool]]] = {mode: {c: [] for c in CATEGORIES} for mode in modes}
    for some in _batches(list(images.values()), 16):
        scenes = [scene for scene, _ in some]
        tokens = [tokenize(questions, tokenizer) for _, questions in some]
        categories = [q.category for _, questions in some for q in questions]
        for blank in (False, True):
            mine = [mode for mode in modes if (mode == "blank") == blank]
            if not mine:
                continue
            pixels = [np.full_like(s.image, 96) if blank else s.image for s in scenes]
            states = model.model.vision_tower(to_pixels(pixels)).last_hidden_state[:, 1:]
            for mode in mine:
                right = _answer(model, tokenizer, scenes, tokens, states, "full" if blank else mode, keep)
                for category, hit in zip(categories, right, strict=True):
                    hits[mode][category].append(hit)
    return {mode: _summary(found) for mode, found in hits.items()}


def _answer(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    scenes: Sequence[Scene],
    tokens: Sequence[Sequence[QuestionTokens]],
    states: torch.Tensor,
    mode: str,
    keep: int,
) -> list[bool]:
    labels = [label_patches(s.objects) for s in scenes]
    chosen = torch.from_numpy(np.stack([choose(mode, one.owner, one.share, keep) for one in labels]))
    packed = pack_scenes(tokens, chosen, mode == "oracle_renumbered", tokenizer)
    visual = model.model.multi_modal_projector(take(states, chosen))
    found: list[bool] = exact(answer_logits(model, packed, visual), packed).tolist()
    return found


def _batches(items: list[tuple[Scene, list[Question]]], size: int) -> list[list[tuple[Scene, list[Question]]]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _summary(found: dict[str, list[bool]]) -> dict[str, float]:
    everything: NDArray[np.bool_] = np.concatenate([np.asarray(h, dtype=bool) for h in found.values()])
    scores = {"all": float(everything.mean())}
    return scores | {c: float(np.mean(h)) for c, h in found.items() if h}


def chance_level(images: Images) -> dict[str, float]:
    """Expected accuracy of the best guess from the questions' texts, overall and per category."""
    levels: dict[str, list[float]] = {c: [] for c in CATEGORIES}
    for _, questions in images.values():
        for question in questions:
            levels[question.category].append(question.chance)
    every = [level for found in levels.values() for level in found]
    return {"all": float(np.mean(every))} | {c: float(np.mean(h)) for c, h in levels.items() if h}


def majority_answers(images: Images, train_scenes: int, seed: int = 500) -> dict[str, float]:
    """Accuracy of answering every text with its commonest answer in a large draw of train scenes."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    by_template: dict[str, Counter[str]] = defaultdict(Counter)
    for scene in generate("train", seed, train_scenes):
        for question in scene.questions:
            answers[question.text][question.answer] += 1
            by_template[question.template][question.answer] += 1
    hits: dict[str, list[bool]] = {c: [] for c in CATEGORIES}
    for _, questions in images.values():
        for question in questions:
            counts = answers.get(question.text) or by_template[question.template]
            hits[question.category].append(counts.most_common(1)[0][0] == question.answer)
    return _summary(hits)


def report(directory: Path, split: str, seed: int, count: int, train_scenes: int = 20_000) -> dict[str, object]:
    """Everything that ``scores.json`` holds."""
    model = LlavaForConditionalGeneration.from_pretrained(directory)
    images = load_set(split, seed, count)
    scores = score(model, images)
    scores["majority"] = majority_answers(images, train_scenes)
    chance = chance_level(images)
    # A model that knows nothing has nothing to retain.
    full = max(scores["full"]["all"], 1 / count)
    return {
        "split": split,
        "seed": seed,
        "questions": count,
        "images": len(images),
        "chance": chance,
        "accuracy": scores,
        "retention": {m: scores[m]["all"] / full for m in ("oracle", "oracle_renumbered", "uniform")},
        "blind_above_chance": {m: scores[m]["all"] - chance["all"] for m in ("majority", "none", "blank")},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Score a checkpoint on the reference scenes.")
    parser.add_argument("-m", "--model", type=Path, default=reference_dir())
    parser.add_argument("--split", choices=("train", "test"), default="test", help="whose handwriting")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=2400, help="number of questions")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's choice)")
    parser.add_argument("-o", "--output", type=Path, help="also write the scores here, as JSON")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    found = report(args.model, args.split, args.seed, args.count)
    text = json.dumps(found, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
