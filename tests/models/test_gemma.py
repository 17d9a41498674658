"""What is particular to PaliGemma and Gemma 3: caps, prefixes, windows, crops, what their processors write."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.models.gemma3.modeling_gemma3 import create_masks_for_vision_model

from exporters.onnx import ExportRequest, export
from tests.models.families import Prompts, compressed, masked_logits, prompts_of
from tests.models.own import own_generate, own_inputs, own_logits, own_model, own_processor
from tests.tiny import image
from vtc.compressed.checkpoint import Origin
from vtc.compressed.decoder import attention_bias
from vtc.compressed.vision_encoder import VisionEncoder
from vtc.data.samples import samples_from
from vtc.errors import InputError, ModelError
from vtc.facts.layout import ImageOptions
from vtc.models import load_adapter, read_facts
from vtc.models.base import VLMAdapter
from vtc.models.random.tiny_families import TINY_FAMILIES, write_tiny
from vtc.recipe import Recipe
from vtc.recipe.needs import Needs, Reading
from vtc.runtime.vlm import VLM

KINDS = ["paligemma", "gemma3"]
PRUNE = {"kind": "prune", "keep": 3, "selector": "uniform"}
CROPS = {"pan_and_scan_min_crop_size": 28, "do_pan_and_scan": True}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("gemma")
    return {kind: write_tiny(kind, root / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def cropping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_crops(write_tiny("gemma3", tmp_path_factory.mktemp("crops") / "gemma3"))


def with_crops(path: Path) -> Path:
    """A Gemma 3 whose processor is asked to crop images that are not square."""
    own = own_processor(path)
    own.images_kwargs = own.images_kwargs | CROPS
    return path


def to_export(kind: str, path: Path) -> Path:
    """A checkpoint of few layers, as the time of an export goes by them."""
    return write_tiny(kind, path, encoder_layers=2, decoder_layers=4)


def rewrite(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def same_logits(adapter: VLMAdapter, asked: Prompts) -> None:
    """The null recipe's token ids and logits are the model's own."""
    inputs = own_inputs(adapter.path, *asked)
    ids, mask, pixels = compressed(adapter).inputs(*asked)
    assert ids.tolist() == inputs["input_ids"].tolist()
    with torch.inference_mode():
        ours, _ = compressed(adapter).prefill(ids, mask, pixels)
    torch.testing.assert_close(ours[:, -1], own_logits(adapter.path, inputs)[:, -1], atol=1e-5, rtol=1e-5)


# Attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_readings_are_the_towers_own_attention(paths: dict[str, Path], kind: str) -> None:
    adapter = load_adapter(paths[kind])
    pixels = adapter.preprocess([image(0), image(1)])
    tower: Any = adapter.model.model.vision_tower
    adapter.model.set_attn_implementation({"vision_config": "eager"})
    with torch.inference_mode():
        own = tower(pixels[:, 0] if pixels.dim() == 5 else pixels, output_attentions=True, output_hidden_states=True)
    adapter.model.set_attn_implementation({"vision_config": "sdpa"})
    readings = [Reading("received_attention", 1), Reading("full_keys", 2), Reading("patch_attention", 2)]
    with torch.inference_mode():
        tokens = VisionEncoder(adapter, range(4), needs=Needs(frozenset(readings))).tokens(pixels)
        keys = tower.encoder.layers[2].self_attn.k_proj(tower.encoder.layers[2].layer_norm1(own.hidden_states[2]))
    merge = adapter.facts.encoder.merge
    side = 4 // merge

    def pooled(values: torch.Tensor) -> torch.Tensor:  # (B, 16, D) by token
        return values.reshape(2, side, merge, side, merge, -1).mean(dim=(2, 4)).reshape(2, side**2, -1)

    received = pooled(own.attentions[1].mean(dim=(1, 2)).unsqueeze(-1))[..., 0]
    between = pooled(pooled(own.attentions[2].mean(dim=1)).transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(tokens.readings[Reading("received_attention", 1)], received, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokens.readings[Reading("patch_attention", 2)], between, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokens.readings[Reading("full_keys", 2)], pooled(keys), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokens.features, pooled(own.last_hidden_state), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_and_blocks_combine_as_in_transformers(paths: dict[str, Path], kind: str) -> None:
    config = own_model(paths[kind]).config.text_config
    config.sliding_window = 3
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1, 1], [1] * 10])
    image_blocks = torch.tensor([[-1, -1, -1, 0, 0, 0, 0, 0, -1, -1], [-1, 0, 0, 0, 0, 0, -1, 1, 1, -1]])
    blocks = image_blocks if kind == "gemma3" else torch.where(mask == 1, 0, -1)
    hidden = torch.zeros(2, 10, 8)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    common = {"config": config, "inputs_embeds": hidden, "attention_mask": mask, "past_key_values": None}
    common |= {"position_ids": None, "block_sequence_ids": blocks}
    if kind == "gemma3":
        theirs = create_masks_for_vision_model(**common)["sliding_attention"]
    else:
        theirs = create_sliding_window_causal_mask(**common)
    facts = read_facts(paths[kind]).decoder
    ours = attention_bias(mask, hidden, blocks, places, 3, beyond=facts.blocks_beyond_window)
    real = mask.bool()[:, None, :, None].expand_as(ours)
    assert ((ours == 0) == (theirs == 0))[real].all()


def test_a_prompt_sees_beyond_windows_in_the_decoders_selectors(paths: dict[str, Path]) -> None:
    adapter = load_adapter(paths["paligemma"])
    model = compressed(adapter, {"kind": "prune_in_decoder", "layer": 2, "keep": 4})
    assert 2 in adapter.facts.decoder.window_layers
    tower = adapter.model.model.language_model
    ids, mask, pixels = model.inputs(*prompts_of(adapter, "one"))
    adapter.set_decoder_attention("eager")
    maps: list[torch.Tensor] = []
    hook = tower.layers[2].self_attn.register_forward_hook(lambda *all: maps.append(all[2][1]))
    with torch.inference_mode():
        compressed(adapter).prefill(ids, mask, pixels)
        hook.remove()
        _, state = model.prefill(ids, mask, pixels)
    adapter.set_decoder_attention("sdpa")
    visual = ids[0] == adapter.image_token_id
    after = int(visual.nonzero()[-1]) + 1
    score = maps[0][0].mean(dim=0)[after:, visual].mean(dim=0)
    assert state.kept[1][0].tolist() == score.topk(4).indices.sort().values.tolist()


@pytest.mark.parametrize("kind", ["grouped", "sdpa"])
def test_scores_are_capped_whatever_computes_them(paths: dict[str, Path], kind: Any) -> None:
    adapter = load_adapter(paths["paligemma"])
    adapter.set_decoder_attention(kind)
    same_logits(adapter, prompts_of(adapter, "one"))
    layer = adapter.decoder_layers[0].self_attn
    assert layer.attn_logit_softcapping == 1.0


# Prompts ----------------------------------------------------------------------------------------------------------


def test_paligemma_without_a_template_has_images_and_text(paths: dict[str, Path], tmp_path: Path) -> None:
    path = write_tiny("paligemma", tmp_path / "model")
    (path / "chat_template.jinja").unlink()
    adapter = load_adapter(path)
    assert adapter.tokenizer.chat_template is None
    assert adapter.chat("what is red ?", 2) == "<image><image>what is red ?"


def test_a_prompt_without_images_begins_with_the_start_token(paths: dict[str, Path]) -> None:
    adapter = load_adapter(paths["paligemma"])
    ids, _ = adapter.tokenize(["what is red ?"], [0], 16)
    expected = adapter.tokenizer("<s>what is red ?\n", add_special_tokens=False)["input_ids"]
    assert ids[0].tolist() == expected
    assert expected[0] == adapter.tokenizer.bos_token_id


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_processor_of_a_bundle_writes_the_kept_tokens(kind: str, tmp_path: Path) -> None:
    adapter = load_adapter(to_export(kind, tmp_path / "model"))
    model = compressed(adapter, PRUNE)
    recipe = Recipe.model_validate({"version": 1, "name": "test", "stages": [PRUNE]})
    samples = samples_from(adapter, None, 1, seed=0)
    export(ExportRequest([model], recipe, Origin(str(adapter.path), "0" * 64), samples), tmp_path / "bundle")
    images, prompts = prompts_of(adapter, "batch")
    bundle = VLM.load(tmp_path / "bundle", provider="cpu", threads=1)
    _, batch = bundle.inputs(images, prompts)
    load: Any = AutoProcessor.from_pretrained
    theirs = load(tmp_path / "bundle", local_files_only=True)(images, prompts, padding=True)["input_ids"]
    assert batch.input_ids.tolist() == theirs == model.inputs(images, prompts)[0].tolist()


# Configurations ---------------------------------------------------------------------------------------------------


def test_gemma_of_the_first_generation_decodes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = TINY_FAMILIES["paligemma"](4, 4)
    newer = {"sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"}
    text = {name: value for name, value in family.text.items() if name not in newer} | {"model_type": "gemma"}
    row = replace(family, text=text)
    monkeypatch.setitem(TINY_FAMILIES, "paligemma", lambda *_: row)
    adapter = load_adapter(write_tiny("paligemma", tmp_path / "model"))
    assert adapter.facts.decoder.window == 0
    asked = prompts_of(adapter, "batch")
    same_logits(adapter, asked)
    theirs = own_generate(adapter.path, own_inputs(adapter.path, *asked), 8)
    assert [answer.token_ids for answer in compressed(adapter).generate(*asked, 8)] == theirs


def test_placeholder_may_lie_beyond_the_embeddings(tmp_path: Path) -> None:
    path = write_tiny("gemma3", tmp_path / "model")
    model = own_model(path)
    model.resize_token_embeddings(model.config.image_token_id)
    model.save_pretrained(path)
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [one for one in tokenizer["added_tokens"] if one["id"] <= model.config.image_token_id]
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    adapter = load_adapter(path)
    assert adapter.facts.decoder.vocab == adapter.image_token_id
    same_logits(adapter, ([[image(0)]], ["look <start_of_image> what is red ?"]))


def test_what_cannot_be_served_is_refused(paths: dict[str, Path], tmp_path: Path) -> None:
    for kind, image_options in [
        ("paligemma", ImageOptions(tiles=(1, 2))),
        ("paligemma", ImageOptions(frames=4)),
        ("gemma3", ImageOptions(frames=4)),
    ]:
        with pytest.raises(InputError, match="leave out"):
            read_facts(paths[kind], image_options)
    with pytest.raises(ModelError, match="one row or one column of crops"):
        read_facts(paths["gemma3"], ImageOptions(tiles=(2, 2)))
    path = write_tiny("gemma3", tmp_path / "gemma3")
    rewrite(path / "config.json", mm_tokens_per_image=9)
    with pytest.raises(ModelError, match="squares of a number that divides the 4 patches"):
        read_facts(path)
    rewrite(path / "config.json", mm_tokens_per_image=4)
    text = json.loads((path / "config.json").read_text())["text_config"]
    rewrite(path / "config.json", text_config=text | {"attn_logit_softcapping": 50.0})
    with pytest.raises(ModelError, match="attn_logit_softcapping is not supported"):
        read_facts(path)


# Pan and scan -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one", "two", "middle", "batch"])
@pytest.mark.parametrize("tiles", [(1, 2), (3, 1)])
def test_crops_are_runs_of_their_own(cropping: Path, tiles: tuple[int, int], kind: str) -> None:
    adapter = load_adapter(cropping, ImageOptions(tiles=tiles))
    assert adapter.facts.layout.spans == 1 + max(tiles)
    same_logits(adapter, prompts_of(adapter, kind))


def test_no_crops_are_made_as_settings_say(tmp_path: Path) -> None:
    """The processor's class says that there are none, which holds over what the checkpoint says."""
    path = write_tiny("gemma3", tmp_path / "gemma3")
    rewrite(path / "preprocessor_config.json", **CROPS)
    adapter = load_adapter(path, ImageOptions(image_size=(170, 60)))
    assert adapter.facts.layout.spans == 1
    same_logits(adapter, prompts_of(adapter, "one"))


