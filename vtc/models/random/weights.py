"""A model of a given shape with random weights, and the reference VLM's tokenizer and chat template."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, LlavaConfig, LlavaForConditionalGeneration
from transformers.initialization import no_init_weights

from vtc.facts.layout import ANY_IMAGE
from vtc.facts.model import ModelFacts
from vtc.models.llava import STRATEGY, LlavaAdapter
from vtc.models.random.shapes import Shape
from vtc.reference import reference_dir

PERIOD = 1_000_003
"""Random numbers that are drawn. All weights repeat them; a prime, so that no rows and no matrices are alike."""
BIAS = 0.02
"""Standard deviation of biases."""


def llava_config(shape: Shape) -> LlavaConfig:
    """The configuration of a LLaVA of this shape; its vocabulary is at least the reference tokenizer's."""
    tower, decoder = shape.tower, shape.decoder
    reference = json.loads((reference_dir() / "config.json").read_text(encoding="utf-8"))
    own: dict[str, Any] = {
        "clip_vision_model": {},
        "siglip_vision_model": {"vision_use_head": False},
        "llama": {},
        "qwen2": {},
        "mistral": {"sliding_window": None},
        "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    }
    vision = AutoConfig.for_model(
        tower.kind,
        hidden_size=tower.width,
        intermediate_size=tower.ffn,
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.heads,
        image_size=tower.image_size,
        patch_size=tower.patch_size,
        **own[tower.kind],
    )
    text = AutoConfig.for_model(
        decoder.kind,
        hidden_size=decoder.width,
        intermediate_size=decoder.ffn,
        num_hidden_layers=decoder.layers,
        num_attention_heads=decoder.heads,
        num_key_value_heads=decoder.kv_heads,
        head_dim=decoder.width // decoder.heads,
        vocab_size=max(decoder.vocab, reference["text_config"]["vocab_size"]),
        max_position_embeddings=decoder.context,
        rope_parameters={"rope_type": "default", "rope_theta": decoder.rope_theta},
        tie_word_embeddings=decoder.tied,
        pad_token_id=None,
        **own[decoder.kind],
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=reference["image_token_index"],
        vision_feature_layer=tower.feature_layer,
        vision_feature_select_strategy=STRATEGY[tower.kind],
        image_seq_length=(tower.image_size // tower.patch_size) ** 2,
        tie_word_embeddings=decoder.tied,
    )


def write_processor(path: Path, shape: Shape) -> None:
    """Write tokenizer, chat template and processor settings to a directory: the reference VLM's, told of the shape."""
    reference = reference_dir()
    for file in reference.iterdir():
        if file.suffix in (".json", ".jinja") and file.name != "config.json":
            shutil.copyfile(file, path / file.name)
    strategy = STRATEGY[shape.tower.kind]
    _edit(path / "tokenizer_config.json", model_max_length=shape.decoder.context)
    image = _image_processor(json.loads((reference / "preprocessor_config.json").read_text(encoding="utf-8")), shape)
    _edit(path / "preprocessor_config.json", **image)
    _edit(
        path / "processor_config.json",
        image_processor=image,
        patch_size=shape.tower.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1 if strategy == "default" else 0,
    )


def _image_processor(settings: dict[str, Any], shape: Shape) -> dict[str, Any]:
    side = shape.tower.image_size
    square = {"height": side, "width": side}
    if shape.tower.kind == "clip_vision_model":
        return settings | {"size": {"shortest_edge": side}, "crop_size": square}
    return settings | {
        "image_processor_type": "SiglipImageProcessor",
        "size": square,
        "do_center_crop": False,
        "crop_size": None,
    }


def facts_of(shape: Shape) -> ModelFacts:
    """Sizes of a model of this shape."""
    settings = json.loads((reference_dir() / "preprocessor_config.json").read_text(encoding="utf-8"))
    return LlavaAdapter.describe(llava_config(shape), _image_processor(settings, shape), ANY_IMAGE)[0]


def _edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def random_adapter(
    shape: Shape, path: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> LlavaAdapter:
    """A model of random weights, in memory.

    Parameters
    ----------
    shape : Shape
    path : Path
        An empty directory for configuration, tokenizer and processor: all of a checkpoint but its weights.
    dtype : torch.dtype
        Of the weights.
    device : str
    seed : int

    Returns
    -------
    LlavaAdapter
    """
    write_processor(path, shape)
    config = llava_config(shape)
    config.save_pretrained(path)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), no_init_weights():
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.tie_weights()
    randomise(model, seed)
    load: Any = AutoTokenizer.from_pretrained
    return LlavaAdapter(path, *LlavaAdapter.read(path, ANY_IMAGE), model, load(path, local_files_only=True))


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Give a module weights that keep activations near unit scale.

    Matrices repeat one draw of normal numbers, scaled by the square root of their inputs: filling 7 billion weights
    takes as long as copying them. Each goes on where the one before it stopped: ONNX Runtime keeps equal weights once,
    which would make a model smaller and faster than it is. Norms become 1. Biases are small and not 0: exporters leave
    out additions of nothing.
    """
    draw = torch.randn(PERIOD, generator=torch.Generator().manual_seed(seed))
    place = 0
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2 and name.endswith("weight"):
            parameter.fill_(1.0)
            continue
        scale = BIAS if parameter.dim() < 2 else parameter[0].numel() ** -0.5
        values = (draw * scale).to(parameter)
        flat = parameter.view(-1)
        while flat.numel():
            part = values[place : place + flat.numel()]
            flat[: part.numel()] = part
            flat = flat[part.numel() :]
            place = (place + part.numel()) % PERIOD
