"""A toy bundle with hand-written graphs, and the same model in plain numpy to hold the runtime against.

The decoder is a real one in miniature (rotary positions, grouped heads, causal attention, a KV cache), so a
wrong position, mask or cache length changes its logits. No torch is involved.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from tests.runtime.toy_graphs import embed_graph, segment_graph, selector_graph, vision_graph
from tests.runtime.toy_model import BOS, CHAT_TEMPLATE, EOS, IMAGE, PAD, WORDS, Array, Segment, Toy, make_toy
from vtc.artifact import staging_dir
from vtc.bundle.manifest import write_bundle
from vtc.inputs.generation import GenerationRules
from vtc.inputs.pixels import Picture, PixelSpec

__all__ = ["BOS", "EOS", "IMAGE", "PAD", "WORDS", "Segment", "Toy", "logits_of", "make_toy", "write_toy_bundle"]


def write_toy_bundle(toy: Toy, out: Path, frames: int = 1) -> Path:
    """Write the toy as a bundle, which says that it serves clips of so many frames."""
    work = staging_dir(out)
    (work / "onnx").mkdir(parents=True)
    suffix, precision = ("_fp16", "fp16") if toy.half else ("", "fp32")
    graphs = {"vision_encoder": vision_graph(toy), "embed_tokens": embed_graph(toy)}
    segments = []
    sees = "all"
    for number, segment in enumerate(toy.segments):
        name = "decoder_model_merged" if len(toy.segments) == 1 else f"decoder_segment_{number}"
        selector = None
        if segment.sees != sees:
            merge = segment.sees == "all"
            selector = {"graph": f"token_selector_{number}", "kind": "merge" if merge else "gather"}
            graphs[selector["graph"]] = selector_graph(toy, merge=merge)
            sees = segment.sees
        graphs[name] = segment_graph(toy, number)
        segments.append(
            {
                "graph": name,
                "layers": list(segment.layers),
                "sees": segment.sees,
                "selector": selector,
            }
        )
    for name, graph in graphs.items():
        onnx.save(graph, work / "onnx" / f"{name}{suffix}.onnx")
    for name, content in text_files(toy).items():
        (work / name).write_text(
            content if isinstance(content, str) else json.dumps(content, indent=2), encoding="utf-8"
        )
    manifest = {
        "schema": 1,
        "kind": "bundle",
        "vtc_version": "0",
        "model": {
            "name": "toy",
            "family": "toy",
            "sha256": "0" * 64,
            "image_options": {"image_size": None, "tiles": None, "frames": frames},
        },
        "recipe": {"version": 1, "name": "toy", "stages": []},
        "recipe_digest": "0" * 64,
        "plan": {},
        "baseline_plan": {},
        "has_places": True,
        "opset": 20,
        "variants": [{"name": precision, "precision": precision}],
        "images": [
            {
                "size": [toy.image_size, toy.image_size],
                "frames": frames,
                "suffix": "",
                "pixels": asdict(replace(pixel_spec(toy), frames=frames)),
                "placeholder": "<image>",
                "prompt_parts": ["", ""],
                "token": "<image>",
                "token_id": IMAGE,
                "grids": [[toy.grid, toy.grid]],
                "tokens_per_span": toy.tokens,
                "keep_per_span": toy.keep,
                "segment_tokens_per_span": [toy.keep if segment.sees == "all" else 0 for segment in toy.segments],
                "positions": {
                    "kind": toy.positions,
                    "span": toy.tokens if toy.positions == "original" else toy.keep,
                    "grids": [],
                    "time_step": 1.0,
                },
            }
        ],
        "generation": {
            "eos_token_ids": [EOS],
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            "context": toy.context,
            "width": toy.width,
            "kv_heads": 1,
            "head_dim": toy.head_dim,
            "layers": sum(len(segment.layers) for segment in toy.segments),
            "bidirectional": "none",
            "rules": asdict(GenerationRules()),
        },
        "segments": segments,
        "graphs": {name: {precision: f"onnx/{name}{suffix}.onnx"} for name in graphs},
        "parity": {},
    }
    return write_bundle(work, out, manifest)


def pixel_spec(toy: Toy) -> PixelSpec:
    """CLIP's way: the shortest edge resized, the centre cropped."""
    side = toy.image_size
    picture = Picture(shortest_edge=side, crop=(side, side))
    return PixelSpec((picture,), mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def text_files(toy: Toy) -> dict[str, Any]:
    """The configuration files around the graphs."""
    side = toy.image_size
    image_processor = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
        "resample": 3,
        "do_convert_rgb": True,
    }
    processor = {"processor_class": "LlavaProcessor", "image_token": "<image>"}
    placeholders = {
        "patch_size": toy.patch,
        "num_additional_image_tokens": toy.keep - toy.tokens,
        "vision_feature_select_strategy": "full",
    }
    text_config = {
        "model_type": "llama",
        "num_hidden_layers": sum(len(segment.layers) for segment in toy.segments),
        "num_attention_heads": toy.heads,
        "num_key_value_heads": 1,
        "head_dim": toy.head_dim,
        "hidden_size": toy.width,
    }
    return {
        "config.json": {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "image_token_index": IMAGE,
            "text_config": text_config,
        },
        "generation_config.json": {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD},
        "preprocessor_config.json": image_processor,
        "processor_config.json": processor | placeholders,
        "tokenizer.json": tokenizer().to_str(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "chat_template": CHAT_TEMPLATE,
        },
        "chat_template.jinja": CHAT_TEMPLATE,
    }