def test_square_images_have_no_crops(cropping: Path) -> None:
    adapter = load_adapter(cropping)
    assert adapter.facts.layout.spans == 1
    same_logits(adapter, prompts_of(adapter, "two"))


@pytest.mark.parametrize("stage", [PRUNE | {"positions": "original"}, {"kind": "visual_exit", "layer": 3}])
def test_crops_are_pruned_alike(cropping: Path, stage: dict[str, Any]) -> None:
    adapter = load_adapter(cropping, ImageOptions(tiles=(1, 2)))
    each = {**stage, "keep": 6} if "keep" in stage else stage
    model = compressed(adapter, each, {"kind": "prune_in_decoder", "layer": 1, "keep": 0.5})
    asked = prompts_of(adapter, "two")
    with torch.inference_mode():
        ours, _ = model.prefill(*model.inputs(*asked))
    torch.testing.assert_close(ours[:, -1], masked_logits(model, asked), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_crops_export(tmp_path: Path) -> None:
    adapter = load_adapter(with_crops(to_export("gemma3", tmp_path / "model")), ImageOptions(tiles=(1, 2)))
    stages = [{**PRUNE, "keep": 6}, {"kind": "prune_in_decoder", "layer": 2, "keep": 0.5}]
    model = compressed(adapter, *stages)
    recipe = Recipe.model_validate({"version": 1, "name": "test", "stages": stages})
    samples = samples_from(adapter, None, 2, seed=0)
    parity = export(ExportRequest([model], recipe, Origin(str(adapter.path), "0" * 64), samples), tmp_path / "bundle")
    assert parity["fp32"].greedy_match == parity["fp32"].indices_equal == 1.0
    images, prompts = prompts_of(adapter, "batch")
    bundle = VLM.load(tmp_path / "bundle", provider="cpu", threads=1)
    ours = [answer.token_ids for answer in model.generate(images, prompts, 8)]
    assert [list(answer.token_ids) for answer in bundle.generate(images, prompts, 8)] == ours


@pytest.mark.parametrize("number", [10**12, 99999, -1, None])
def test_a_token_that_the_tokenizer_has_not_is_refused(tmp_path: Path, number: int | None) -> None:
    path = write_tiny("gemma3", tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"boi_token_index": number}))
    with pytest.raises(ModelError, match=f"config.json names token {number}, which the tokenizer has not"):
        load_adapter(path)
