"""Every shipped recipe on the reference VLM: the bundle answers as PyTorch does, on questions of the test split."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters.onnx import ExportRequest, export
from vtc.calibrate.calibrator import Calibrator
from vtc.calibrate.measurements import Measurements
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import Origin, served
from vtc.data.datasets import Item, load_dataset
from vtc.data.samples import samples_from
from vtc.models import load_adapter, model_digest
from vtc.models.base import VLMAdapter
from vtc.recipe import builtin_recipes, load_recipe
from vtc.reference import reference_dir
from vtc.runtime.vlm import VLM
from vtc.training.auto import AutoTrained

QUESTIONS = 64
IN_OPENVINO = ("divprune", "learnpruner", "pyramiddrop")
"""Recipes whose bundles are run by OpenVINO as well: a greedy choice, a trained pruner, several cuts in the decoder."""
ALIKE = ("combined", "fastervlm-25")
"""Recipes whose every stage another one tries: fastervlm has their selector, visual-exit and todre the exit."""
SELECTED = ("cdpruner", "fopru", "hiprune", "mmtok", "prumerge", "random", "turbo", "uniform", "visionzip", "vispruner")
SELECTED += ("vscan", "vtc-cls")
"""Recipes of one selector before the decoder: tests/selectors runs the graph of each; others here have such bundles."""
MERGED = "hc-smoe"
"""Merged experts are exported in tests/exporters, on a tiny model."""
UNTRAINED = ("c-abstractor", "ldpv2", "mqt", "pixel-shuffle", "quecc", "tokenflex", "tokenpacker")
"""Recipes whose projector does not ship: each is exported in tests/projectors, and trained for two steps here."""
IN_FULL = (*ALIKE, *SELECTED, *UNTRAINED, MERGED, "m3")
BRIEFLY = [f"stages.0.projector.training.{key}" for key in ("steps=2", "questions=64", "validation=8")]
SAME_TOKENS = 0.95
"""Share of images that keep exactly the same tokens; patches of a plain background are near-ties to a greedy choice."""


@cache
def loaded(name: str) -> VLMAdapter:
    return load_adapter(reference_dir(name))


@pytest.fixture(scope="module")
def items() -> tuple[Item, ...]:
    return load_dataset("reference", QUESTIONS, seed=1).items


def once(see: Callable[..., Any]) -> Callable[..., Any]:
    """What was seen first, whatever is asked then: the questions below are the same ones all along."""
    seen: list[Any] = []

    def remembered(*args: Any) -> Any:
        if not seen:
            seen.append(see(*args))
        return seen[0]

    return remembered


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.full] if one in IN_FULL else []) for one in sorted(builtin_recipes())]
)
def test_bundle_answers_as_pytorch_does(
    items: tuple[Item, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tried_on = load_recipe(name).tried_on
    reference = loaded(tried_on)
    digest = model_digest(reference.path)
    samples = samples_from(reference, "reference", 16, seed=0)
    pruner = AutoTrained(reference, digest, tmp_path, "reference")
    recipe = Calibrator(reference, samples, Measurements(), digest, parts=pruner).resolve(
        load_recipe(name, BRIEFLY if name in UNTRAINED else ())
    )
    model = apply_recipe(reference, recipe, model_digest=digest)
    export(
        ExportRequest(
            served(model, recipe), recipe, Origin(tried_on, digest), samples[: 2 * max(1, len(recipe.budgets))]
        ),
        tmp_path / "bundle",
    )
    bundle = VLM.load(tmp_path / "bundle")
    monkeypatch.setattr(model.vision, "forward", once(model.vision.forward))
    monkeypatch.setattr(bundle.vision, "see", once(bundle.vision.see))

    images = [[item.load()] for item in items]
    prompts = [reference.chat(item.question) for item in items]
    assert prompts == [bundle.chat(item.question) for item in items]
    same = np.ones(len(items), dtype=np.bool_)
    for ours, theirs in zip(bundle.kept(images, prompts), model.kept(images, prompts), strict=True):
        same &= (ours == theirs).all(axis=1)
    assert same.mean() >= SAME_TOKENS
    expected = [answer.token_ids for answer in model.generate(images, prompts, 16)]
    found = [answer.token_ids for answer in bundle.generate(images, prompts, 16)]
    assert [ids for ids, equal in zip(found, same, strict=True) if equal] == [
        ids for ids, equal in zip(expected, same, strict=True) if equal
    ]
    forced = [[*ids, reference.eos_token_ids[0]] for ids in expected]
    scores = zip(bundle.score(images, prompts, forced), model.score(images, prompts, forced), same, strict=True)
    for ours, theirs, equal in scores:
        if equal:
            np.testing.assert_allclose(ours, theirs, atol=1e-3)
    if name in IN_OPENVINO:
        other = VLM.load(tmp_path / "bundle", backend="openvino")
        alike = np.ones(len(items), dtype=np.bool_)
        for ours, theirs in zip(other.kept(images, prompts), bundle.kept(images, prompts), strict=True):
            alike &= (ours == theirs).all(axis=1)
        assert alike.mean() >= SAME_TOKENS
        assert [answer.token_ids for answer in other.generate(images, prompts, 16)] == found
        both = (each.score(images, prompts, forced) for each in (other, bundle))
        for ours, theirs, equal in zip(*both, alike, strict=True):
            if equal:
                np.testing.assert_allclose(ours, theirs, atol=1e-3)
