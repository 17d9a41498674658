"""Idefics3 and SmolVLM's images: what selectors read of the tower, where patches are told to stand, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Idefics3Config, Idefics3ForConditionalGeneration

from tests.models.families import Case, Checkpoints, compressed, pictures
from tests.models.own import own_processor
from vtc.compressed.vision_encoder import VisionEncoder
from vtc.errors import InputError, ModelError, RecipeError
from vtc.facts.layout import ImageOptions
from vtc.inputs.pixels import Picture, PixelSpec
from vtc.models import read_facts
from vtc.models.base import VLMAdapter
from vtc.models.idefics3 import Idefics3Adapter
from vtc.models.random.tiny_families import write_tiny
from vtc.recipe.needs import Needs, Reading, ReadingKind

LAYERS = (0, 1, 2, 3)
SIDE, MERGE = 4, 2
"""Patches along an edge of a view, and of a token."""
FAMILIES = ["idefics3", "smolvlm"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("idefics3"))


def own_maps(adapter: VLMAdapter, views: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Attention maps (V, H, n, n) and inputs of the tower's layers for views (V, 3, H, W), by `transformers` itself."""
    tower: Any = adapter.model.model.vision_model
    maps: list[Tensor] = []
    inputs: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for layer in tower.encoder.layers
    ]
    hooks += [
        layer.self_attn.register_forward_hook(lambda *call: maps.append(call[-1][1])) for layer in tower.encoder.layers
    ]
    adapter.model.set_attn_implementation({"vision_config": "eager"})
    try:
        with torch.inference_mode():
            tower(views)
    finally:
        adapter.model.set_attn_implementation({"vision_config": "sdpa"})
        for hook in hooks:
            hook.remove()
    return maps, inputs


def by_token(values: Tensor) -> Tensor:
    """Means (views, N, ...) over each token's patches, of values (views, n, ...)."""
    squares = values.reshape(-1, SIDE // MERGE, MERGE, SIDE // MERGE, MERGE, *values.shape[2:])
    return squares.mean(dim=(2, 4)).flatten(1, 2)


@pytest.mark.parametrize("kind", ["received_attention", "patch_attention", "keys"])
@pytest.mark.parametrize("family", FAMILIES)
def test_readings_are_the_models_own(checkpoints: Checkpoints, family: str, kind: ReadingKind) -> None:
    adapter = checkpoints.adapter(Case(family))
    pixels = adapter.preprocess(pictures(adapter, 2))
    maps, inputs = own_maps(adapter, pixels.flatten(0, 1))
    with torch.inference_mode():
        needs = Needs(frozenset(Reading(kind, layer) for layer in LAYERS))
        tokens = VisionEncoder(adapter, LAYERS, needs=needs).tokens(pixels)
        for layer in LAYERS:
            own_layer = adapter.model.model.vision_model.encoder.layers[layer]
            keys = own_layer.self_attn.k_proj(own_layer.layer_norm1(inputs[layer]))
            mean = maps[layer].mean(dim=1)
            expected = {
                "received_attention": by_token(mean.mean(dim=1)),
                "patch_attention": by_token(by_token(mean).transpose(1, 2)).transpose(1, 2),
                "keys": by_token(keys.unflatten(-1, (adapter.facts.encoder.heads, -1)).mean(dim=2)),
            }[kind]
            torch.testing.assert_close(tokens.readings[Reading(kind, layer)], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_is_made_of_patches_in_the_models_order(checkpoints: Checkpoints, family: str) -> None:
    adapter = checkpoints.adapter(Case(family))
    patches = torch.randn(2, SIDE**2, 3)
    shuffled = adapter.model.model.connector.pixel_shuffle(patches, MERGE)
    assert torch.equal(adapter.cells(patches).flatten(2), shuffled)


@pytest.mark.parametrize("side", [19, 25, 26, 32, 41])
def test_patches_stand_where_the_model_puts_them(checkpoints: Checkpoints, side: int) -> None:
    """Rounding puts some of them a row off, at 19, 25 and 41 patches along an edge."""
    adapter = checkpoints.adapter(Case("idefics3"))
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Idefics3Config(
        vision_config=sizes | {"image_size": side, "patch_size": 1},
        text_config=sizes | {"model_type": "llama", "vocab_size": 8, "num_key_value_heads": 1},
        image_token_id=1,
        scale_factor=1,
    )
    pixels = PixelSpec((Picture(resize=((side, side),)),), mean=(0.0,) * 3, std=(1.0,) * 3)  # type: ignore[arg-type]
    own: Any = Idefics3ForConditionalGeneration(config)
    ours = Idefics3Adapter(adapter.path, adapter.facts, pixels, own, adapter.tokenizer)
    view = torch.rand(1, 3, side, side)
    _, [seen] = own_maps(ours, view)
    torch.testing.assert_close(ours.embed_patches(view), seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_text_stands_between_the_tiles_as_the_processor_writes_it(checkpoints: Checkpoints, family: str) -> None:
    adapter = checkpoints.adapter(Case(family))
    [rows, columns] = adapter.pixels.pictures[0].tiles
    processor = own_processor(adapter.path)
    written = processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0)
    assert (adapter.image_token * adapter.facts.visual_tokens).join(adapter.prompt_parts) == written


@pytest.mark.parametrize("family", FAMILIES)
def test_tiles_share_what_is_kept_equally(checkpoints: Checkpoints, family: str) -> None:
    adapter = checkpoints.adapter(Case(family))
    spans = adapter.facts.layout.spans
    stage = {"kind": "prune", "selector": "uniform"}
    assert compressed(adapter, stage | {"keep": 3 * spans}).keep_per_span == 3
    with pytest.raises(RecipeError, match=f"cannot be shared equally by the {spans} tiles of an image"):
        compressed(adapter, stage | {"keep": 3 * spans - 1})
    assert adapter.placeholder_settings(3) == {"image_seq_len": 3}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"scale_factor": 3}, "do not divide into tokens of 3 x 3 patches"),
        ({"text_config": {"model_type": "qwen2"}}, "supported: idefics3_vision or idefics3 with llama"),
    ],
)
def test_other_configurations_are_refused(tmp_path: Path, options: dict[str, Any], problem: str) -> None:
    path = write_tiny("idefics3", tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    for name, value in options.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=problem) as caught:
        read_facts(path)
    assert "\n" not in str(caught.value)


def test_clips_are_refused(checkpoints: Checkpoints) -> None:
    with pytest.raises(InputError, match="Idefics3 takes no clips; leave out --frames"):
        read_facts(checkpoints.path("idefics3"), ImageOptions(frames=4))


def test_more_tiles_than_have_names_are_refused(checkpoints: Checkpoints) -> None:
    path = checkpoints.path("idefics3")
    assert read_facts(path, ImageOptions(tiles=(1, 6))).layout.spans == 7
    with pytest.raises(InputError, match="at most 6 rows and columns of tiles"):
        read_facts(path, ImageOptions(tiles=(1, 7)))
