"""The stage of docs/extending.md, from its recipe to a running bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F
from vtc.stages.pool import Pool

import vtc
from exporters import smoke
from exporters.onnx import export
from tests.plan.test_flops import counted
from tests.tiny import image, recipe
from vtc.cli import main
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import load_compressed
from vtc.data.datasets import load_dataset
from vtc.errors import RecipeError
from vtc.models import load_adapter
from vtc.models.base import VLMAdapter
from vtc.models.random.tiny_families import write_tiny
from vtc.plan import plan
from vtc.selectors.trained import read_metadata, save_trained
from vtc.training.job import new_part
from vtc.visual_tokens import in_grids

RECIPE = """version: 1
name: pooled
stages:
- kind: pool
  training: {steps: 4, questions: 6, validation: 2, batch: 2, learning_rate: 0.5}
- {kind: prune, keep: 0.5, selector: uniform, positions: original}
- {kind: prune_in_decoder, layer: 0.5, keep: 0.5}
"""
GRIDS = [(4, 6), (2, 2)]


def run(*arguments: str | Path) -> str:
    """Run a verb that succeeds."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output + result.stderr
    return result.stdout


def test_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pooled.yaml").write_text(RECIPE)
    assert json.loads(run("check", "pooled.yaml", "--json"))["calibrates"] == ["stages.0.checkpoint"]
    made = json.loads(run("inspect", "reference", "--recipe", "pooled.yaml", "--json"))["plan"]
    assert [(s["tokens_in"], s["tokens_out"]) for s in made["stages"]] == [(256, 64), (64, 32), (32, 16)]
    assert (made["has_places"], made["position_span"], made["stages"][0]["parameters"]) == (False, 64, 1)

    run("compress", "reference", "--recipe", "pooled.yaml", "--data", "reference", "-o", "trained")
    part = Path("trained/pool.safetensors")
    assert {"kl", "validation_agreement"} <= set(Path("trained/pool_log.csv").read_text().splitlines()[0].split(","))
    assert read_metadata(part)["size"] == "2"
    Path("pool.safetensors").write_bytes(part.read_bytes())
    resolved = RECIPE.replace("training: {steps: 4, questions: 6, validation: 2, batch: 2, learning_rate: 0.5}", "{}")
    Path("file.yaml").write_text(resolved.replace("{}", "checkpoint: pool.safetensors"))
    run("compress", "reference", "--recipe", "file.yaml", "-o", "compressed")
    model, _, _ = load_compressed(Path("compressed"))
    state, trained = model.trained.state_dict(), load_compressed(Path("trained"))[0].trained.state_dict()
    assert all(torch.equal(trained[name], tensor) for name, tensor in state.items())
    assert float(state["0.sharpness"]) != 0

    run("export", "compressed", "-o", "bundle", "--samples", "2")
    item = load_dataset("reference", 1, seed=3).items[0]
    item.load().save("image.png")
    asked = [[item.load()]], [model.adapter.chat(item.question)]
    answer = model.generate(*asked)[0].text
    assert run("run", "bundle", "--image", "image.png", "--prompt", item.question).strip() == answer
    bundle = vtc.load("bundle")
    assert [kept.tolist() for kept in bundle.kept(*asked)] == [kept.tolist() for kept in model.kept(*asked)]
    ids = [5, 6, 7]
    np.testing.assert_allclose(bundle.score(*asked, [ids])[0], model.score(*asked, [ids])[0], atol=1e-3)


def test_family_with_places_of_three_axes_and_features_that_travel_along(tmp_path: Path) -> None:
    request = smoke.prepare(recipe({"kind": "pool", "size": 3}), tmp_path, family="qwen3_vl", decoder_layers=4)
    export(request, tmp_path / "bundle")
    sample = request.samples[0]
    asked = [sample.images], [sample.prompt]
    assert request.model.plan.position_grids == request.model.plan.stages[0].grids_out
    answer = vtc.load(tmp_path / "bundle").generate(*asked, 4)[0]
    assert list(answer.token_ids) == request.model.generate(*asked, 4)[0].token_ids


def test_family_with_several_views(tmp_path: Path) -> None:
    adapter = load_adapter(write_tiny("llava_next", tmp_path / "model"))
    model = apply_recipe(adapter, recipe({"kind": "pool"}), from_state=True)
    assert len(model.plan.stages[0].grids_in) > 1
    features, _ = model.features([[image(0)]], [adapter.chat("what is it ?")])
    assert features.shape[1] == model.plan.keep == adapter.facts.layout.selectable // 4


@pytest.mark.parametrize(("family", "size"), [("llava", 2), ("qwen3_vl", 3)])
def test_cost_is_what_torch_counts(
    family: str, size: int, adapter: VLMAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = adapter if family == "llava" else load_adapter(write_tiny(family, tmp_path / "model"))
    stage = {"kind": "pool", "size": size, "checkpoint": "pool.safetensors"}
    part = new_part(model, recipe(stage), 0)
    save_trained(tmp_path / "pool.safetensors", part, "")
    found, expected = counted(model, [stage])
    assert expected.flops["exact"] == found
    assert expected.stages[0].parameters == sum(parameter.numel() for parameter in part.parameters())


def pooled(sharpness: float) -> tuple[torch.Tensor, torch.Tensor, Pool]:
    """Random tokens of two grids, with other values that travel along, and what becomes of them."""
    values = torch.randn(2, 28, 8 + 3, generator=torch.Generator().manual_seed(0))
    module = Pool(2, GRIDS, [(2, 3), (1, 1)])
    with torch.no_grad():
        module.sharpness.fill_(sharpness)
        result = module(replace(in_grids(values[..., :8], GRIDS), deepstack=values[..., 8:]))
    assert result.deepstack is not None
    assert result.grids == ((2, 3), (1, 1))
    assert result.indices.tolist() == [list(range(7))] * 2
    return values, torch.cat([result.features, result.deepstack], dim=-1), module


def test_untrained_it_is_the_plain_mean() -> None:
    values, result, _ = pooled(0.0)
    first = values[:, :24].reshape(2, 4, 6, -1).permute(0, 3, 1, 2)
    expected = F.avg_pool2d(first, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(result[:, :6], expected)
    torch.testing.assert_close(result[:, 6], values[:, 24:].mean(dim=1))


def test_at_low_temperature_it_is_the_token_most_like_the_mean() -> None:
    values, result, module = pooled(1e4)
    cells = module.in_cells(values)
    middle = cells[..., :8].mean(dim=2, keepdim=True)
    nearest = F.cosine_similarity(cells[..., :8], middle, dim=-1).argmax(dim=-1)
    expected = cells.gather(2, nearest[..., None, None].expand(-1, -1, 1, 11)).squeeze(2)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(
    ("stages", "fault"),
    [
        ([{"kind": "pool", "size": 3}], "stages.0.size: 3 does not divide the sides of 4x4 tokens; these do: 2, 4"),
        (
            [{"kind": "prune", "keep": 4, "selector": "uniform"}, {"kind": "pool"}],
            "stages.1: needs a whole grid, and stages.0 has pruned it; pool first",
        ),
        (
            [{"kind": "pool"}, {"kind": "pool", "size": 4}],
            "stages.1.size: 4 does not divide the sides of 2x2 tokens; these do: 2",
        ),
    ],
)
def test_what_cannot_be_pooled_is_refused_in_a_line(
    stages: list[dict[str, Any]], fault: str, adapter: VLMAdapter
) -> None:
    with pytest.raises(RecipeError) as error:
        plan(recipe(*stages), adapter.facts)
    assert str(error.value) == f"recipe: {fault}"
