"""Crowded scenes with a label for every patch, for pretraining the vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vtc.reference.glyphs import COLORS, GAPS, SHAPES, STRIPES
from vtc.reference.objects import SceneObject
from vtc.reference.scenes import IMAGE_SIZE, Plan, Scene, plan_scene, render

PATCH = 14
GRID = IMAGE_SIZE // PATCH

#: Classes of a patch: nothing, then shapes, digits, gaps and stripes.
CLASSES = ("none", *SHAPES, *(str(d) for d in range(10)), *GAPS, *STRIPES)
#: A digit stands alone or is the tens or the units of a number.
ROLES = ("alone", "tens", "units")
_COLOR_INDEX = {color: i for i, color in enumerate(COLORS)}
_CLASS_INDEX = {name: i for i, name in enumerate(CLASSES)}

#: Counted up to here: none, one, two or more objects alike come before in reading order.
RANKS = 4

#: Patches covered less than this (share of the patch, by boxes) but not empty carry no label.
_COVERED = 0.2


@dataclass(frozen=True)
class PatchLabels:
    """What each of the 256 patches shows.

    Attributes
    ----------
    kind : array of shape (256,)
        Index into ``CLASSES``; -1 where a patch is only touched.
    color, role : arrays of shape (256,)
        Index into ``COLORS`` and ``ROLES``; -1 where there is no object.
    center : array of shape (256, 2)
        Centre of the patch's object in 0..1 (x, y); zero where there is none.
    owner : array of shape (256,)
        Index of the glyph that covers most of the patch (a number has two), -1 where none covers enough.
    corner : array of shape (256,)
        Quarter of the image that holds the object's centre (top left, top right, bottom left, bottom right), or -1.
    shape_rank, color_rank : arrays of shape (256,)
        How many objects of the same kind and value, or colour, come before in reading order (at most 3), or -1.
        The last of them thus tells their number.
    share : array of shape (256,)
        How much of the patch that glyph's box covers.
    """

    kind: NDArray[np.int64]
    color: NDArray[np.int64]
    role: NDArray[np.int64]
    center: NDArray[np.float32]
    owner: NDArray[np.int64]
    corner: NDArray[np.int64]
    shape_rank: NDArray[np.int64]
    color_rank: NDArray[np.int64]
    share: NDArray[np.float32]


def _parts(thing: SceneObject) -> list[tuple[tuple[int, int, int, int], str, int]]:
    """Boxes of a scene object with one class each: a number has two."""
    x0, y0, x1, y1 = thing.box
    if thing.kind != "number":
        return [(thing.box, thing.value, 0)]
    return [((x0, y0, thing.seam, y1), thing.value[0], 1), ((thing.seam, y0, x1, y1), thing.value[1], 2)]


def coverage(box: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """Share of every patch that a pixel box covers, shape (256,), row-major."""
    edges = np.arange(GRID) * PATCH
    x0, y0, x1, y1 = box
    across = np.clip(np.minimum(edges + PATCH, x1) - np.maximum(edges, x0), 0, PATCH)
    down = np.clip(np.minimum(edges + PATCH, y1) - np.maximum(edges, y0), 0, PATCH)
    return np.asarray(down[:, None] * across[None, :] / PATCH**2, dtype=np.float32).ravel()


def label_patches(objects: Sequence[SceneObject]) -> PatchLabels:
    """Labels of all patches from the objects' boxes."""
    count = GRID * GRID
    best = np.zeros(count, dtype=np.float32)
    kind = np.zeros(count, dtype=np.int64)
    color, role, owner, corner, shape_rank, color_rank = (np.full(count, -1, dtype=np.int64) for _ in range(6))
    center = np.zeros((count, 2), dtype=np.float32)
    glyph = 0
    for thing in objects:
        middle = np.asarray(thing.center, dtype=np.float32) / IMAGE_SIZE
        before = [o for o in objects if o.center[::-1] < thing.center[::-1]]
        same_shape = min(3, sum((o.kind, o.value) == (thing.kind, thing.value) for o in before))
        same_color = min(3, sum(o.color == thing.color for o in before))
        quarter = 2 * int(middle[1] >= 0.5) + int(middle[0] >= 0.5)
        for box, name, part in _parts(thing):
            share = coverage(box)
            mine = share > best
            best[mine] = share[mine]
            kind[mine], color[mine], role[mine] = _CLASS_INDEX[name], _COLOR_INDEX[thing.color], part
            center[mine], owner[mine], corner[mine] = middle, glyph, quarter
            shape_rank[mine], color_rank[mine] = same_shape, same_color
            glyph += 1
    thin = best < _COVERED
    kind[thin & (best > 0)] = -1
    for labels in (color, role, owner, corner, shape_rank, color_rank):
        labels[thin] = -1
    return PatchLabels(kind, color, role, center, owner, corner, shape_rank, color_rank, best)


def scene_summary(objects: Sequence[SceneObject]) -> NDArray[np.float32]:
    """What the CLS token has to tell: which classes, colours and pairs of colour and kind are present.

    Returns
    -------
    array of shape (76,)
        0 or 1 for 22 classes, 6 colours and 48 pairs.
    """
    kinds = (*SHAPES, "digit", "ring", "disc")
    present = np.zeros(len(CLASSES) - 1 + len(COLORS) * (1 + len(kinds)), dtype=np.float32)
    for thing in objects:
        color = _COLOR_INDEX[thing.color]
        for _, name, _ in _parts(thing):
            present[_CLASS_INDEX[name] - 1] = 1
        present[len(CLASSES) - 1 + color] = 1
        noun = "digit" if thing.kind == "number" else thing.noun
        present[len(CLASSES) - 1 + len(COLORS) + color * len(kinds) + kinds.index(noun)] = 1
    return present


def dense_scene(seed: int, index: int, split: str = "train", crowded: float = 2 / 3) -> Scene:
    """A scene for pretraining.

    Two thirds of them are crowded, with up to 15 objects of which half are handwritten; the others are as
    in questions.
    """
    rng = np.random.default_rng([2, seed, index])
    if rng.random() >= crowded:
        plan = plan_scene(rng)
    else:
        kinds = rng.choice(["shape", "digit", "number", "ring", "disc"], 15, p=[0.26, 0.26, 0.22, 0.13, 0.13]).tolist()
        plan = Plan(
            tuple(kinds),
            tuple(_value(kind, rng) for kind in kinds),
            tuple(str(c) for c in rng.choice(list(COLORS), len(kinds))),
        )
    image, objects = render(plan, split, rng, distractors=int(rng.integers(1, 4)), strict=False)
    return Scene(image, objects)


def _value(kind: str, rng: np.random.Generator) -> str:
    if kind == "digit":
        return str(int(rng.integers(10)))
    if kind == "number":
        return str(int(rng.integers(10, 100)))
    names = {"shape": SHAPES, "ring": GAPS, "disc": STRIPES}[kind]
    return names[int(rng.integers(len(names)))]
