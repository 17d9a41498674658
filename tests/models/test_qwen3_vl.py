"""Qwen3-VL: what selectors read is the tower's own, what is carried and what experts compute is the model's own."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.qwen3_vl import modeling_qwen3_vl

from tests.models.families import Case, Checkpoints, compressed, pictures, prompts_of
from vtc.compressed.readings import read_tokens
from vtc.errors import InputError, ModelError
from vtc.facts.layout import ImageOptions
from vtc.models import load_adapter, read_facts
from vtc.models.base import VLMAdapter
from vtc.plan import plan
from vtc.recipe import Recipe
from vtc.recipe.needs import Reading, ReadingKind


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("qwen3"))


def own_tower(adapter: VLMAdapter, pixels: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of one image, by `transformers` itself: each layer's input (n, D), keys (H, n, Dh) and attention (H, n, n)."""
    tower: Any = adapter.model.model.visual
    plain = modeling_qwen3_vl.eager_attention_forward
    inputs, seen = [], []

    def spied(module: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        output, weights = plain(module, query, key, *args, **kwargs)
        seen.append((key[0], weights[0]))
        return output, weights

    hooks = [block.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for block in tower.blocks]
    adapter.model.set_attn_implementation({"vision_config": "eager"})
    try:
        with torch.inference_mode(), patch.object(modeling_qwen3_vl, "eager_attention_forward", spied):
            tower(pixels[0], grid_thw=torch.tensor([adapter.pixels.patch_grid]))
    finally:
        adapter.model.set_attn_implementation({"vision_config": "sdpa"})
        for hook in hooks:
            hook.remove()
    return [(hidden, *maps) for hidden, maps in zip(inputs, seen, strict=True)]


@pytest.mark.parametrize(
    "case", [Case("qwen3_vl"), Case("qwen3_vl", "portrait", ImageOptions(image_size=(150, 70)))], ids=str
)
def test_readings_are_the_models_own(checkpoints: Checkpoints, case: Case) -> None:
    adapter = checkpoints.adapter(case)
    layers = own_tower(adapter, adapter.preprocess(pictures(adapter, 1)))
    assert len(layers) == adapter.facts.encoder.layers
    for layer, (hidden, keys, attention) in enumerate(layers):
        mean = attention.mean(dim=0)
        tokens = mean.shape[0] // 4  # the four patches of a token stand together
        full = keys.transpose(0, 1).flatten(1)
        expected: dict[ReadingKind, Tensor] = {
            "received_attention": mean.mean(dim=0).reshape(tokens, 4).mean(dim=1),
            "patch_attention": mean.reshape(tokens, 4, tokens, 4).mean(dim=(1, 3)),
            "full_keys": full.reshape(tokens, 4, -1).mean(dim=1),
            "keys": keys.mean(dim=0).reshape(tokens, 4, -1).mean(dim=1),
        }
        for kind, own in expected.items():
            with torch.inference_mode():
                [ours] = read_tokens(adapter, Reading(kind, layer), hidden.unsqueeze(0))
            torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-4)


def test_each_pair_of_frames_is_a_run_with_its_seconds(checkpoints: Checkpoints) -> None:
    adapter = checkpoints.adapter(Case("qwen3_vl", "clip", ImageOptions(image_size=(96, 128), frames=5)))
    assert adapter.facts.layout.spans == 3
    assert list(adapter.prompt_parts) == [
        "<0.2 seconds><|vision_start|>",
        "<|vision_end|><1.2 seconds><|vision_start|>",
        "<|vision_end|><2.0 seconds><|vision_start|>",
        "<|vision_end|>",
    ]


def test_seconds_follow_the_rate_of_the_settings(checkpoints: Checkpoints, tmp_path: Path) -> None:
    path = shutil.copytree(checkpoints.path("qwen3_vl"), tmp_path / "model")
    file = path / "video_preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fps": 0.5}))
    adapter = load_adapter(path, ImageOptions(image_size=(96, 128), frames=4))
    assert [part.rpartition("<|vision_start|>")[0][-13:] for part in adapter.prompt_parts[:2]] == [
        "<1.0 seconds>",
        "<5.0 seconds>",
    ]


