"""A toy bundle with hand-written graphs, and the same model in plain numpy to hold the runtime against.

The decoder is a real one in miniature (rotary positions, grouped heads, causal attention, a KV cache), so a
wrong position, mask or cache length changes its logits. No torch is involved.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper, parser
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from vtc.bundle.manifest import staging_dir, write_bundle
from vtc.inputs.pixels import Picture, PixelSpec

Array = NDArray[Any]

PAD, BOS, EOS, IMAGE = 0, 1, 2, 3
WORDS = [
    "what",
    "is",
    "the",
    "colour",
    "of",
    "shape",
    "where",
    "how",
    "many",
    "left",
    "right",
    "red",
    "green",
    "blue",
    "one",
    "two",
    "three",
    "?",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} what{% endif %}"
)


@dataclass(frozen=True)
class Segment:
    """Layers of the toy decoder that see the same tokens."""

    layers: tuple[int, ...]
    sees: str = "all"


@dataclass(frozen=True)
class Toy:
    """Sizes of the toy model."""

    segments: tuple[Segment, ...] = (Segment((0, 1, 2)),)
    keep: int = 3
    positions: str = "renumber"
    half: bool = False
    image_size: int = 16
    patch: int = 4
    width: int = 8
    heads: int = 2
    head_dim: int = 4
    context: int = 200
    weights: dict[str, Array] = field(default_factory=dict, compare=False)

    @property
    def grid(self) -> int:
        return self.image_size // self.patch

    @property
    def tokens(self) -> int:
        return self.grid * self.grid

    @property
    def vocabulary(self) -> int:
        return 4 + len(WORDS)


def make_toy(seed: int = 0, **sizes: Any) -> Toy:
    """A toy with random weights, lively enough that every token's logits depend on all that came before."""
    toy = Toy(**sizes)
    random = np.random.default_rng(seed)

    def weight(*shape: int) -> Array:
        return (random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    inner = toy.heads * toy.head_dim
    weights = {
        "embedding": weight(toy.vocabulary, toy.width) * 4,
        "patches": weight(3 * toy.patch * toy.patch, toy.width) * 2,
        "score": weight(toy.width, 1),
        "head": weight(toy.width, toy.vocabulary) * 4,
    }
    for layer in (layer for segment in toy.segments for layer in segment.layers):
        weights |= {
            f"q{layer}": weight(toy.width, inner) * 2,
            f"k{layer}": weight(toy.width, toy.head_dim) * 2,
            f"v{layer}": weight(toy.width, toy.head_dim) * 2,
            f"o{layer}": weight(inner, toy.width),
            f"up{layer}": weight(toy.width, 2 * toy.width),
            f"down{layer}": weight(2 * toy.width, toy.width),
        }
    if toy.half:
        weights = {name: value.astype(np.float16) for name, value in weights.items()}
    return replace(toy, weights=weights)


# Graphs -----------------------------------------------------------------------------------------------------


def _model(toy: Toy, text: str, constants: dict[str, Array]) -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]>\n{text}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.checker.check_model(model)
    return model


def vision_graph(toy: Toy) -> onnx.ModelProto:
    """Patches, a linear projection, and the `keep` highest of a linear score, in raster order."""
    side, patch, real = toy.grid, toy.patch, "float16" if toy.half else "float"
    text = f"""
    vision (float[batch_size,3,{toy.image_size},{toy.image_size}] pixel_values)
        => ({real}[batch_size,{toy.keep},{toy.width}] image_features,
            int64[batch_size,{toy.keep}] keep_indices) {{
      cast = Cast<to: int = {TensorProto.FLOAT16 if toy.half else TensorProto.FLOAT}>(pixel_values)
      blocks = Reshape(cast, shape6)
      turned = Transpose<perm = [0, 2, 4, 1, 3, 5]>(blocks)
      flat = Reshape(turned, shape3)
      features = MatMul(flat, patches)
      scores3 = MatMul(features, score)
      scores = Squeeze(scores3, last)
      values, best = TopK<axis = -1>(scores, keep)
      best_float = Cast<to: int = {TensorProto.FLOAT}>(best)
      sorted, order = TopK<axis = -1, largest = 0>(best_float, keep)
      keep_indices = Cast<to: int = {TensorProto.INT64}>(sorted)
      columns = Unsqueeze(keep_indices, last)
      spread = Expand(columns, width)
      image_features = GatherElements<axis = 1>(features, spread)
    }}"""
    constants = {
        "shape6": np.array([-1, 3, side, patch, side, patch]),
        "shape3": np.array([-1, side * side, 3 * patch * patch]),
        "last": np.array([-1]),
        "keep": np.array([toy.keep]),
        "width": np.array([1, 1, toy.width]),
    }
    return _model(toy, text, constants | {name: toy.weights[name] for name in ("patches", "score")})


