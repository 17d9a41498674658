"""Qwen2-VL and Qwen2.5-VL: what selectors read of the tower, positions of clips, what is refused."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.vision_utils import get_vision_window_index

from exporters.copies import cast_copy
from exporters.processor import told_of
from tests.models.families import CASES, Case, Checkpoints, compressed, pictures, prompts_of
from tests.models.own import own_inputs
from tests.models.published_counts import PUBLISHED
from tests.tiny import recipe
from vtc.compressed.readings import read
from vtc.compressed.vision_encoder import VisionEncoder
from vtc.errors import InputError, ModelError
from vtc.facts.layout import ImageOptions
from vtc.inputs.positions import positions
from vtc.models import read_facts
from vtc.models.base import VLMAdapter
from vtc.models.qwen2_5_vl import Qwen2_5VLAdapter
from vtc.plan import plan
from vtc.recipe.needs import Needs, Reading, ReadingKind

QWEN = [case for case in CASES if case.family in ("qwen2_vl", "qwen2_5_vl")]
LAYERS = (0, 1, 2, 3)
WIDE = Case("qwen2_5_vl", "wide", ImageOptions(image_size=(3 * 28, 5 * 28)))
"""Windows of 2 x 2 tokens on 3 x 5 of them: those at both edges are smaller."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("qwen"))


