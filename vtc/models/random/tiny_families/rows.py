"""The families: one function each, from the depths of encoder and decoder to everything that makes its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vtc.models.random.tiny_families.family import Chat, Family, Settings

WIDTH, HEADS = 32, 4
DECODER_WIDTH, KV_HEADS = 48, 2
HEAD_DIM = 16
"""Of decoders that state it; more than `DECODER_WIDTH` divided by `HEADS`, as in the real ones."""
PATCH, TILE = 14, 56
GRID = TILE // PATCH
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
IM_END = ("<|im_end|>\n", "<|im_end|>\n")


def _tower(kind: str, layers: int, **fields: object) -> Settings:
    return {
        "model_type": kind,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "image_size": TILE,
        "patch_size": PATCH,
    } | fields


def _qwen_tower(kind: str, layers: int, **fields: object) -> Settings:
    """Qwen's towers name their fields otherwise and take patches of any image, in pairs of frames."""
    return {
        "model_type": kind,
        "depth": layers,
        "num_heads": HEADS,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "out_hidden_size": DECODER_WIDTH,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    } | fields


def _decoder(kind: str, layers: int, **fields: object) -> Settings:
    return {
        "model_type": kind,
        "hidden_size": DECODER_WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 2048,
    } | fields


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _pinpoints(tile: int, shapes: list[tuple[int, int]]) -> list[list[int]]:
    return [[rows * tile, columns * tile] for rows, columns in shapes]


def _llava_next(encoder_layers: int, decoder_layers: int) -> Family:
    pinpoints = _pinpoints(TILE, [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)])
    return Family(
        chat=Chat("[INST] ", "", " [/INST]", "</s>", image="<image>\n", visuals_first=True),
        names={"image_token": "<image>"},
        ids={"image_token_index": "<image>"},
        vision=_tower("clip_vision_model", encoder_layers, projection_dim=WIDTH),
        text=_decoder("mistral", decoder_layers, head_dim=12, sliding_window=None),
        model={
            "image_grid_pinpoints": pinpoints,
            "image_seq_length": GRID**2,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
        },
        image={
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": TILE},
            "crop_size": _square(TILE),
            "image_grid_pinpoints": pinpoints,
        }
        | CLIP,
        processor={
            "processor_class": "LlavaNextProcessor",
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": PATCH,
            "vision_feature_select_strategy": "default",
        },
    )


def _llava_onevision(encoder_layers: int, decoder_layers: int) -> Family:
    tile = TILE + 4  # patches do not fill it, as 14 does not divide 384
    pinpoints = _pinpoints(tile, [(rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 3)])
    aspect = "anyres_max_2"
    return Family(
        chat=Chat(
            "<|im_start|>user ",
            "<|im_start|>assistant\n",
            "<|im_end|>",
            "<|im_end|>",
            image="<image>\n",
            video="<video>\n",
            head="",
            visuals_first=True,
        ),
        names={"image_token": "<image>", "video_token": "<video>"},
        ids={"image_token_index": "<image>", "video_token_index": "<video>"},
        tokens=["<|im_start|>", "<|im_end|>"],
        eos="<|im_end|>",
        vision=_tower("siglip_vision_model", encoder_layers, image_size=tile, vision_use_head=False),
        text=_decoder("qwen2", decoder_layers),
        model={
            "image_grid_pinpoints": pinpoints,
            "vision_aspect_ratio": aspect,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        image={
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": _square(tile),
            "image_grid_pinpoints": pinpoints,
        }
        | HALF,
        video={"video_processor_type": "LlavaOnevisionVideoProcessor", "size": _square(tile)} | HALF,
        processor={
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": GRID**2,
            "vision_aspect_ratio": aspect,
            "vision_feature_select_strategy": "full",
            "image_token": "<image>",
            "video_token": "<video>",
        },
    )


def _qwen(
    processor: str,
    video_processor: str,
    vision: Settings,
    text: Settings,
    *,
    patch: int = PATCH,
    system: str = "",
    normalise: Settings = CLIP,
) -> Family:
    """What all of Qwen's families share: the prompt, the way an image is cut, the names of tokens."""
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    merged = patch * 2
    settings = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2} | normalise
    return Family(
        chat=Chat(
            "<|im_start|>user\n",
            "<|im_start|>assistant\n",
            *IM_END,
            image="<|vision_start|><|image_pad|><|vision_end|>",
            video="<|vision_start|><|video_pad|><|vision_end|>",
            head=f"{{{{- {head!r} -}}}}",
        ),
        names={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        ids={
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        },
        tokens=["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"],
        eos="<|im_end|>",
        vision=vision,
        text=text,
        image={
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": {"shortest_edge": 4 * merged**2, "longest_edge": 24 * merged**2},
        }
        | settings,
        # The newest counts the pixels of all frames together.
        video={
            "video_processor_type": video_processor,
            "size": {"shortest_edge": 4 * merged**2, "longest_edge": 240 * merged**2},
        }
        | settings,
        processor={"processor_class": processor},
    )


def _qwen2_vl(encoder_layers: int, decoder_layers: int) -> Family:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]}
    vision = _qwen_tower("qwen2_vl_vision", encoder_layers, embed_dim=WIDTH, hidden_size=DECODER_WIDTH, mlp_ratio=2)
    del vision["intermediate_size"], vision["out_hidden_size"]
    return _qwen(
        "Qwen2VLProcessor",
        "Qwen2VLVideoProcessor",
        vision,
        _decoder("qwen2_vl_text", decoder_layers, rope_parameters=rope),
        system="you are a helpful assistant.",
    )


