"""Questions about a scene, by capability, worded so that the text alone never helps.

For every wording the possible answers are equally likely: colours, shapes, digits and sides are drawn
uniformly, counts are drawn before anything else, and yes/no questions first draw their answer and then an
object pair that fits. So ``chance`` is one over the number of possible answers, for the best question-only
model too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vtc.reference.glyphs import COLORS, SHAPES
from vtc.reference.objects import Box, SceneObject

CATEGORIES = ("presence", "counting", "spatial", "attribute", "digit", "detail")

#: Template name -> (category, wording, number of equally likely answers).
TEMPLATES: dict[str, tuple[str, str, int]] = {
    "pair": ("presence", "is there a {color} {shape}?", 2),
    "count_shape": ("counting", "how many {shapes} are there?", 3),
    "count_color": ("counting", "how many {color} objects are there?", 3),
    "where": ("spatial", "where is the {noun}?", 4),
    "side": ("spatial", "is the {noun} left or right of the {other}?", 2),
    "height": ("spatial", "is the {noun} above or below the {other}?", 2),
    "color_of": ("attribute", "what color is the {noun}?", 6),
    "shape_of": ("attribute", "which shape is {color}?", 5),
    "digit": ("digit", "what digit is shown?", 10),
    "digit_of": ("digit", "which digit is {color}?", 10),
    "number": ("digit", "what number is shown?", 90),
    "gap": ("detail", "which side of the ring is open?", 4),
    "stripes": ("detail", "which way do the stripes run?", 3),
}

PLURALS = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "cross": "crosses",
}

#: Objects whose centres are nearer than this along an axis, in pixels, are not compared along it.
_CLEAR = 24
#: An object must lie this far, in pixels, from the image's middle lines to have a corner.
_OFF_MIDDLE = 12


@dataclass(frozen=True)
class Question:
    """One question about one scene.

    Attributes
    ----------
    text, answer : str
        Lower case.
    category : str
        One of ``CATEGORIES``.
    evidence : tuple of boxes
        Pixel boxes (x0, y0, x1, y1) of the objects that the answer follows from.
    template : str
        Key of ``TEMPLATES``.
    """

    text: str
    answer: str
    category: str
    evidence: tuple[Box, ...]
    template: str

    @property
    def chance(self) -> float:
        """Accuracy of the best guess from the text alone."""
        return chance(self.template)


def chance(template: str) -> float:
    """Accuracy of the best question-only guess for a template of ``TEMPLATES``."""
    return 1.0 / TEMPLATES[template][2]


def _question(template: str, answer: str, evidence: Sequence[SceneObject], **words: str) -> Question:
    category, wording, _ = TEMPLATES[template]
    return Question(wording.format(**words), answer, category, tuple(o.box for o in evidence), template)


def ask(
    objects: Sequence[SceneObject], counted_shape: str, counted_color: str, rng: np.random.Generator
) -> tuple[Question, ...]:
    """All questions that a scene is asked, about ten.

    Parameters
    ----------
    objects : sequence of SceneObject
        The scene.
    counted_shape, counted_color : str
        Whose number was drawn beforehand; no other count is asked, since it would not be uniform.
    rng : numpy Generator
        Source of the choices.

    Returns
    -------
    tuple of Question
    """
    found = [*_presence(objects, rng), *_counting(objects, counted_shape, counted_color)]
    nouns = [o.noun for o in objects]
    named = [o for o in objects if nouns.count(o.noun) == 1]
    found += _spatial(named, rng)
    found += _attribute(objects, named, rng)
    found += _reading(objects)
    return tuple(found)


def _presence(objects: Sequence[SceneObject], rng: np.random.Generator) -> list[Question]:
    shapes = [o for o in objects if o.kind == "shape"]
    pairs = {(o.color, o.value) for o in shapes}
    colors = {o.color for o in objects}
    # Adversarial: the colour is there and the shape is there, but not together.
    absent = sorted((c, s) for c in colors for s in {o.value for o in shapes} if (c, s) not in pairs)
    questions = []
    for _ in range(2):
        if rng.random() < 0.5:
            chosen = shapes[int(rng.integers(len(shapes)))]
            color, shape, answer = chosen.color, chosen.value, "yes"
            evidence = [o for o in shapes if (o.color, o.value) == (color, shape)]
        else:
            color, shape = absent[int(rng.integers(len(absent)))]
            answer = "no"
            evidence = [o for o in objects if o.value == shape or o.color == color]
        questions.append(_question("pair", answer, evidence, color=color, shape=shape))
    return questions[:1] if questions[0].text == questions[1].text else questions


def _counting(objects: Sequence[SceneObject], counted_shape: str, counted_color: str) -> list[Question]:
    same_shape = [o for o in objects if o.value == counted_shape]
    same_color = [o for o in objects if o.color == counted_color]
    return [
        _question("count_shape", str(len(same_shape)), same_shape, shapes=PLURALS[counted_shape]),
        _question("count_color", str(len(same_color)), same_color, color=counted_color),
    ]


def _spatial(named: Sequence[SceneObject], rng: np.random.Generator) -> list[Question]:
    questions = []
    order = [named[i] for i in rng.permutation(len(named))]
    for thing in order:
        x, y = thing.center[0] - 112, thing.center[1] - 112
        if abs(x) >= _OFF_MIDDLE and abs(y) >= _OFF_MIDDLE:
            corner = f"{'top' if y < 0 else 'bottom'} {'left' if x < 0 else 'right'}"
            questions.append(_question("where", corner, [thing], noun=thing.noun))
            break
    pairs = [(a, b) for a in order for b in order if a is not b]
    for template, axis, (before, after) in (
        ("side", 0, ("left", "right")),
        ("height", 1, ("above", "below")),
    ):
        for index in rng.permutation(len(pairs)):
            a, b = pairs[int(index)]
            gap = a.center[axis] - b.center[axis]
            if abs(gap) >= _CLEAR:
                answer = before if gap < 0 else after
                questions.append(_question(template, answer, [a, b], noun=a.noun, other=b.noun))
                break
    return questions


def _attribute(
    objects: Sequence[SceneObject], named: Sequence[SceneObject], rng: np.random.Generator
) -> list[Question]:
    questions = []
    for index in rng.permutation(len(named))[:2]:
        thing = named[int(index)]
        questions.append(_question("color_of", thing.color, [thing], noun=thing.noun))
    shapes = [o for o in objects if o.kind == "shape"]
    single = [o for o in shapes if [s.color for s in shapes].count(o.color) == 1]
    if single:
        thing = single[int(rng.integers(len(single)))]
        questions.append(_question("shape_of", thing.value, [thing], color=thing.color))
    return questions


def _reading(objects: Sequence[SceneObject]) -> list[Question]:
    questions = []
    digits = [o for o in objects if o.kind == "digit"]
    for thing in digits:
        if len(digits) == 1:
            questions.append(_question("digit", thing.value, [thing]))
        else:
            questions.append(_question("digit_of", thing.value, [thing], color=thing.color))
    for thing in objects:
        if thing.kind == "number":
            questions.append(_question("number", thing.value, [thing]))
        elif thing.kind == "ring":
            questions.append(_question("gap", thing.value, [thing]))
        elif thing.kind == "disc":
            questions.append(_question("stripes", thing.value, [thing]))
    return questions


def lexicon() -> list[str]:
    """Every wording and answer that the questions use, for building the tokenizer."""
    nouns = (*SHAPES, "digit", "number", "ring", "disc")
    lines = []
    for _, wording, _ in TEMPLATES.values():
        for color in COLORS:
            for shape in SHAPES:
                for noun in nouns:
                    lines.append(wording.format(color=color, shape=shape, shapes=PLURALS[shape], noun=noun, other=noun))
    answers = ["yes", "no", "left", "right", "top", "bottom", "above", "below", *COLORS, *nouns]
    answers += ["top left", "top right", "bottom left", "bottom right", "horizontal", "vertical", "diagonal"]
    return sorted(set(lines)) + answers
