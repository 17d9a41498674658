"""The renderer: seeded, balanced, and honest about where its evidence lies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vtc.reference.digits import DIGITS_FILE, SPLIT_BLOCKS, load_glyphs, writer_blocks
from vtc.reference.glyphs import COLORS
from vtc.reference.questions import CATEGORIES, TEMPLATES
from vtc.reference.scenes import generate, plan_scene, question_set, scene, write_question_set


def test_same_seed_same_scene_and_other_seed_another() -> None:
    first, again, other = scene("test", 1, 3), scene("test", 1, 3), scene("test", 2, 3)
    assert np.array_equal(first.image, again.image)
    assert first.questions == again.questions
    assert not np.array_equal(first.image, other.image)


def test_train_and_test_share_no_writer() -> None:
    with np.load(DIGITS_FILE) as data:
        labels, blocks = data["labels"], data["blocks"]
    starts = writer_blocks(labels.astype(np.int64))
    assert len(starts) == 14
    assert np.array_equal(np.unique(blocks, return_index=True)[1], starts)
    splits = [set(blocks) for blocks in SPLIT_BLOCKS.values()]
    assert sum(map(len, splits)) == len(set.union(*splits))
    # A form of another writer lies between those of train and of test.
    assert min(SPLIT_BLOCKS["test"]) - max(SPLIT_BLOCKS["train"]) >= 2


@pytest.mark.parametrize("split", sorted(SPLIT_BLOCKS))
def test_every_split_has_every_digit(split: str) -> None:
    assert all(len(glyphs) >= 10 for glyphs in load_glyphs(split))


def test_four_to_six_objects_of_known_size_apart_from_each_other() -> None:
    for one in generate("test", 5, 40):
        assert 4 <= len(one.objects) <= 6
        for thing in one.objects:
            x0, y0, x1, y1 = thing.box
            assert 0 <= x0 < x1 <= 224
            assert 0 <= y0 < y1 <= 224
            assert 24 <= y1 - y0 <= 42
        for a in one.objects:
            for b in one.objects:
                apart = a.box[2] <= b.box[0] or b.box[2] <= a.box[0] or a.box[3] <= b.box[1] or b.box[3] <= a.box[1]
                assert a is b or apart


def test_object_boxes_contain_the_objects_colour() -> None:
    """Within its box an object's hue is nearer to its colour's than the surroundings' is."""
    nearer = []
    for one in generate("test", 6, 40):
        for thing in one.objects:
            x0, y0, x1, y1 = thing.box
            ink = np.asarray(COLORS[thing.color], dtype=np.float64)
            direction = (ink - ink.mean()) / np.linalg.norm(ink - ink.mean())
            tint = (one.image - one.image.mean(axis=2, keepdims=True)) @ direction
            nearer.append(np.quantile(tint[y0:y1, x0:x1], 0.9) > np.median(tint) + 15)
    assert np.mean(nearer) > 0.98


def test_targets_are_spread_over_the_whole_image() -> None:
    centers = np.array([o.center for s in generate("test", 7, 300) for o in s.objects])
    halves = (centers < 112).mean(axis=0)
    assert np.all(np.abs(halves - 0.5) < 0.04)
    assert centers.min() < 25
    assert centers.max() > 199


def test_counted_quantities_are_uniform() -> None:
    shapes, colors = Counter(), Counter()
    for seed in range(3000):
        plan = plan_scene(np.random.default_rng(seed))
        shapes[plan.values.count(plan.counted_shape)] += 1
        colors[plan.colors.count(plan.counted_color)] += 1
    for counts in (shapes, colors):
        assert set(counts) == {1, 2, 3}
        assert max(counts.values()) < 1.12 * min(counts.values())


def test_answers_do_not_follow_from_the_text() -> None:
    """A wording's commonest answer on one half is right on the other as often as chance says."""
    known: dict[str, Counter[str]] = defaultdict(Counter)
    hits, chance = [], []
    for index, one in enumerate(generate("train", 8, 2000)):
        for question in one.questions:
            if index < 1000:
                known[question.text][question.answer] += 1
            elif question.text in known:
                hits.append(known[question.text].most_common(1)[0][0] == question.answer)
                chance.append(question.chance)
    assert abs(np.mean(hits) - np.mean(chance)) < 0.02


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_every_template_is_asked_and_its_answers_are_as_many_as_chance_says(template: str) -> None:
    answers = Counter(q.answer for s in generate("train", 9, 250) for q in s.questions if q.template == template)
    assert answers
    assert len(answers) <= TEMPLATES[template][2]


def test_presence_asks_for_a_pair_whose_halves_are_there() -> None:
    for one in generate("test", 10, 60):
        for question in (q for q in one.questions if q.category == "presence"):
            color, shape = question.text.removesuffix("?").split()[-2:]
            assert color in {o.color for o in one.objects}
            assert shape in {o.value for o in one.objects}
            together = any((o.color, o.value) == (color, shape) for o in one.objects)
            assert question.answer == ("yes" if together else "no")


def test_evidence_is_the_boxes_of_objects() -> None:
    for one in generate("test", 11, 40):
        boxes = {o.box for o in one.objects}
        for question in one.questions:
            assert question.evidence
            assert set(question.evidence) <= boxes


def test_question_set_is_balanced_over_categories_and_has_the_size_asked_for() -> None:
    questions = [q for _, _, q in question_set("test", 1, 61)]
    assert len(questions) == 61
    counts = Counter(q.category for q in questions)
    assert set(counts) == set(CATEGORIES)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_written_set_has_the_documented_fields(tmp_path: Path) -> None:
    images = write_question_set("test", 4, 13, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    assert len(lines) == 13
    assert len({line["id"] for line in lines}) == 13
    assert len({line["image"] for line in lines}) == images
    for line in lines:
        assert set(line) == {"id", "image", "question", "answers", "category", "evidence"}
        assert all(len(box) == 4 for box in line["evidence"])
        with Image.open(tmp_path / line["image"]) as image:
            assert image.size == (224, 224)


def test_command_line_needs_neither_torch_nor_scikit_learn(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['sklearn'] = sys.modules['transformers'] = None;"
        "import runpy; sys.argv = ['scenes', '--count', '6', '-o', sys.argv[1]];"
        "runpy.run_module('vtc.reference.scenes', run_name='__main__')"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], check=True, capture_output=True)
    assert (tmp_path / "data.jsonl").is_file()
