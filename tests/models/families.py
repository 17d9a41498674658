"""What the tests of families run on: tiny checkpoints, the images that they are made ready for, and a plain reference.

A line of :data:`CASES` is a family's tiny checkpoint made ready for one layout of images.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.models.own import own_model
from tests.tiny import image
from vtc.compressed.build import apply_recipe
from vtc.compressed.decoder import SegmentCache, attention_bias
from vtc.compressed.model import CompressedModel
from vtc.facts.layout import ANY_IMAGE, ImageOptions
from vtc.inputs.positions import positions
from vtc.inputs.schedule import attention_blocks
from vtc.models import load_adapter
from vtc.models.base import VLMAdapter
from vtc.models.random.tiny_families import TINY_FAMILIES, write_tiny
from vtc.recipe import NONE, Recipe


@dataclass(frozen=True)
class Case:
    """A family made ready for one layout.

    Attributes
    ----------
    family : str
        ``model_type``.
    name : str
        What is special about the layout.
    image_options : ImageOptions
    several : bool
        Whether the family's own processor makes the same of each image where a prompt has several.
    alone : bool
        Whether it makes this of an image that is alone in its prompt.
    """

    family: str
    name: str = "default"
    image_options: ImageOptions = ANY_IMAGE
    several: bool = True
    alone: bool = True

    def __str__(self) -> str:
        return f"{self.family}-{self.name}"

    @property
    def frames(self) -> int:
        """Images of one input."""
        return self.image_options.frames


CASES: list[Case] = [
    Case("llava_next"),
    Case("llava_next", "padded", ImageOptions(image_size=(150, 60))),
    Case("llava_onevision", several=False),  # shrunk
    Case("llava_onevision", "padded", ImageOptions(image_size=(150, 60)), several=False),  # and shrunk
    Case("llava_onevision", "one-view", ImageOptions(tiles=(1, 1)), alone=False),
    Case("llava_onevision", "clip", ImageOptions(frames=3)),
    *(
        case
        for family in ("qwen2_vl", "qwen2_5_vl")
        for case in (
            Case(family),
            Case(family, "portrait", ImageOptions(image_size=(150, 90))),
            Case(family, "clip", ImageOptions(image_size=(84, 150), frames=3)),
        )
    ),
    *(
        case
        for family in ("qwen3_vl", "qwen3_vl_moe")
        for case in (
            Case(family),
            Case(family, "portrait", ImageOptions(image_size=(150, 70))),
            Case(family, "clip", ImageOptions(image_size=(96, 128), frames=5)),
        )
    ),
    Case("internvl"),
    Case("internvl", "portrait", ImageOptions(image_size=(300, 100))),
    Case("internvl", "tiles", ImageOptions(tiles=(2, 2))),
    Case("internvl", "whole", ImageOptions(tiles=(1, 1))),
    Case("internvl", "clip", ImageOptions(frames=3), several=False),
    Case("idefics3"),
    Case("idefics3", "portrait", ImageOptions(image_size=(300, 100))),
    Case("idefics3", "small", ImageOptions(image_size=(40, 50))),
    Case("smolvlm"),
    Case("smolvlm", "tiles", ImageOptions(tiles=(1, 2), image_size=(56, 112))),
    Case("smolvlm", "clip", ImageOptions(frames=3)),
    Case("paligemma"),
    Case("gemma3"),
]

Prompts = tuple[list[list[Image.Image]], list[str]]


class Checkpoints:
    """Tiny checkpoints, written once, with what is loaded from them.

    Parameters
    ----------
    directory : Path
    encoder_layers, decoder_layers : int
    """

    def __init__(self, directory: Path, encoder_layers: int = 4, decoder_layers: int = 8) -> None:
        self.directory = directory
        self.layers = {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
        self.path = cache(self._path)
        self.adapter = cache(self._adapter)
        self.own = cache(own_model)

    def _path(self, family: str) -> Path:
        return write_tiny(family, self.directory / family, **self.layers)

    def _adapter(self, case: Case) -> VLMAdapter:
        return load_adapter(self.path(case.family), case.image_options)


def compressed(adapter: VLMAdapter, *stages: dict[str, Any]) -> CompressedModel:
    """A family's model with these stages applied."""
    return apply_recipe(adapter, Recipe.model_validate({"version": 1, "name": "test", "stages": list(stages)}))


def pictures(adapter: VLMAdapter, count: int, seed: int = 0) -> list[Image.Image]:
    """Images, or all frames of clips, of exactly the size that is served."""
    height, width = adapter.facts.image_size
    return [image(seed + number, (width, height)) for number in range(count * adapter.facts.layout.frames)]


def prompts_of(adapter: VLMAdapter, kind: str) -> Prompts:
    """Prompts as the family's chat template writes them.

    Parameters
    ----------
    adapter : VLMAdapter
    kind : {"one", "two", "middle", "batch"}
        One image; two images; an image in mid-prompt; two prompts of different lengths with an image each.
    """
    if kind == "batch":
        first = prompts_of(adapter, "one")
        longer = [pictures(adapter, 1, seed=50)], [adapter.chat("what digit is the red one and where is it ?")]
        return first[0] + longer[0], first[1] + longer[1]
    if kind == "two":
        return [pictures(adapter, 2)], [adapter.chat("what is red ?", 2)]
    prompt = adapter.chat("what is red ?")
    if kind == "middle":
        # The words that come after the image go on before it, too.
        prompt = prompt.replace(adapter.placeholder, f"look here {adapter.placeholder}", 1)
    return [pictures(adapter, 1)], [prompt]


