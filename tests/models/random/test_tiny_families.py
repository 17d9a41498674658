"""Every family's tiny checkpoint looks like a real one and answers as one does, by the family's own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from tests.models.own import own_generate, own_inputs, own_logits, own_model, own_processor, own_prompt
from tests.tiny import image
from vtc.models.random.tiny_families import TINY_FAMILIES, write_tiny

WIDE, TALL, SMALL = (150, 90), (60, 130), (56, 56)
ONE_SIZE = ("paligemma", "gemma3")
VIDEOS = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "smolvlm")
Loaded = tuple[str, Path, Any]


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Each family's name, checkpoint and own model."""
    path = write_tiny(request.param, tmp_path_factory.mktemp("families") / request.param)
    return request.param, path, own_model(path)


def last(path: Path, model: Any, images: list[list[Image.Image]], prompts: list[str], frames: bool = False) -> Tensor:
    """Logits (B, V) after each prompt, which are finite."""
    logits = own_logits(model, own_inputs(path, images, prompts, frames))[:, -1]
    assert torch.isfinite(logits).all()
    return logits


def differ(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-2)


def read(path: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / name).read_text())
    return content


def test_looks_like_a_real_checkpoint(loaded: Loaded) -> None:
    kind, path, model = loaded
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja", "preprocessor_config.json"):
        assert (path / name).is_file()
    assert (path / "video_preprocessor_config.json").is_file() == (kind in (*VIDEOS, "internvl"))
    config = read(path, "config.json")
    assert config["model_type"] == kind
    assert config["architectures"] == [type(model).__name__]
    assert read(path, "preprocessor_config.json")["processor_class"] == type(own_processor(path)).__name__
    assert model.generation_config.eos_token_id == read(path, "generation_config.json")["eos_token_id"]
    for field, token in TINY_FAMILIES[kind](2, 2).ids.items():
        assert own_processor(path).tokenizer.encode(token, add_special_tokens=False) == [config[field]]


def test_loads_whole_by_its_own_class(loaded: Loaded) -> None:
    _, path, model = loaded
    load: Any = getattr(transformers, read(path, "config.json")["architectures"][0]).from_pretrained
    again, notes = load(path, output_loading_info=True)
    assert not any(notes[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), model.parameters(), strict=True))
    assert all(parameter.any() for parameter in again.parameters())


def test_processor_is_the_one_that_the_files_load_as(loaded: Loaded) -> None:
    _, path, _ = loaded
    if (path / "video_preprocessor_config.json").exists():
        pytest.skip("its video processor needs torchvision")
    load: Any = transformers.AutoProcessor.from_pretrained
    images, prompt = [[image(0, WIDE), image(1, SMALL)]], own_prompt(path, "what ?", images=2)
    theirs = load(path)(text=[prompt], images=images, return_tensors="pt")
    for name, value in own_inputs(path, images, [prompt]).items():
        assert torch.equal(value, theirs[name])


@pytest.mark.parametrize("kind", TINY_FAMILIES)
def test_depth_and_seed(kind: str, tmp_path: Path) -> None:
    paths = [
        write_tiny(kind, tmp_path / f"{seed}{copy}", encoder_layers=2, decoder_layers=3, seed=seed)
        for seed, copy in [(0, "a"), (0, "b"), (1, "a")]
    ]
    config = own_model(paths[0]).config
    assert config.vision_config.num_hidden_layers == 2
    assert config.text_config.num_hidden_layers == 3
    logits = [own_logits(path, own_inputs(path, [[image(0)]], [own_prompt(path, "what ?")])) for path in paths]
    assert torch.equal(logits[0], logits[1])
    assert differ(logits[0], logits[2])


def test_one_image(loaded: Loaded) -> None:
    _, path, model = loaded
    prompt = own_prompt(path, "what digit is red ?")
    logits = [last(path, model, [[image(seed, WIDE)]], [prompt]) for seed in (0, 1)]
    assert differ(*logits)
    assert 0.1 < float(logits[0].std()) < 10


def test_two_images_in_their_order(loaded: Loaded) -> None:
    _, path, model = loaded
    prompt = own_prompt(path, "is there a circle ?", images=2)
    first, second = image(0, WIDE), image(1, TALL)
    assert differ(last(path, model, [[first, second]], [prompt]), last(path, model, [[second, first]], [prompt]))


def test_image_in_the_middle_of_a_prompt(loaded: Loaded) -> None:
    kind, path, model = loaded
    place = TINY_FAMILIES[kind](2, 2).chat.image
    prompt = own_prompt(path, f"look here {place} what is it", images=0)
    assert differ(*(last(path, model, [[image(seed, TALL)]], [prompt]) for seed in (0, 1)))
    front = own_prompt(path, "look here what is it")
    assert differ(last(path, model, [[image(0, TALL)]], [prompt]), last(path, model, [[image(0, TALL)]], [front]))


