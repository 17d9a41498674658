"""Shapes of published models: what a model's speed depends on, without its weights.

A shape is timed with random weights (see :mod:`vtc.models.random.weights`): neither the arithmetic nor the bytes that
move depend on their values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TowerShape:
    """A vision tower.

    Attributes
    ----------
    kind : str
        ``model_type`` of its configuration.
    layers, width, heads, ffn : int
    image_size, patch_size : int
        Sides in pixels.
    feature_layer : int
        The checkpoint's ``vision_feature_layer``.
    """

    kind: str
    layers: int
    width: int
    heads: int
    ffn: int
    image_size: int
    patch_size: int
    feature_layer: int


@dataclass(frozen=True)
class DecoderShape:
    """A language decoder.

    Attributes
    ----------
    kind : str
        ``model_type`` of its configuration.
    layers, width, heads, kv_heads, ffn, vocab, context : int
    rope_theta : float
    tied : bool
        Whether the head is the embedding's transpose.
    """

    kind: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    context: int
    rope_theta: float = 10_000.0
    tied: bool = False


@dataclass(frozen=True)
class Shape:
    """A vision-language model.

    Attributes
    ----------
    name, summary : str
    tower : TowerShape
    decoder : DecoderShape
    images : int
        Images in one prompt.
    """

    name: str
    summary: str
    tower: TowerShape
    decoder: DecoderShape
    images: int = 1


_CLIP_L_336 = TowerShape("clip_vision_model", 24, 1024, 16, 4096, image_size=336, patch_size=14, feature_layer=-2)
# openai/clip-vit-large-patch14-336, config.json.

_VICUNA_7B = DecoderShape("llama", 32, 4096, 32, 32, 11008, vocab=32064, context=4096)
# llava-hf/llava-1.5-7b-hf, config.json: Vicuna-7B v1.5 with its vocabulary padded to a multiple of 64.

_SIGLIP_SO400M_384 = TowerShape(
    "siglip_vision_model", 26, 1152, 16, 4304, image_size=384, patch_size=14, feature_layer=-1
)
# google/siglip-so400m-patch14-384 has 27 layers; LLaVA-OneVision cuts the last one off and reads the 26th.

_QWEN2_05B = DecoderShape(
    "qwen2", 24, 896, 14, 2, 4864, vocab=152_000, context=32_768, rope_theta=1_000_000.0, tied=True
)
# llava-hf/llava-onevision-qwen2-0.5b-ov-hf, config.json: Qwen2-0.5B (151,936 entries) with its vocabulary padded.

TINY = Shape(
    "tiny",
    "a CLIP tower and a Llama decoder small enough for tests",
    TowerShape("clip_vision_model", 3, 32, 4, 64, image_size=112, patch_size=14, feature_layer=-2),
    DecoderShape("llama", 4, 48, 4, 2, 96, vocab=460, context=1024),
)
TINY_SIGLIP = Shape(
    "tiny-siglip",
    "a SigLIP tower and a Qwen2 decoder small enough for tests",
    TowerShape("siglip_vision_model", 3, 32, 4, 64, image_size=112, patch_size=14, feature_layer=-1),
    DecoderShape("qwen2", 4, 48, 4, 2, 96, vocab=460, context=1024, tied=True),
)
TINY_MIXTURE = replace(TINY, name="tiny-mixture", decoder=replace(TINY.decoder, kind="mixtral", ffn=32))

SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape(
            "llava-1.5-7b",
            "LLaVA-1.5-7B: CLIP-L/14-336, 576 visual tokens, Vicuna-7B",
            _CLIP_L_336,
            _VICUNA_7B,
        ),
        Shape(
            "llava-next-7b",
            "LLaVA-NeXT-7B: as LLaVA-1.5-7B, with the 5 views of an image (2,880 visual tokens) as five images in one "
            "prompt; its row separators and cropping of padding are not there",
            _CLIP_L_336,
            _VICUNA_7B,
            images=5,
        ),
        Shape(
            "llava-onevision-0.5b",
            "LLaVA-OneVision-0.5B: SigLIP-so400m/14-384, Qwen2-0.5B, one 384-pixel view of 729 visual tokens; its "
            "any-resolution tiles are not there",
            _SIGLIP_SO400M_384,
            _QWEN2_05B,
        ),
        TINY,
        TINY_SIGLIP,
    )
}
