"""A tiny random checkpoint in the layout of a real one, to run whole pipelines on in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from vtc.models.random.shapes import TINY, Shape
from vtc.models.random.tiny_families import TINY_FAMILIES, write_tiny
from vtc.models.random.weights import llava_config, write_processor

PATCH = TINY.tower.patch_size


def write_tiny_checkpoint(family: str, path: Path, *, encoder_layers: int, decoder_layers: int) -> Path:
    """Write a checkpoint of random weights of any family, by its ``model_type``; returns `path`."""
    if family in TINY_FAMILIES:
        return write_tiny(family, path, encoder_layers=encoder_layers, decoder_layers=decoder_layers)
    return write_tiny_llava(path, encoder_layers=encoder_layers, decoder_layers=decoder_layers)


def write_tiny_llava(
    path: Path,
    *,
    grid: int = 16,
    encoder_layers: int = 5,
    decoder_layers: int = 8,
    feature_layer: int = -2,
    seed: int = 0,
    like: Shape = TINY,
) -> Path:
    """Write a LLaVA checkpoint of random weights; tokenizer and chat template are the reference VLM's.

    Parameters
    ----------
    path : Path
        A directory that does not exist yet.
    grid : int
        Rows and columns of visual tokens.
    encoder_layers, decoder_layers, feature_layer, seed : int
    like : Shape
        Everything else: kinds of tower and decoder, widths.

    Returns
    -------
    Path
        `path`.
    """
    path.mkdir(parents=True)
    tower = replace(like.tower, layers=encoder_layers, image_size=grid * PATCH, feature_layer=feature_layer)
    shape = replace(like, tower=tower, decoder=replace(like.decoder, layers=decoder_layers))
    write_processor(path, shape)
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(llava_config(shape))
    with torch.no_grad():  # wider than the usual initialisation, so that answers depend on every part
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    model.save_pretrained(path)
    return path