def test_batch_answers_as_its_rows(loaded: Loaded) -> None:
    _, path, model = loaded
    images = [[image(0, SMALL)], [image(1, WIDE)], [image(2, TALL)]]
    prompts = [own_prompt(path, text) for text in ("how many ?", "what digit is red ?", "is there a circle there ?")]
    together = last(path, model, images, prompts)
    alone = [last(path, model, [row], [prompt]) for row, prompt in zip(images, prompts, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-4)


def test_text_alone_beside_images(loaded: Loaded) -> None:
    kind, path, model = loaded
    if kind == "paligemma":
        pytest.skip("its processor takes no prompt without an image")
    images = [[image(0, WIDE), image(1, TALL)], []]
    prompts = [own_prompt(path, "what digit is red ?", images=2), own_prompt(path, "how many ?", images=0)]
    together = last(path, model, images, prompts)
    alone = [last(path, model, [row], [prompt]) for row, prompt in zip(images, prompts, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-4)


def test_generates_greedily(loaded: Loaded) -> None:
    _, path, model = loaded
    inputs = own_inputs(path, [[image(0, WIDE)], [image(1, SMALL)]], [own_prompt(path, t) for t in ("what ?", "is it")])
    rows = own_generate(model, inputs, max_new_tokens=4)
    ends = torch.as_tensor(model.generation_config.eos_token_id).flatten().tolist()
    for row, token in zip(rows, own_logits(model, inputs)[:, -1].argmax(-1).tolist(), strict=True):
        assert row[:1] == ([] if token in ends else [token])


def visual_tokens(path: Path, *size: tuple[int, int]) -> int:
    """Placeholders that images of these sizes become."""
    inputs = own_inputs(path, [[image(0, one) for one in size]], [own_prompt(path, "what ?", images=len(size))])
    config = own_model(path).config
    return int((inputs["input_ids"] == config.image_token_id).sum())


def test_sizes(loaded: Loaded) -> None:
    kind, path, _ = loaded
    counts = [visual_tokens(path, size) for size in (SMALL, (170, 60), WIDE)]
    assert (len(set(counts)) == 1) == (kind in ONE_SIZE)


def test_onevision_shrinks_only_large_images(tmp_path: Path) -> None:
    path = write_tiny("llava_onevision", tmp_path / "model")
    assert visual_tokens(path, (60, 120)) == 16 + 8 * 5  # two tiles as they are
    assert visual_tokens(path, (180, 180)) == 16 + 5 * 6  # nine tiles of 12 x 12, shrunk to 5 x 5
    assert visual_tokens(path, (60, 120), (180, 180)) == 2 * 17  # several images are not cut


def test_qwen_windows_are_ragged(tmp_path: Path) -> None:
    path = write_tiny("qwen2_5_vl", tmp_path / "model")
    model = own_model(path)
    inputs = own_inputs(path, [[image(0, WIDE)]], [own_prompt(path, "what ?")])
    merged = inputs["image_grid_thw"][0, 1:] // 2
    assert (merged % 2).all()
    assert (merged > 2).all()
    logits = own_logits(model, inputs)
    assert model.config.vision_config.fullatt_block_indexes == [1, 3]
    model.model.visual.fullatt_block_indexes = [0, 1, 2, 3]
    assert differ(logits, own_logits(model, inputs))


@pytest.mark.parametrize("kind", ["paligemma", "gemma3"])
def test_windows_of_the_decoder_matter(kind: str, tmp_path: Path) -> None:
    path = write_tiny(kind, tmp_path / "model")
    model = own_model(path)
    inputs = own_inputs(path, [[image(0)]], [own_prompt(path, "what digit is red ? is there a circle ?")])
    # After an answer of three: PaliGemma's windows do not divide its prompt.
    answer = torch.tensor([[7, 8, 9]])
    longer = {
        name: torch.cat([inputs[name], torch.ones_like(answer)], 1) for name in ("attention_mask", "token_type_ids")
    }
    if kind == "gemma3":
        longer["token_type_ids"][:, -3:] = 0
    inputs |= longer | {"input_ids": torch.cat([inputs["input_ids"], answer], 1)}
    logits = own_logits(model, inputs)[:, -1]
    model.config.text_config.sliding_window = 1000
    assert differ(logits, own_logits(model, inputs)[:, -1])


def test_paligemma_caps_matter(tmp_path: Path) -> None:
    path = write_tiny("paligemma", tmp_path / "model")
    model = own_model(path)
    inputs = own_inputs(path, [[image(0)]], [own_prompt(path, "what ?")])
    logits = own_logits(model, inputs)
    assert logits.abs().max() < 3
    for layer in model.model.language_model.layers:
        layer.self_attn.attn_logit_softcapping = None
    assert differ(logits, own_logits(model, inputs))


@pytest.mark.parametrize("kind", VIDEOS)
def test_frames_in_their_order(kind: str, tmp_path: Path) -> None:
    path = write_tiny(kind, tmp_path / "model")
    model = own_model(path)
    frames = [image(seed, WIDE) for seed in range(5)]
    prompt = own_prompt(path, "what is it ?", images=0, videos=1)
    logits = last(path, model, [frames], [prompt], frames=True)
    for other in (frames[::-1], [*frames[:-1], image(9, WIDE)], frames[:3]):
        assert differ(logits, last(path, model, [other], [prompt], frames=True))
    two = last(path, model, [frames, frames[::-1]], [prompt, prompt], frames=True)
    torch.testing.assert_close(two[:1], logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_pairs_of_frames_lie_as_the_video_processor_lays_them(kind: str, tmp_path: Path) -> None:
    path = write_tiny(kind, tmp_path / "model")
    settings = read(path, "video_preprocessor_config.json")
    patch = settings["patch_size"]
    frames = [image(seed, (8 * patch, 6 * patch)) for seed in range(4)]
    inputs = own_inputs(path, [frames], [own_prompt(path, "what ?", images=0, videos=1)], frames=True)
    assert inputs["video_grid_thw"].tolist() == [[2, 6, 8]]
    pixels = torch.stack([torch.from_numpy(np.array(frame)) for frame in frames]) / 255
    pixels = (pixels - torch.tensor(settings["image_mean"])) / torch.tensor(settings["image_std"])
    pair, row, in_row, column, in_column = (2, 2), (3, 2), patch, (4, 2), patch
    cut = pixels.view(*pair, *row, in_row, *column, in_column, 3).permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    torch.testing.assert_close(inputs["pixel_values_videos"], cut.reshape(2 * 6 * 8, -1))