def own_maps(adapter: VLMAdapter, pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What each layer gives to whom (H, n, n), patches in the processor's order, and the tower's tokens (N, E).

    By the model's own code, for pixels (P, values) of one view. It attends window by window, so a map is put together
    of those of the windows.
    """
    tower = adapter.model.model.visual
    found: list[list[Tensor]] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def noting(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        found[-1].append(torch.softmax(scores, dim=-1)[0])
        return original(query, key, value, **options)

    hooks = [block.register_forward_pre_hook(lambda *_: found.append([])) for block in tower.blocks]
    grid = torch.tensor([adapter.pixels.patch_grid])
    try:
        with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
            tokens = tower(pixels, grid_thw=grid).pooler_output
    finally:
        for hook in hooks:
            hook.remove()
    order = window_order(adapter, grid)
    back = torch.argsort(order)
    joined: Any = torch.block_diag
    whole = [torch.stack([joined(*heads) for heads in zip(*layer, strict=True)]) for layer in found]
    return [layer[:, back][:, :, back] for layer in whole], tokens


def window_order(adapter: VLMAdapter, grid: Tensor) -> Tensor:
    """Patches in the order in which the model's own tower has them."""
    encoder, patches = adapter.facts.encoder, int(grid.prod())
    if not encoder.window:
        return torch.arange(patches)
    order, _ = get_vision_window_index(grid, encoder.merge, encoder.window * encoder.patch_size, encoder.patch_size)
    return torch.arange(patches).reshape(-1, encoder.merge**2)[order].flatten()


@pytest.mark.parametrize("case", [Case("qwen2_vl"), Case("qwen2_5_vl"), WIDE], ids=str)
@pytest.mark.parametrize("kind", ["received_attention", "patch_attention"])
def test_attention_is_the_models_own(checkpoints: Checkpoints, case: Case, kind: ReadingKind) -> None:
    adapter = checkpoints.adapter(case)
    pixels = adapter.preprocess(pictures(adapter, 1))
    maps, _ = own_maps(adapter, pixels[0])
    needs = Needs(frozenset(Reading(kind, layer) for layer in LAYERS))
    with torch.inference_mode():
        tokens = VisionEncoder(adapter, LAYERS, needs=needs).tokens(pixels)
    for layer in LAYERS:
        mean = maps[layer].mean(dim=0)
        received = mean.mean(dim=0).reshape(-1, 4).mean(dim=1)
        between = mean.reshape(received.numel(), 4, -1, 4).mean(dim=(1, 3))
        expected = received if kind == "received_attention" else between
        torch.testing.assert_close(tokens.readings[Reading(kind, layer)][0], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("case", QWEN, ids=str)
def test_keys_of_a_token_are_the_mean_of_its_patches(checkpoints: Checkpoints, case: Case) -> None:
    adapter = checkpoints.adapter(case)
    pixels = adapter.preprocess(pictures(adapter, 1))
    reading = Reading("keys", 1)
    with torch.inference_mode():
        tokens = VisionEncoder(adapter, LAYERS, needs=Needs(frozenset({reading}))).tokens(pixels)
        hidden = adapter.encoder_layer(0, adapter.embed_patches(pixels))
        patches = read(adapter, reading, hidden)
    expected = patches.reshape(1, adapter.facts.visual_tokens, 4, -1).mean(dim=2)
    torch.testing.assert_close(tokens.readings[reading], expected)


@pytest.mark.parametrize("case", [*QWEN, WIDE], ids=str)
def test_tokens_are_the_towers_own(checkpoints: Checkpoints, case: Case) -> None:
    adapter = checkpoints.adapter(case)
    pixels = adapter.preprocess(pictures(adapter, 2))
    model = compressed(adapter)
    with torch.inference_mode():
        ours, _ = model.vision(pixels)
        grid = torch.tensor([adapter.pixels.patch_grid] * 2)
        own = adapter.model.model.visual(pixels.flatten(0, 1), grid_thw=grid).pooler_output
    torch.testing.assert_close(ours.flatten(0, 1), own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", [Case("qwen2_vl"), WIDE], ids=str)
def test_towers_run_in_half_precision(checkpoints: Checkpoints, case: Case) -> None:
    adapter = checkpoints.adapter(case)
    model = compressed(adapter, {"kind": "prune", "keep": 5, "selector": "fopru"})
    pixels = adapter.preprocess(pictures(adapter, 2))
    with torch.inference_mode():
        ours, chosen = model.vision(pixels)
        half, again = cast_copy([model], torch.float16)[0].vision(pixels)
    assert half.dtype == torch.float16
    assert torch.equal(chosen, again)
    torch.testing.assert_close(half.float(), ours, atol=2e-2 * float(ours.abs().max()), rtol=0)


@pytest.mark.parametrize("case", QWEN, ids=str)
@pytest.mark.parametrize("kind", ["two", "middle", "batch"])
def test_positions_are_the_models_own(checkpoints: Checkpoints, case: Case, kind: str) -> None:
    adapter = checkpoints.adapter(case)
    images, prompts = prompts_of(adapter, kind)
    inputs = own_inputs(adapter.path, images, prompts, frames=case.frames > 1)
    del inputs["pixel_values" if case.frames == 1 else "pixel_values_videos"]
    own, deltas = adapter.model.model.get_rope_index(**inputs)
    model = compressed(adapter)
    ids, mask, pixels = model.inputs(images, prompts)
    with torch.inference_mode():
        _, state = model.prefill(ids, mask, pixels)
    assert state.following.tolist() == (deltas.flatten() + ids.shape[1] - (mask == 0).sum(dim=1)).tolist()
    found = places(model, ids, mask, len(state.kept[0]))
    assert torch.equal(found.where(mask.bool(), 0), own.where(mask.bool(), 0))


def places(model: Any, ids: Tensor, mask: Tensor, spans: int) -> Tensor:
    """Positions (3, B, S) of prompts with all their visual tokens."""
    every = torch.arange(model.keep_per_span).expand(spans, -1).numpy()
    return torch.from_numpy(positions(ids.numpy(), mask.numpy(), model.adapter.image_token_id, every, model.rule).ids)


def test_a_clips_time_is_in_seconds_where_the_model_counts_them(checkpoints: Checkpoints) -> None:
    clip = ImageOptions(image_size=(84, 140), frames=5)
    layouts = {family: read_facts(checkpoints.path(family), clip).layout for family in ("qwen2_vl", "qwen2_5_vl")}
    assert {family: layout.time_step for family, layout in layouts.items()} == {"qwen2_vl": 1.0, "qwen2_5_vl": 2.0}
    assert all(layout.grids == ((3, 5),) * 3 for layout in layouts.values())


def test_renumbered_means_original_coordinates(checkpoints: Checkpoints) -> None:
    adapter = checkpoints.adapter(Case("qwen2_vl"))
    stage = {"kind": "prune", "keep": 3, "selector": "uniform"}
    models = [compressed(adapter, stage | {"positions": kind}) for kind in ("renumber", "original")]
    assert models[0].rule == models[1].rule
    assert models[0].rule.kind == "original"


@pytest.mark.parametrize("form", ["nested", "flat", "both"])
def test_a_bundles_config_is_told_of_dropped_layers_in_every_form(
    checkpoints: Checkpoints, form: str, tmp_path: Path
) -> None:
    """Files of older releases hold the decoder's fields at the top; `transformers` reads either."""
    path = checkpoints.path("qwen2_5_vl")
    config = json.loads((path / "config.json").read_text())
    text = config["text_config"]
    if form == "flat":
        del config["text_config"], text["model_type"]
    told = told_of(
        plan(recipe({"kind": "drop_layers", "layers": [2, 5]}), read_facts(path)),
        config if form == "nested" else text | config,
    )
    (tmp_path / "config.json").write_text(json.dumps(told))
    read_back = AutoConfig.from_pretrained(tmp_path).text_config
    assert read_back.num_hidden_layers == len(read_back.layer_types) == 6
    assert read_back.hidden_size == text["hidden_size"]
    assert {
        part["num_hidden_layers"] for part in (told, told.get("text_config", told)) if "num_hidden_layers" in part
    } == {6}


@pytest.mark.parametrize(
    "image_options", [ImageOptions(tiles=(2, 2)), ImageOptions(image_size=(10, 4000))], ids=["tiles", "strip"]
)
def test_what_cannot_be_served_is_refused(image_options: ImageOptions) -> None:
    with pytest.raises(InputError, match=r"leave out --tiles|200 times"):
        read_facts(PUBLISHED / "qwen2.5-vl-3b", image_options)


def described(**changes: Any) -> None:
    path = PUBLISHED / "qwen2.5-vl-3b"
    config = deepcopy(AutoConfig.from_pretrained(path))
    for name, value in changes.items():
        part, _, field = name.partition("__")
        setattr(getattr(config, f"{part}_config"), field, value)
    settings = {"image_processor_type": "Qwen2VLImageProcessor", "size": {"shortest_edge": 3136, "longest_edge": 99999}}
    Qwen2_5VLAdapter.describe(config, settings, ImageOptions())


def test_unusual_configurations_are_refused() -> None:
    described()
    with pytest.raises(ModelError, match="cuts patches"):
        described(vision__patch_size=16)
    with pytest.raises(ModelError, match="use_sliding_window"):
        described(text__layer_types=["full_attention"] * 35 + ["sliding_attention"])
    with pytest.raises(ModelError, match="'dynamic'"):
        described(text__rope_parameters={"rope_type": "dynamic", "rope_theta": 1e6})
    with pytest.raises(ModelError, match=r"mrope_section \[1, 1, 1\] of config.json does not share out the \d+"):
        described(text__rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 1]})
