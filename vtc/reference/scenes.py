"""Seeded scenes for the reference VLM: what is drawn, where, and the questions that can be asked about it.

Usage: ``python -m vtc.reference.scenes --split test --seed 1 --count 600 -o DIR``

A scene is 224x224 pixels and holds 4 to 6 objects on a textured background, among distractors that draw the
eye but are never asked about. Every choice is symmetric under renaming colours, shapes, digits and sides,
and the counted quantities are drawn first; so no question's wording says anything about its answer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtc.reference.glyphs import (
    COLORS,
    GAPS,
    SHAPES,
    STRIPES,
    Mask,
    digit_mask,
    disc_mask,
    number_mask,
    ring_mask,
    shape_mask,
)
from vtc.reference.objects import Box, SceneObject
from vtc.reference.questions import CATEGORIES, Question, ask

IMAGE_SIZE = 224
_SPLIT_CODE = {"train": 0, "test": 1, "validation": 2}
_COLOR_NAMES = tuple(COLORS)


@dataclass(frozen=True)
class Plan:
    """What a scene must hold, before anything has a place: kinds, values, colours, counted quantities."""

    kinds: tuple[str, ...]
    values: tuple[str, ...]
    colors: tuple[str, ...]
    counted_shape: str = ""
    counted_color: str = ""


@dataclass(frozen=True)
class Scene:
    """A rendered scene: ``image`` is (224, 224, 3) uint8."""

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    questions: tuple[Question, ...] = field(default=())


def _pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def plan_scene(rng: np.random.Generator) -> Plan:
    """Choose the contents of a question scene.

    The count of the counted shape (1..3) and of the counted colour (1..3) are drawn first and never
    rejected, so both are uniform whatever else the scene holds.
    """
    counted_shape = _pick(rng, SHAPES)
    count = int(rng.integers(1, 4))
    others = 1 if count == 3 else int(rng.integers(1, 3))
    rest = [s for s in SHAPES if s != counted_shape]
    values = [counted_shape] * count + [rest[i] for i in rng.permutation(4)[:others]]
    kinds = ["shape"] * len(values)
    free = 6 - len(values)
    text = _pick(rng, ("digit", "number", "digits") if free > 2 else ("digit", "number"))
    if text == "number":
        kinds.append("number")
        values.append(str(int(rng.integers(10, 100))))
    else:
        digits = 2 if text == "digits" else 1
        kinds += ["digit"] * digits
        values += [str(int(rng.integers(10))) for _ in range(digits)]
    detail = _pick(rng, ("ring", "disc", "both") if len(values) < 5 else ("ring", "disc"))
    if detail in ("ring", "both"):
        kinds.append("ring")
        values.append(_pick(rng, GAPS))
    if detail in ("disc", "both"):
        kinds.append("disc")
        values.append(_pick(rng, STRIPES))
    counted_color = _pick(rng, _COLOR_NAMES)
    colors = _assign_colors(rng, kinds, counted_color, int(rng.integers(1, 4)))
    return Plan(tuple(kinds), tuple(values), tuple(colors), counted_shape, counted_color)


def _assign_colors(rng: np.random.Generator, kinds: list[str], counted: str, count: int) -> list[str]:
    rest = tuple(c for c in _COLOR_NAMES if c != counted)
    digits = [i for i, kind in enumerate(kinds) if kind == "digit"]
    while True:
        chosen = set(rng.permutation(len(kinds))[:count].tolist())
        colors = [counted if i in chosen else _pick(rng, rest) for i in range(len(kinds))]
        # Two digits are told apart by their colour only.
        if len(digits) < 2 or colors[digits[0]] != colors[digits[1]]:
            return colors


def _draw(kind: str, value: str, split: str, rng: np.random.Generator) -> tuple[Mask, int]:
    size = int(rng.integers(30, 41))
    if kind == "shape":
        return shape_mask(value, size, rng), -1
    if kind == "ring":
        return ring_mask(value, size, rng), -1
    if kind == "disc":
        return disc_mask(value, size, rng), -1
    if kind == "digit":
        return digit_mask(int(value), int(rng.integers(34, 43)), split, rng), -1
    return number_mask(int(value[0]), int(value[1]), int(rng.integers(32, 39)), split, rng)


_NOISE = np.random.default_rng(0).normal(0, 1, (512, 512, 1)).astype(np.float32)


def background(rng: np.random.Generator) -> NDArray[np.float32]:
    """A nearly grey background, shape (224, 224, 3): a smooth field, sometimes a weave, and grain."""
    level = float(rng.uniform(45, 125))
    coarse = rng.normal(0, 1, (6, 6, 3)) * 9 + rng.normal(0, 1, (6, 6, 1)) * 12
    field_image = Image.fromarray(np.clip(coarse + level, 0, 255).astype(np.uint8))
    field_ = np.asarray(field_image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC), dtype=np.float32)
    if rng.random() < 0.5:
        fx, fy = rng.uniform(-0.6, 0.6, 2)
        axis = np.arange(IMAGE_SIZE, dtype=np.float32)
        field_ = field_ + (5 * np.sin(axis * fx)[None, :, None] + 5 * np.sin(axis * fy)[:, None, None]).astype(
            np.float32
        )
    dy, dx = rng.integers(0, 512 - IMAGE_SIZE, 2)
    grain = _NOISE[dy : dy + IMAGE_SIZE, dx : dx + IMAGE_SIZE]
    return np.asarray(field_ + grain * float(rng.uniform(2, 10)), dtype=np.float32)


def _distractor(canvas: NDArray[np.float32], box: Box, rng: np.random.Generator) -> None:
    """Paint a bright blurred blob or a square of coloured noise into ``box``, in place."""
    x0, y0, x1, y1 = box
    h, w = y1 - y0, x1 - x0
    if rng.random() < 0.5:
        rows, columns = np.mgrid[0:h, 0:w].astype(np.float32)
        r2 = ((rows - h / 2) / (h / 2)) ** 2 + ((columns - w / 2) / (w / 2)) ** 2
        glow = np.clip(np.exp(-2.5 * r2) - np.exp(-2.5), 0, 1)[:, :, None] * 1.05
        canvas[y0:y1, x0:x1] = canvas[y0:y1, x0:x1] * (1 - glow) + 255 * glow
    else:
        cell = int(rng.integers(2, 5))
        noise = rng.integers(0, 256, (h // cell + 1, w // cell + 1, 3)).repeat(cell, 0).repeat(cell, 1)
        canvas[y0:y1, x0:x1] = noise[:h, :w]


def _place(sizes: list[tuple[int, int]], rng: np.random.Generator, tries: int) -> list[Box | None]:
    """Drop boxes uniformly, one after another, 4 pixels apart; None where there is no room."""
    taken: list[Box] = []
    placed: list[Box | None] = []
    for width, height in sizes:
        spots = rng.random((tries, 2))
        xs = (spots[:, 0] * (IMAGE_SIZE - width + 1)).astype(int).tolist()
        ys = (spots[:, 1] * (IMAGE_SIZE - height + 1)).astype(int).tolist()
        found: Box | None = None
        for x, y in zip(xs, ys, strict=True):
            if all(x >= t[2] + 4 or x + width + 4 <= t[0] or y >= t[3] + 4 or y + height + 4 <= t[1] for t in taken):
                found = (x, y, x + width, y + height)
                taken.append(found)
                break
        placed.append(found)
    return placed


def render(
    plan: Plan, split: str, rng: np.random.Generator, distractors: int, strict: bool = True
) -> tuple[NDArray[np.uint8], tuple[SceneObject, ...]]:
    """Draw a plan.

    Parameters
    ----------
    plan : Plan
        Contents.
    split : {"train", "test"}
        Whose handwriting.
    rng : numpy Generator
        Source of places, sizes, textures and contrasts.
    distractors : int
        How many distractors to try to place.
    strict : bool
        Place every object, starting over if need be; otherwise leave out objects that find no room.

    Returns
    -------
    image : array of shape (224, 224, 3), uint8
    objects : tuple of SceneObject
    """
    drawn = [_draw(kind, value, split, rng) for kind, value in zip(plan.kinds, plan.values, strict=True)]
    sizes = [(mask.shape[1], mask.shape[0]) for mask, _ in drawn]
    lures = [(int(w), int(h)) for w, h in rng.integers(22, 40, (distractors, 2))]
    while True:
        # Wide objects first would bias their places; instead the whole layout is redrawn until all fit.
        boxes = _place(sizes + lures, rng, tries=40)
        if not strict or all(box is not None for box in boxes[: len(sizes)]):
            break
    canvas = background(rng)
    for box in boxes[len(sizes) :]:
        if box is not None:
            _distractor(canvas, box, rng)
    objects = []
    for (mask, seam), box, kind, value, color in zip(drawn, boxes, plan.kinds, plan.values, plan.colors, strict=False):
        if box is None:
            continue
        x0, y0, x1, y1 = box
        ink = np.asarray(COLORS[color], dtype=np.float32) + rng.uniform(-14, 14, 3).astype(np.float32)
        cover = (mask * float(rng.uniform(0.5, 1.0)))[:, :, None]
        canvas[y0:y1, x0:x1] += cover * (ink - canvas[y0:y1, x0:x1])
        objects.append(SceneObject(kind, value, color, box, x0 + seam if seam >= 0 else -1))
    return np.clip(canvas, 0, 255).astype(np.uint8), tuple(objects)


def scene(split: str, seed: int, index: int) -> Scene:
    """Scene number ``index`` of a seed; the same arguments always give the same pixels and questions."""
    rng = np.random.default_rng([_SPLIT_CODE[split], seed, index])
    plan = plan_scene(rng)
    image, objects = render(plan, split, rng, distractors=int(rng.integers(1, 4)))
    return Scene(image, objects, ask(objects, plan.counted_shape, plan.counted_color, rng))


def generate(split: str, seed: int, count: int) -> Iterator[Scene]:
    """Yield the first ``count`` scenes of a seed, each with up to 12 questions."""
    for index in range(count):
        yield scene(split, seed, index)


def question_set(split: str, seed: int, count: int) -> Iterator[tuple[int, Scene, Question]]:
    """``count`` questions, balanced over the categories, at most one per category and scene.

    Yields
    ------
    index : int
        The scene's number.
    scene : Scene
    question : Question
    """
    left = {c: count // len(CATEGORIES) + (i < count % len(CATEGORIES)) for i, c in enumerate(CATEGORIES)}
    index = 0
    while any(left.values()):
        current = scene(split, seed, index)
        rng = np.random.default_rng([_SPLIT_CODE[split], seed, index, 1])
        for category in CATEGORIES:
            options = [q for q in current.questions if q.category == category]
            if left[category] and options:
                left[category] -= 1
                yield index, current, options[int(rng.integers(len(options)))]
        index += 1


def write_question_set(split: str, seed: int, count: int, directory: Path) -> int:
    """Write ``count`` questions as PNG images and ``data.jsonl``; return the number of images."""
    images = directory / "images"
    images.mkdir(parents=True, exist_ok=True)
    written: set[int] = set()
    with (directory / "data.jsonl").open("w", encoding="utf-8") as lines:
        for number, (index, current, question) in enumerate(question_set(split, seed, count)):
            name = f"images/{split}-{seed}-{index:06d}.png"
            if index not in written:
                written.add(index)
                Image.fromarray(current.image).save(directory / name)
            record = {
                "id": f"{split}-{seed}-{number:06d}",
                "image": name,
                "question": question.text,
                "answers": [question.answer],
                "category": question.category,
                "evidence": [list(box) for box in question.evidence],
            }
            lines.write(json.dumps(record) + "\n")
    return len(written)


def main() -> None:
    """Command line: write a question set."""
    parser = argparse.ArgumentParser(description="Render a question set of the reference VLM.")
    parser.add_argument("--split", choices=sorted(_SPLIT_CODE), default="test", help="whose handwriting")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=600, help="number of questions")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    images = write_question_set(args.split, args.seed, args.count, args.output)
    print(f"{args.count} questions about {images} images in {args.output}")


if __name__ == "__main__":
    main()