def embed_graph(toy: Toy) -> onnx.ModelProto:
    """A lookup."""
    real = "float16" if toy.half else "float"
    text = f"""
    embed (int64[batch_size,sequence_length] input_ids) => ({real}[batch_size,sequence_length,{toy.width}]
    inputs_embeds) {{
      inputs_embeds = Gather(embedding, input_ids)
    }}"""
    return _model(toy, text, {"embedding": toy.weights["embedding"]})


def segment_graph(toy: Toy, number: int) -> onnx.ModelProto:
    """Attention and a tanh FFN for each layer, with the KV cache concatenated in the graph."""
    segment = toy.segments[number]
    real, code = ("float16", TensorProto.FLOAT16) if toy.half else ("float", TensorProto.FLOAT)
    first, last = number == 0, number == len(toy.segments) - 1
    source = "inputs_embeds" if first else "hidden_states"
    cache = f"{real}[batch_size,1,past_sequence_length,{toy.head_dim}]"
    grown = f"{real}[batch_size,1,total_sequence_length,{toy.head_dim}]"
    inputs = [
        f"{real}[batch_size,sequence_length,{toy.width}] {source}",
        "int64[batch_size,total_sequence_length] attention_mask",
        "int64[batch_size,sequence_length] position_ids",
    ]
    result = (
        f"{real}[batch_size,1,{toy.vocabulary}] logits"
        if last
        else f"{real}[batch_size,sequence_length,{toy.width}] out"
    )
    outputs = [result]
    lines = [
        "total = Shape<start = 1, end = 2>(attention_mask)",
        "length = Shape<start = 1, end = 2>(position_ids)",
        "total_scalar = Squeeze(total)",
        "length_scalar = Squeeze(length)",
        "start = Sub(total_scalar, length_scalar)",
        "keys = Range(zero, total_scalar, one)",
        "queries = Range(start, total_scalar, one)",
        "query_column = Unsqueeze(queries, last_axis)",
        "causal = LessOrEqual(keys, query_column)",
        "mask4 = Unsqueeze(attention_mask, middle_axes)",
        f"real_keys = Cast<to: int = {TensorProto.BOOL}>(mask4)",
        "allowed = And(causal, real_keys)",
        "bias = Where(allowed, nothing, minimum)",
        f"float_positions = Cast<to: int = {TensorProto.FLOAT}>(position_ids)",
        "position_column = Unsqueeze(float_positions, rotary_axes)",
        "angles = Mul(position_column, frequencies)",
        "cos_float = Cos(angles)",
        "sin_float = Sin(angles)",
        f"cos = Cast<to: int = {code}>(cos_float)",
        f"sin = Cast<to: int = {code}>(sin_float)",
    ]
    here = source
    for layer in segment.layers:
        inputs += [f"{cache} past_key_values.{layer}.key", f"{cache} past_key_values.{layer}.value"]
        outputs += [f"{grown} present.{layer}.key", f"{grown} present.{layer}.value"]
        there = "before_head" if layer == segment.layers[-1] else f"hidden{layer}"
        lines += _layer_lines(layer, here, there)
        here = there
    lines += ["last_row = Gather<axis = 1>(before_head, minus_one)", "logits = MatMul(last_row, head)"] if last else []
    lines += [] if last else ["out = Identity(before_head)"]
    body = "\n      ".join(lines)
    text = f"segment ({', '.join(inputs)}) => ({', '.join(outputs)}) {{\n      {body}\n    }}"
    text = text.replace("past_key_values.", "past_key_values_").replace("present.", "present_")
    text = text.replace(".key", "_key").replace(".value", "_value")
    dtype = np.float16 if toy.half else np.float32
    half = toy.head_dim // 2
    frequencies = 0.7 ** np.arange(half, dtype=np.float32)
    constants = {
        "zero": np.array(0),
        "one": np.array(1),
        "minus_one": np.array([-1]),
        "last_axis": np.array([-1]),
        "middle_axes": np.array([1, 2]),
        "rotary_axes": np.array([1, 3]),
        "nothing": np.array(0, dtype=dtype),
        "minimum": np.array(-1e4, dtype=dtype),
        "scale": np.array(toy.head_dim**-0.5, dtype=dtype),
        "frequencies": np.concatenate([frequencies, frequencies]),
        "query_shape": np.array([0, 0, toy.heads, toy.head_dim]),
        "key_shape": np.array([0, 0, 1, toy.head_dim]),
        "inner_shape": np.array([0, 0, toy.heads * toy.head_dim]),
    }
    names = {f"{name}{layer}" for layer in segment.layers for name in ("q", "k", "v", "o", "up", "down")}
    names |= {"head"} if last else set()
    model = _model(toy, text, constants | {name: toy.weights[name] for name in sorted(names)})
    return _with_dots(model)


