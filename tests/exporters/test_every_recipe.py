"""Every shipped recipe on every family: linted for all targets, built with TensorRT for RTX, read by Polygraphy.

Models are tiny and random. `make test` takes a few pairs that hold every kind of graph, `make test-full` all of them;
they are run by family, whose embeddings and decoder segments recipes have in common.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from polygraphy.tools import main as polygraphy_main

from exporters.device import graph_inputs
from exporters.lint import lint_bundle
from exporters.onnx import export
from exporters.smoke import prepare
from exporters.targets import TARGETS, target
from exporters.tensorrt.build import BuildRequest, build
from exporters.tensorrt.profiles import profiles
from vtc.bundle.engines import Limits
from vtc.bundle.manifest import Manifest, load_manifest
from vtc.errors import RecipeError
from vtc.models import FAMILIES
from vtc.recipe import builtin_recipes, load_recipe

ALWAYS = {
    ("learnpruner", "llava"),
    ("combined", "internvl"),
    ("visual-layer-drop", "qwen3_vl"),
    ("fourier-vlm", "llava_onevision"),
    ("mmtok", "gemma3"),
}
"""Recipe and family of the pairs that `make test` takes."""

LIMITS = Limits(batch=2, images=2, text=48, new_tokens=16)

NO_CLS = {"llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "idefics3", "smolvlm"}
NO_CLS |= {"paligemma", "gemma3"}
REFUSED = {
    **dict.fromkeys(("combined", "fastervlm", "fastervlm-25", "prumerge", "turbo"), (NO_CLS, "CLS token")),
    **dict.fromkeys(("vispruner", "vscan", "vtc-cls"), (NO_CLS, "CLS token")),
    **dict.fromkeys(("reap", "hc-smoe"), (set(FAMILIES) - {"qwen3_vl_moe"}, "no experts")),
    "fopru": ({"llava_next", "llava_onevision", "internvl"}, "never see each other"),
}
"""Recipes that some families cannot take, those, and what they are told."""

OVERRIDES = {"learnpruner": ["budget.keep_average=0.3"]}
"""So that the few visual tokens of tiny models are enough."""

LAYERS = {"sparsevlm": 8}
"""Of the decoder, where a recipe tells more apart than others."""


def pairs() -> Iterator[object]:
    """Every recipe with every family, those of a family in one worker."""
    for family in FAMILIES:
        for recipe in sorted(builtin_recipes()):
            marks = [pytest.mark.slow, pytest.mark.xdist_group(f"recipes-{family}")]
            marks += [] if (recipe, family) in ALWAYS else [pytest.mark.full]
            yield pytest.param(recipe, family, id=f"{family}-{recipe}", marks=marks)


@pytest.mark.parametrize(("recipe", "family"), pairs())
def test_every_recipe_deploys(recipe: str, family: str, tmp_path: Path) -> None:
    families, reason = REFUSED.get(recipe, (set(), ""))
    wanted, layers = load_recipe(recipe, OVERRIDES.get(recipe, ())), LAYERS.get(recipe, 4)
    if family in families:
        with pytest.raises(RecipeError, match=reason):
            prepare(wanted, tmp_path, family=family, decoder_layers=layers)
        return
    request = prepare(wanted, tmp_path, family=family, decoder_layers=layers)
    # Whether graphs compute what PyTorch does is asked elsewhere.
    export(replace(request, samples=()), tmp_path / "bundle")
    manifest = load_manifest(tmp_path / "bundle")

    found = [finding for one in TARGETS for finding in lint_bundle(manifest, "fp32", one)]
    assert not found, str(found[0])

    engines = build(BuildRequest(manifest, target("rtx"), "fp32", limits=LIMITS), tmp_path / "engines")
    assert engines.capabilities == ("8.6", "8.9", "12.0")
    assert set(engines.engines) == set(manifest.graphs)
    for segment in manifest.segments:
        names = [profile.name for profile in engines.engines[segment.graph].profiles]
        assert names == ["prefill", "decode"]

    for graph in manifest.graphs:
        polygraphy(manifest, graph)


def polygraphy(manifest: Manifest, graph: str) -> None:
    """Have Polygraphy describe a graph, and run it with ONNX Runtime on zeros and ones of the largest sizes.

    Of those are numbers of rows, too, and the largest batch has two.
    """
    path = manifest.graph(graph, "fp32")
    shapes = profiles(manifest, graph, graph_inputs(path), LIMITS)[-1].shapes
    sizes = [f"{name}:[{','.join(map(str, most))}]" for name, (_, _, most) in shapes.items()]
    for command in (["inspect", "model", path], ["run", path, "--onnxrt", "--input-shapes", *sizes]):
        # Its command line, in this process: it takes seconds to start.
        with patch.object(sys, "argv", ["polygraphy", *map(str, command)]):
            assert polygraphy_main() == 0, command
