"""A tiny random checkpoint in the layout of a real one, to run whole pipelines on in seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vtc.reference import reference_dir

PATCH = 14


def write_tiny_llava(
    path: Path,
    *,
    grid: int = 16,
    encoder_layers: int = 5,
    decoder_layers: int = 8,
    feature_layer: int = -2,
    seed: int = 0,
) -> Path:
    """Write a LLaVA checkpoint of random weights; tokenizer and chat template are the reference VLM's.

    Parameters
    ----------
    path : Path
        A directory that does not exist yet.
    grid : int
        Rows and columns of visual tokens.
    encoder_layers, decoder_layers, feature_layer, seed : int

    Returns
    -------
    Path
        `path`.
    """
    path.mkdir(parents=True)
    reference = reference_dir()
    for file in reference.iterdir():
        if file.suffix in (".json", ".jinja") and file.name != "config.json":
            shutil.copyfile(file, path / file.name)
    config = json.loads((reference / "config.json").read_text(encoding="utf-8"))
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (path / name).is_file():
            resized = _resized(json.loads((path / name).read_text(encoding="utf-8")), grid * PATCH)
            (path / name).write_text(json.dumps(resized, indent=2), encoding="utf-8")
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=encoder_layers,
                num_attention_heads=4,
                image_size=grid * PATCH,
                patch_size=PATCH,
            ),
            text_config=LlamaConfig(
                hidden_size=48,
                intermediate_size=96,
                num_hidden_layers=decoder_layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                vocab_size=config["text_config"]["vocab_size"],
                max_position_embeddings=1024,
                pad_token_id=None,
            ),
            image_token_index=config["image_token_index"],
            vision_feature_layer=feature_layer,
            image_seq_length=grid * grid,
        )
    )
    with torch.no_grad():  # wider than the usual initialisation, so that answers depend on every part
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    model.save_pretrained(path)
    return path


def _resized(config: Any, size: int) -> Any:
    """A processor's configuration with every image side set to `size` pixels."""
    if not isinstance(config, dict):
        return config
    sides = ("height", "width", "shortest_edge")
    return {key: size if key in sides else _resized(value, size) for key, value in config.items()}