def tokenizer() -> Tokenizer:
    """One token a word; `<s>` begins each text."""
    specials = ["<pad>", "<s>", "</s>", "<image>"]
    words = {word: number for number, word in enumerate([*specials, *WORDS])}
    core = Tokenizer(models.WordLevel(words, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(special, normalized=False) for special in specials])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return core


# The same in numpy ------------------------------------------------------------------------------------------


def features_of(toy: Toy, pixels: Array) -> tuple[Array, Array]:
    """Kept features (K, D) and their places (K,) of one image's pixels (3, H, W)."""
    side, patch = toy.grid, toy.patch
    blocks = pixels.reshape(3, side, patch, side, patch).transpose(1, 3, 0, 2, 4).reshape(side * side, -1)
    features = blocks @ toy.weights["patches"].astype(np.float32)
    scores = (features @ toy.weights["score"].astype(np.float32))[:, 0]
    keep = np.sort(np.argsort(-scores, kind="stable")[: toy.keep])
    return features[keep], keep


def logits_of(toy: Toy, ids: list[int], pixels: list[Array]) -> Array:
    """Logits (V,) after a whole sequence: one row, no padding, no cache. `ids` hold one IMAGE per image."""
    weights = {name: value.astype(np.float32) for name, value in toy.weights.items()}
    rows: list[Array] = []
    places: list[int] = []
    visual: list[bool] = []
    images = iter(pixels)
    position = 0
    for token in ids:
        if token == IMAGE:
            features, keep = features_of(toy, next(images))
            offsets = keep if toy.positions == "original" else np.arange(toy.keep)
            rows += list(features)
            places += [position + int(offset) for offset in offsets]
            visual += [True] * toy.keep
            position += toy.tokens if toy.positions == "original" else toy.keep
        else:
            rows.append(weights["embedding"][token])
            places.append(position)
            visual.append(False)
            position += 1
    hidden = np.array(rows)
    positions, is_text = np.array(places), ~np.array(visual)
    for segment in toy.segments:
        seen = is_text if segment.sees == "text" else np.ones(len(rows), dtype=bool)
        part = hidden[seen]
        for layer in segment.layers:
            part = _layer(toy, weights, layer, part, positions[seen])
        hidden[seen] = part
    return np.asarray(hidden[-1] @ weights["head"])


def _layer(toy: Toy, weights: dict[str, Array], layer: int, hidden: Array, positions: Array) -> Array:
    half = toy.head_dim // 2
    frequencies = np.tile(0.7 ** np.arange(half), 2)
    cos, sin = np.cos(positions[:, None] * frequencies), np.sin(positions[:, None] * frequencies)

    def rotate(rows: Array) -> Array:
        return rows * cos + np.concatenate([-rows[:, half:], rows[:, :half]], axis=1) * sin

    key, value = rotate(hidden @ weights[f"k{layer}"]), hidden @ weights[f"v{layer}"]
    mixed = []
    for head in range(toy.heads):
        columns = slice(head * toy.head_dim, (head + 1) * toy.head_dim)
        query = rotate((hidden @ weights[f"q{layer}"])[:, columns])
        scores = query @ key.T / np.sqrt(toy.head_dim)
        scores[np.triu_indices(len(hidden), 1)] = -np.inf
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        mixed.append(shares / shares.sum(axis=1, keepdims=True) @ value)
    hidden = hidden + np.concatenate(mixed, axis=1) @ weights[f"o{layer}"]
    return np.asarray(hidden + np.tanh(hidden @ weights[f"up{layer}"]) @ weights[f"down{layer}"])
