"""InternVL: what selectors read of the tower, options of checkpoints, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.models.families import Case, Checkpoints, compressed, pictures, prompts_of
from tests.models.own import own_inputs, own_logits, own_processor
from vtc.compressed.readings import read
from vtc.compressed.vision_encoder import VisionEncoder
from vtc.errors import InputError, ModelError
from vtc.facts.layout import ImageOptions
from vtc.models import load_adapter, read_facts
from vtc.models.base import VLMAdapter
from vtc.models.random.tiny_families import write_tiny
from vtc.recipe.needs import Needs, Reading, ReadingKind

LAYERS = (0, 1, 2, 3)
SIDE, MERGE = 4, 2
"""Patches along an edge of a view, and of a token."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("internvl"))


@pytest.fixture(scope="module")
def adapter(checkpoints: Checkpoints) -> VLMAdapter:
    """For two tiles and a thumbnail."""
    return checkpoints.adapter(Case("internvl"))


def own_maps(adapter: VLMAdapter, pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The tower's attention maps (V, H, 1 + n, 1 + n) and the inputs of its layers, by `transformers` itself."""
    tower: Any = adapter.model.model.vision_tower
    adapter.model.set_attn_implementation({"vision_config": "eager"})
    try:
        with torch.inference_mode():
            output = tower(pixels.flatten(0, 1), output_attentions=True, output_hidden_states=True)
    finally:
        adapter.model.set_attn_implementation({"vision_config": "sdpa"})
    return list(output.attentions), list(output.hidden_states)


def by_token(values: Tensor) -> Tensor:
    """Means (images, tokens of all views, ...) over each token's patches, of values (views, n, ...)."""
    rest = values.shape[2:]
    squares = values.reshape(-1, SIDE // MERGE, MERGE, SIDE // MERGE, MERGE, *rest)
    means = squares.mean(dim=(2, 4)).flatten(1, 2)
    return means.reshape(-1, 3 * means.shape[1], *rest)


@pytest.mark.parametrize("kind", ["cls_attention", "received_attention", "keys"])
def test_readings_are_the_models_own(adapter: VLMAdapter, kind: ReadingKind) -> None:
    pixels = adapter.preprocess(pictures(adapter, 2))
    maps, inputs = own_maps(adapter, pixels)
    with torch.inference_mode():
        needs = Needs(frozenset(Reading(kind, layer) for layer in LAYERS))
        tokens = VisionEncoder(adapter, LAYERS, needs=needs).tokens(pixels)
        for layer in LAYERS:
            attention = adapter.model.model.vision_tower.encoder.layer[layer]
            keys = attention.attention.k_proj(attention.layernorm_before(inputs[layer]))
            own = {
                "cls_attention": maps[layer].mean(dim=1)[:, 0, 1:],
                "received_attention": maps[layer].mean(dim=(1, 2))[:, 1:],
                "keys": keys.unflatten(-1, (adapter.facts.encoder.heads, -1)).mean(dim=2)[:, 1:],
            }[kind]
            torch.testing.assert_close(tokens.readings[Reading(kind, layer)], by_token(own), atol=1e-5, rtol=1e-4)


def test_states_of_a_token_are_those_of_its_patches_end_to_end(adapter: VLMAdapter) -> None:
    pixels = adapter.preprocess(pictures(adapter, 2))
    _, inputs = own_maps(adapter, pixels)
    states, summary = Reading("hidden_states", 1), Reading("cls_state", 1)
    with torch.inference_mode():
        tokens = VisionEncoder(adapter, LAYERS, needs=Needs(frozenset({states, summary}))).tokens(pixels)
    squares = inputs[1][:, 1:].reshape(-1, SIDE // MERGE, MERGE, SIDE // MERGE, MERGE, inputs[1].shape[-1])
    expected = squares.transpose(2, 3).flatten(3).reshape(tokens.features.shape)
    torch.testing.assert_close(tokens.readings[states], expected)
    torch.testing.assert_close(tokens.readings[summary], inputs[1][:, 0].unflatten(0, (2, 3)).mean(dim=1))


def test_a_token_is_made_of_patches_in_the_models_order(adapter: VLMAdapter) -> None:
    grid = torch.randn(2, SIDE, SIDE, 3)
    with torch.inference_mode():
        shuffled = adapter.model.model.pixel_shuffle(grid, scale_factor=1 / MERGE)
    ours = adapter.cells(grid.flatten(1, 2)).flatten(2)
    assert torch.equal(ours, shuffled.flatten(1, 2))


def changed(path: Path, source: Path, **options: Any) -> Path:
    """A checkpoint of other weights, with these fields of its configuration and of the two within it."""
    path.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (path / file.name).write_bytes(file.read_bytes())
    config = json.loads((path / "config.json").read_text())
    for name, value in options.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    (path / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    build: Any = AutoModelForImageTextToText.from_config
    model = build(AutoConfig.from_pretrained(path))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.generation_config.eos_token_id = config["text_config"]["eos_token_id"]
    model.save_pretrained(path)
    return path


OPTIONS: dict[str, dict[str, Any]] = {
    "norms of queries and keys": {"vision_config": {"use_qk_norm": True, "norm_type": "rms_norm"}},
    "a norm after the last layer": {"vision_config": {"use_mean_pooling": False}},
    "features of an earlier layer": {"vision_feature_layer": -2, "vision_config": {"use_mean_pooling": False}},
    "Qwen3 decoder": {"text_config": {"model_type": "qwen3", "head_dim": 16}},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_checkpoints_are_followed(checkpoints: Checkpoints, tmp_path: Path, name: str) -> None:
    path = changed(tmp_path / "model", checkpoints.path("internvl"), **OPTIONS[name])
    adapter = load_adapter(path)
    asked = prompts_of(adapter, "one")
    with torch.inference_mode():
        ours, _ = compressed(adapter).prefill(*compressed(adapter).inputs(*asked))
    own = own_logits(path, own_inputs(path, *asked))[:, -1]
    torch.testing.assert_close(ours[:, -1], own, atol=1e-5, rtol=1e-5)
    pixels = adapter.preprocess(pictures(adapter, 1))
    maps, inputs = own_maps(adapter, pixels)
    received = read(adapter, Reading("received_attention", 1), inputs[1])
    torch.testing.assert_close(received, maps[1].mean(dim=(1, 2))[:, 1:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"vision_config": {"patch_size": [14, 28]}}, "supported: square patches"),
        ({"vision_config": {"patch_size": [8, 8]}}, "do not divide into tokens of 2 x 2 patches of 8 pixels"),
        ({"downsample_ratio": 0.4}, "1 divided by a whole number"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy 'default'"),
        ({"vision_feature_layer": [-1, -2]}, "only one vision_feature_layer"),
        ({"text_config": {"model_type": "gemma2"}}, "supported: internvl_vision with qwen2, qwen3"),
    ],
)
def test_other_configurations_are_refused(tmp_path: Path, options: dict[str, Any], problem: str) -> None:
    path = write_tiny("internvl", tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    for name, value in options.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=problem) as caught:
        read_facts(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layouts_that_are_not_served_are_refused(checkpoints: Checkpoints) -> None:
    path = checkpoints.path("internvl")
    with pytest.raises(ModelError, match=r"tiles \(3, 3\): the model takes 1 to 6 tiles"):
        read_facts(path, ImageOptions(tiles=(3, 3)))
    with pytest.raises(InputError, match="leave out --tiles or --frames"):
        read_facts(path, ImageOptions(tiles=(2, 2), frames=3))


def test_clips_need_no_settings_of_their_own(tmp_path: Path) -> None:
    path = write_tiny("internvl", tmp_path / "model")
    before = load_adapter(path, ImageOptions(frames=2))
    (path / "video_preprocessor_config.json").unlink()
    assert load_adapter(path, ImageOptions(frames=2)).pixels == before.pixels


def test_the_processor_can_be_told_of_fewer_tokens(adapter: VLMAdapter) -> None:
    assert adapter.placeholder_settings(9) == {"image_seq_length": 3}
    assert adapter.placeholder_settings(8) == {}  # which three views cannot share
    processor = own_processor(adapter.path)
    images, prompts = prompts_of(adapter, "one")
    kept, whole = processor.image_seq_length, int(adapter.facts.visual_tokens)
    processor.image_seq_length = adapter.placeholder_settings(9)["image_seq_length"]
    try:
        ids = own_inputs(adapter.path, images, prompts)["input_ids"]
    finally:
        processor.image_seq_length = kept
    assert int((ids == adapter.image_token_id).sum()) == 9 < whole