def families() -> list[str]:
    """All families of which there is a tiny checkpoint."""
    return list(TINY_FAMILIES)


def every_case(*kinds: str, own: bool = False, always: Collection[str] | None = None) -> pytest.MarkDecorator:
    """All cases, those of a family in one worker, with each kind of prompt that it takes.

    Parameters
    ----------
    kinds : str
    own : bool
        Whether the family's own processor is asked for the same.
    always : collection of str or None
        Families whose default case `make test` runs, all others being left to `make test-full`; None runs them all.
    """
    marks = [
        pytest.param(
            case,
            kind,
            id=f"{case}-{kind}",
            marks=marks_of(case.family, always is not None and (case.family not in always or case.name != "default")),
        )
        for case in CASES
        for kind in (kinds if case.alone or not own else ("two",))
        if case.several or kind != "two"
    ]
    return pytest.mark.parametrize(("case", "kind"), marks)


def every_family(*always: str) -> pytest.MarkDecorator:
    """All families, each in one worker; where some are named, only `make test-full` runs the others."""
    found = dict.fromkeys(case.family for case in CASES)
    marks = [pytest.param(family, marks=marks_of(family, bool(always) and family not in always)) for family in found]
    return pytest.mark.parametrize("family", marks)


def marks_of(family: str, full: bool) -> list[pytest.MarkDecorator]:
    """One worker for a family, and whether only `make test-full` runs it."""
    return [pytest.mark.xdist_group(family), *([pytest.mark.full] if full else [])]


# What stays, without gathering ------------------------------------------------------------------------------------


@torch.inference_mode()
def masked_logits(model: CompressedModel, asked: Prompts) -> Tensor:
    """Logits (B, V) of a pruned model by a plain reference: all tokens run, and those that are dropped are masked out.

    For recipes that only choose tokens: `prune` with a selector that does not merge, `prune_in_decoder`, `visual_exit`.
    Which tokens stay is taken from the model itself.
    """
    adapter, plan = model.adapter, model.plan
    whole = apply_recipe(adapter, NONE)
    ids, mask, pixels = model.inputs(*asked)
    _, state = model.prefill(ids, mask, pixels)
    full_ids, full_mask, pixels = whole.inputs(*asked)
    embeds = whole.embed_tokens(full_ids)
    features, _ = whole.vision(pixels)
    visual = full_ids == adapter.image_token_id
    hidden = embeds.masked_scatter(visual.unsqueeze(-1), features.to(embeds.dtype))
    # Which of all visual tokens are among the kept, at each change of what is kept.
    kept = [_kept(indices, whole.keep_per_span) for indices in state.kept]
    places = _positions(model, ids, mask, state.kept[0], full_ids, full_mask, kept[0])
    decoder, cut = adapter.facts.decoder, 0
    blocks = None
    if decoder.bidirectional != "none":
        arrays = (full_ids.numpy(), full_mask.numpy(), adapter.image_token_id, whole.keep_per_span)
        blocks = torch.from_numpy(attention_blocks(*arrays, decoder.bidirectional))
    deepstack, hidden = hidden[..., decoder.width :], hidden[..., : decoder.width]
    cache = SegmentCache(plan.decoder_layers, [_nothing(adapter, len(full_ids)) for _ in plan.decoder_layers])
    for segment in plan.segments:
        cut += segment.enters == "prune"
        seen = full_mask.clone()
        seen[visual] = kept[cut].flatten().long() if segment.sees == "all" else 0
        for place in segment.layers:
            layer = plan.decoder_layers[place]
            windowed = layer in decoder.window_layers
            window, keys = (decoder.window, places) if windowed else (0, None)
            bias = attention_bias(seen, hidden, blocks, keys, window, beyond=decoder.blocks_beyond_window)
            hidden = adapter.decoder_layer(layer, hidden, bias, adapter.rotation(hidden, places, windowed), cache)
            if layer < decoder.deepstack:
                hidden = hidden + deepstack[..., layer * decoder.width : (layer + 1) * decoder.width]
    logits: Tensor = adapter.head(adapter.final_norm(hidden[:, -1]))
    return logits


def _kept(indices: Tensor, tokens: int) -> Tensor:
    """Which of all tokens of each span (I, N) are among `indices` (I, K)."""
    return torch.zeros(indices.shape[0], tokens, dtype=torch.bool).scatter(1, indices, True)


def _nothing(adapter: VLMAdapter, rows: int) -> tuple[Tensor, Tensor]:
    decoder = adapter.facts.decoder
    empty = torch.zeros(rows, decoder.kv_heads, 0, decoder.head_dim)
    return empty, empty


def _positions(
    model: CompressedModel,
    ids: Tensor,
    mask: Tensor,
    indices: Tensor,
    full_ids: Tensor,
    full_mask: Tensor,
    kept: Tensor,
) -> Tensor:
    """The positions of all tokens ([3,] B, S): those of the pruned model for what it keeps, and 0 for the rest."""
    image = model.adapter.image_token_id
    arrays = (ids.numpy(), mask.numpy(), image, indices.numpy())
    own = positions(*arrays, model.rule).ids
    stays = full_mask.bool().clone()
    stays[full_ids == image] = kept.flatten()
    found = np.zeros((*own.shape[:-1], full_ids.shape[1]), dtype=np.int64)
    found[..., stays.numpy()] = own[..., mask.bool().numpy()]
    return torch.from_numpy(found)