def _layer_lines(n: int, here: str, there: str) -> list[str]:
    def rotate(name: str) -> list[str]:
        return [
            f"{name}_a{n}, {name}_b{n} = Split<axis = -1, num_outputs = 2>({name}_heads{n})",
            f"{name}_minus{n} = Neg({name}_b{n})",
            f"{name}_turned{n} = Concat<axis = -1>({name}_minus{n}, {name}_a{n})",
            f"{name}_cos{n} = Mul({name}_heads{n}, cos)",
            f"{name}_sin{n} = Mul({name}_turned{n}, sin)",
            f"{name}_rotated{n} = Add({name}_cos{n}, {name}_sin{n})",
        ]

    lines = []
    for name, shape in (("q", "query_shape"), ("k", "key_shape"), ("v", "key_shape")):
        lines += [
            f"{name}_flat{n} = MatMul({here}, {name}{n})",
            f"{name}_split{n} = Reshape({name}_flat{n}, {shape})",
            f"{name}_heads{n} = Transpose<perm = [0, 2, 1, 3]>({name}_split{n})",
        ]
    return [
        *lines,
        *rotate("q"),
        *rotate("k"),
        f"present_{n}_key = Concat<axis = 2>(past_key_values_{n}_key, k_rotated{n})",
        f"present_{n}_value = Concat<axis = 2>(past_key_values_{n}_value, v_heads{n})",
        f"keys_turned{n} = Transpose<perm = [0, 1, 3, 2]>(present_{n}_key)",
        f"raw{n} = MatMul(q_rotated{n}, keys_turned{n})",
        f"scaled{n} = Mul(raw{n}, scale)",
        f"biased{n} = Add(scaled{n}, bias)",
        f"shares{n} = Softmax<axis = -1>(biased{n})",
        f"mixed{n} = MatMul(shares{n}, present_{n}_value)",
        f"mixed_turned{n} = Transpose<perm = [0, 2, 1, 3]>(mixed{n})",
        f"mixed_flat{n} = Reshape(mixed_turned{n}, inner_shape)",
        f"attended{n} = MatMul(mixed_flat{n}, o{n})",
        f"middle{n} = Add({here}, attended{n})",
        f"wide{n} = MatMul(middle{n}, up{n})",
        f"active{n} = Tanh(wide{n})",
        f"narrow{n} = MatMul(active{n}, down{n})",
        f"{there} = Add(middle{n}, narrow{n})",
    ]


def _with_dots(model: onnx.ModelProto) -> onnx.ModelProto:
    # ONNX's text form has no dots in names; the bundle's KV names have.
    def dotted(name: str) -> str:
        for prefix in ("past_key_values", "present"):
            if name.startswith(f"{prefix}_"):
                layer, _, part = name.removeprefix(f"{prefix}_").partition("_")
                return f"{prefix}.{layer}.{part}"
        return name

    for value in (*model.graph.input, *model.graph.output):
        value.name = dotted(value.name)
    for node in model.graph.node:
        node.input[:] = [dotted(name) for name in node.input]
        node.output[:] = [dotted(name) for name in node.output]
    onnx.checker.check_model(model)
    return model


def selector_graph(toy: Toy, *, merge: bool) -> onnx.ModelProto:
    """Rows `indices` of the hidden states, or of all and part of them laid end to end."""
    real = "float16" if toy.half else "float"
    full = f"{real}[batch_size,sequence_length,{toy.width}]"
    part = f"{real}[batch_size,kept_length,{toy.width}]"
    inputs = [f"{full} full_hidden_states", *([f"{part} part_hidden_states"] if merge else [])]
    inputs.append(f"int64[batch_size,{'sequence_length' if merge else 'kept_length'}] indices")
    first = (
        "both = Concat<axis = 1>(full_hidden_states, part_hidden_states)"
        if merge
        else "both = Identity(full_hidden_states)"
    )
    text = f"""
    selector ({", ".join(inputs)}) => ({full if merge else part} hidden_states) {{
      {first}
      columns = Unsqueeze(indices, last)
      spread = Expand(columns, width)
      hidden_states = GatherElements<axis = 1>(both, spread)
    }}"""
    return _model(toy, text, {"last": np.array([-1]), "width": np.array([1, 1, toy.width])})


# Bundle -----------------------------------------------------------------------------------------------------


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
        "model": {"name": "toy", "family": "toy", "sha256": "0" * 64},
        "recipe": {"version": 1, "name": "toy", "stages": []},
        "recipe_digest": "0" * 64,
        "plan": {},
        "baseline_plan": {},
        "has_places": True,
        "opset": 20,
        "precisions": [precision],
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
    """One token a word; `<s>` is put in front."""
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