def _qwen2_5_vl(encoder_layers: int, decoder_layers: int) -> Family:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]}
    return _qwen(
        "Qwen2_5_VLProcessor",
        "Qwen2VLVideoProcessor",
        _qwen_tower(
            "qwen2_5_vl_vision",
            encoder_layers,
            window_size=2 * 2 * PATCH,
            tokens_per_second=2,
            fullatt_block_indexes=sorted({(encoder_layers - 1) // 2, encoder_layers - 1}),
        ),
        _decoder("qwen2_5_vl_text", decoder_layers, rope_parameters=rope),
        system="you are a helpful assistant.",
    )


def _qwen3(kind: str, encoder_layers: int, decoder_layers: int, **experts: int) -> Family:
    patch = 16
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    return _qwen(
        "Qwen3VLProcessor",
        "Qwen3VLVideoProcessor",
        _qwen_tower(
            f"{kind}_vision",
            encoder_layers,
            patch_size=patch,
            num_position_embeddings=6**2,
            deepstack_visual_indexes=sorted({0, encoder_layers // 2}),
        ),
        _decoder(f"{kind}_text", decoder_layers, head_dim=HEAD_DIM, rope_parameters=rope, **experts),
        patch=patch,
        normalise=HALF,
    )


def _qwen3_vl(encoder_layers: int, decoder_layers: int) -> Family:
    return _qwen3("qwen3_vl", encoder_layers, decoder_layers)


def _qwen3_vl_moe(encoder_layers: int, decoder_layers: int) -> Family:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return _qwen3("qwen3_vl_moe", encoder_layers, decoder_layers, **experts)


def _internvl(encoder_layers: int, decoder_layers: int) -> Family:
    tokens = (GRID // 2) ** 2
    size = {"size": _square(TILE)} | IMAGENET
    return Family(
        chat=Chat(
            "<|im_start|>user\n",
            "<|im_start|>assistant\n",
            *IM_END,
            image="<IMG_CONTEXT>\n",
            video="<video>\n",
            head="",
        ),
        names={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        ids={"image_token_id": "<IMG_CONTEXT>"},
        tokens=["<|im_start|>", "<|im_end|>"],
        eos="<|im_end|>",
        vision=_tower(
            "internvl_vision",
            encoder_layers,
            image_size=[TILE] * 2,
            patch_size=[PATCH] * 2,
            attention_bias=True,
            layer_scale_init_value=1.0,  # what training makes of it, so that the tower's layers matter
        ),
        text=_decoder(
            "qwen2", decoder_layers, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
        ),
        model={
            "image_seq_length": tokens,
            "downsample_ratio": 0.5,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
            "tie_word_embeddings": False,
        },
        image={
            "image_processor_type": "GotOcr2ImageProcessor",
            "crop_to_patches": False,  # the processor, not the image processor, asks for tiles
            "min_patches": 1,
            "max_patches": 6,
        }
        | size,
        video={"video_processor_type": "InternVLVideoProcessor"} | size,
        processor={"processor_class": "InternVLProcessor", "image_seq_length": tokens},
    )


def _idefics(kind: str, processor: str, user: str, most_tiles: int, encoder_layers: int, decoder_layers: int) -> Family:
    """Idefics 3, and SmolVLM, which differs from it in its prompt and in that it also takes videos."""
    return Family(
        chat=Chat(
            user,
            "Assistant:",
            "<end_of_utterance>\n",
            "<end_of_utterance>\n",
            image="<image>",
            head="{{- bos_token -}}" if kind == "idefics3" else "<|im_start|>",
        ),
        names={"image_token": "<image>"},
        ids={"image_token_id": "<image>"},
        tokens=[
            "<|im_start|>",
            "<fake_token_around_image>",
            "<end_of_utterance>",
            "<global-img>",
            "<video>",
            *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
        ],
        eos="<end_of_utterance>",
        vision=_tower(f"{kind}_vision", encoder_layers),
        text=_decoder("llama", decoder_layers),
        model={"scale_factor": 2, "tie_word_embeddings": False},
        image={
            "image_processor_type": processor.replace("Processor", "ImageProcessor"),
            "size": {"longest_edge": most_tiles * TILE},
            "max_image_size": {"longest_edge": TILE},
            "do_image_splitting": True,
        }
        | HALF,
        processor={"processor_class": processor, "image_seq_len": (GRID // 2) ** 2},
    )


def _idefics3(encoder_layers: int, decoder_layers: int) -> Family:
    return _idefics("idefics3", "Idefics3Processor", "User:", 3, encoder_layers, decoder_layers)


def _smolvlm(encoder_layers: int, decoder_layers: int) -> Family:
    family = _idefics("smolvlm", "SmolVLMProcessor", "User:", 2, encoder_layers, decoder_layers)
    video = {
        "video_processor_type": "SmolVLMVideoProcessor",
        "size": {"longest_edge": TILE},
        "max_image_size": {"longest_edge": TILE},
        "num_frames": 8,
        "fps": 1,
    }
    return replace(family, video=video | HALF)


def _paligemma(encoder_layers: int, decoder_layers: int) -> Family:
    return Family(
        # The processor puts the beginning-of-text token after the images and a line break after the prompt.
        chat=Chat("", "", "", "", image="<image>", head="", visuals_first=True),
        names={"image_token": "<image>"},
        ids={"image_token_index": "<image>"},
        vision=_tower("siglip_vision_model", encoder_layers, vision_use_head=False, projection_dim=DECODER_WIDTH),
        text=_decoder(
            "gemma2",
            decoder_layers,
            head_dim=HEAD_DIM,
            query_pre_attn_scalar=HEAD_DIM,
            sliding_window=16,
            attn_logit_softcapping=1.0,  # low, so that they matter to weights like these
            final_logit_softcapping=3.0,
        ),
        model={"projection_dim": DECODER_WIDTH, "hidden_size": DECODER_WIDTH},
        image={"image_processor_type": "SiglipImageProcessor", "size": _square(TILE), "image_seq_length": GRID**2}
        | HALF,
        processor={"processor_class": "PaliGemmaProcessor"},
    )


def _gemma3(encoder_layers: int, decoder_layers: int) -> Family:
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    kinds = ["full_attention" if (layer + 1) % 3 == 0 else "sliding_attention" for layer in range(decoder_layers)]
    tokens = (GRID // 2) ** 2
    return Family(
        chat=Chat(
            "<start_of_turn>user\n",
            "<start_of_turn>model\n",
            "<end_of_turn>\n",
            "<end_of_turn>\n",
            image="<start_of_image>",
        ),
        names={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
        ids={
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
            "image_token_index": "<image_soft_token>",
        },
        tokens=["<start_of_turn>", "<end_of_turn>"],
        eos="<end_of_turn>",
        vision=_tower("siglip_vision_model", encoder_layers, vision_use_head=False),
        text=_decoder(
            "gemma3_text",
            decoder_layers,
            head_dim=HEAD_DIM,
            query_pre_attn_scalar=HEAD_DIM,
            sliding_window=24,
            layer_types=kinds,
            rope_parameters=rope,
        ),
        model={"mm_tokens_per_image": tokens},
        image={
            "image_processor_type": "Gemma3ImageProcessor",
            "size": _square(TILE),
            "do_pan_and_scan": False,
            "image_seq_length": tokens,
        }
        | HALF,
        processor={"processor_class": "Gemma3Processor", "image_seq_length": tokens},
    )


TINY_FAMILIES: dict[str, Callable[[int, int], Family]] = {
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl_moe,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "paligemma": _paligemma,
    "gemma3": _gemma3,
}
"""By ``model_type``: from the layers of encoder and decoder to everything that makes a checkpoint."""
