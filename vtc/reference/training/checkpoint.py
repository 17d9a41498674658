"""The reference VLM's architecture and its Hugging Face checkpoint directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip import CLIPImageProcessorPil

from vtc.reference.tokenizer import IMAGE, token_ids

WIDTH = 128


def vision_config(layers: int = 5, width: int = WIDTH) -> CLIPVisionConfig:
    """CLIP tower: a CLS token and 16x16 patches of 14 pixels."""
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=224,
        patch_size=14,
        projection_dim=width,
        hidden_act="gelu",
    )


def model_config(
    tokenizer: PreTrainedTokenizerFast, vision_layers: int = 5, text_layers: int = 8, width: int = WIDTH
) -> LlavaConfig:
    """The whole model: tower, two-layer projector, Llama decoder with grouped key-value heads."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=text_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision_config(vision_layers, width),
        text_config=text,
        image_token_index=token_ids(tokenizer, IMAGE)[0],
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        image_seq_length=256,
        tie_word_embeddings=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """CLIP preprocessing at 224 pixels and 256 placeholders an image."""
    return LlavaProcessor(  # type: ignore[no-untyped-call]
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}, do_convert_rgb=True
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def save_checkpoint(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    directory: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the model where readers never see half of it.

    Parameters
    ----------
    model : LlavaForConditionalGeneration
    tokenizer : PreTrainedTokenizerFast
    directory : Path
        Files already there under other names (scores, logs) stay.
    dtype : torch.dtype
        Of the weights that are written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    staging = directory.parent / f".{directory.name}.new"
    shutil.rmtree(staging, ignore_errors=True)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=8,
        do_sample=False,
    )
    model.to(dtype).save_pretrained(staging)  # type: ignore[arg-type]
    processor = build_processor(tokenizer)
    processor.save_pretrained(staging)
    # transformers 5 keeps the image settings in processor_config.json only; other runtimes look here.
    settings = {**processor.image_processor.to_dict(), "processor_class": "LlavaProcessor"}
    settings["image_processor_type"] = "CLIPImageProcessor"
    (staging / "preprocessor_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    # The class's name before transformers 5; every version and transformers.js know it.
    tokenizer_config = staging / "tokenizer_config.json"
    content = json.loads(tokenizer_config.read_text())
    tokenizer_config.write_text(json.dumps(content | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")
    for file in sorted(staging.iterdir()):
        file.chmod(0o644)
        file.replace(directory / file.name)
    staging.rmdir()