def test_carried_features_are_the_deepstack_features(checkpoints: Checkpoints) -> None:
    adapter = checkpoints.adapter(Case("qwen3_vl"))
    pixels = adapter.preprocess(pictures(adapter, 1))
    tower: Any = adapter.model.model.visual
    with torch.inference_mode():
        own = tower(pixels[0], grid_thw=torch.tensor([adapter.pixels.patch_grid]), return_dict=True)
        [features], _ = compressed(adapter).vision(pixels)
        [pruned], [kept] = compressed(adapter, {"kind": "prune", "keep": 5, "selector": "divprune"}).vision(pixels)
    expected = torch.cat([own.pooler_output, *own.deepstack_features], dim=-1)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pruned, expected[kept], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("selector", ["hiprune", "divprune"])
def test_exact_count_covers_readings_and_carried_features(checkpoints: Checkpoints, selector: str) -> None:
    """HiPrune reads attention of several layers; DivPrune looks at all tokens projected, without what they carry."""
    adapter = checkpoints.adapter(Case("qwen3_vl"))
    stages = [{"kind": "prune", "keep": 6, "selector": selector}]
    model = compressed(adapter, *stages)
    ids, mask, pixels = model.inputs(*prompts_of(adapter, "one"))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        model.prefill(ids, mask, pixels)
    recipe = Recipe.model_validate({"version": 1, "name": "test", "stages": stages})
    text = int((ids != adapter.image_token_id).sum())
    assert plan(recipe, adapter.facts, text_tokens=text).flops["exact"] == counter.get_total_flops()


def test_every_expert_computes_what_the_chosen_do(checkpoints: Checkpoints) -> None:
    adapter = checkpoints.adapter(Case("qwen3_vl_moe"))
    model = compressed(adapter)
    inputs = model.inputs(*prompts_of(adapter, "batch"))
    with torch.inference_mode():
        own, _ = model.prefill(*inputs)
        adapter.set_decoder_attention("grouped")
        try:
            ours, _ = model.prefill(*inputs)
        finally:
            adapter.set_decoder_attention("sdpa")
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-5)


def test_pytorch_computes_no_other_experts_than_the_chosen(checkpoints: Checkpoints) -> None:
    mixture: Any = copy.deepcopy(checkpoints.adapter(Case("qwen3_vl_moe")).decoder_layers[0].mlp)
    assert mixture.experts.config._experts_implementation == "grouped_mm"
    hidden = torch.randn(1, 1, mixture.gate.hidden_dim, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = mixture(hidden)
        _, _, chosen = mixture.gate(hidden)
        idle = [number for number in range(mixture.experts.num_experts) if number not in chosen]
        assert idle
        mixture.experts.gate_up_proj[idle] = mixture.experts.down_proj[idle] = torch.nan
        torch.testing.assert_close(mixture(hidden), wanted)


@pytest.mark.parametrize(
    ("family", "part", "field", "value", "message"),
    [
        ("qwen3_vl", "vision_config", "deepstack_visual_indexes", [2, 0], "ascending"),
        ("qwen3_vl", "vision_config", "deepstack_visual_indexes", [0, 4], "ascending"),
        ("qwen3_vl", "vision_config", "patch_size", 14, "patches"),
        ("qwen3_vl", "text_config", "rope_parameters", {"rope_type": "dynamic", "factor": 2.0}, "dynamic"),
        ("qwen3_vl_moe", "text_config", "decoder_sparse_step", 2, "all layers"),
        ("qwen3_vl_moe", "text_config", "mlp_only_layers", [1], "all layers"),
    ],
)
def test_what_is_not_followed_is_refused(
    checkpoints: Checkpoints, tmp_path: Path, family: str, part: str, field: str, value: Any, message: str
) -> None:
    path = shutil.copytree(checkpoints.path(family), tmp_path / family)
    config = json.loads((path / "config.json").read_text())
    config[part][field] = value
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        read_facts(path)


def test_what_cannot_be_served_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    path = shutil.copytree(checkpoints.path("qwen3_vl"), tmp_path / "model")
    with pytest.raises(InputError, match="--tiles"):
        read_facts(path, ImageOptions(tiles=(2, 2)))
    with pytest.raises(ModelError, match="200 times"):
        read_facts(path, ImageOptions(image_size=(10, 4000)))
    (path / "video_preprocessor_config.json").unlink()
    (path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="ships no video processor settings"):
        read_facts(path, ImageOptions(frames=4))
