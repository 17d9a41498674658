"""Model types that are not served: the nearest family that is, and why they need more than it has."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

NEAREST: dict[str, tuple[str, str]] = {
    "aya_vision": ("internvl", "its decoder is Cohere 2 (parallel blocks), and its prompt marks every tile"),
    "blip-2": ("llava", "its Q-Former already reduces an image to 32 tokens"),
    "cohere2_vision": ("internvl", "its decoder is Cohere 2 (parallel blocks)"),
    "deepseek_vl": ("llava", "its configuration has none of LLaVA's settings"),
    "florence2": ("llava", "it is an encoder-decoder: visual tokens are in its encoder, not in a decoder's KV cache"),
    "gemma3n": ("gemma3", "its tower is MobileNet, and decoder layers share KV caches and take per-layer embeddings"),
    "gemma4": ("gemma3", "its tower takes any size and pools, and decoder layers take per-layer embeddings"),
    "glm4v": ("qwen2_5_vl", "its tower interpolates positions for each image and merges with a convolution"),
    "internvl_chat": ("internvl", "it needs the repository's own code; use the checkpoint whose name ends in -HF"),
    "kimi_k25": ("qwen2_5_vl", "its decoder is DeepSeek-V3: a compressed KV cache (MLA)"),
    "llama4": ("llava_next", "its decoder attends in chunks, and its prompt has separators between tiles"),
    "llavaonevision1_5": ("qwen2_5_vl", "it needs the repository's own code"),
    "minicpmv": ("idefics3", "it needs the repository's own code, and its resampler already fixes the token count"),
    "minicpmv4_6": ("idefics3", "its tower merges tokens by windows between its own layers"),
    "mistral3": ("llava_next", "its Pixtral tower takes any size, with 2-D RoPE and row-break tokens"),
    "mllama": ("llava", "images enter by cross-attention: there are no visual tokens in the sequence to prune"),
    "moondream1": ("llava", "it needs the repository's own code"),
    "ovis2": ("internvl", "its visual tokens are probabilities over a visual vocabulary"),
    "phi4_multimodal": ("llava_next", "learned separators stand between its crops, and images need a LoRA adapter"),
    "qwen3_5": ("qwen3_vl", "most of its decoder layers are linear attention, with a state in place of a KV cache"),
    "qwen3_5_moe": ("qwen3_vl_moe", "most of its decoder layers are linear attention, without a KV cache"),
}
"""``model_type`` to the nearest family, and what that family's adapter does not do."""


def refusal(model_type: str, families: Iterable[str]) -> str:
    """Why a model type is not served, in one line.

    Parameters
    ----------
    model_type : str
    families : iterable of str
        Those that are.
    """
    known = sorted(families)
    if model_type in NEAREST:
        nearest, reason = NEAREST[model_type]
        return f"unsupported family '{model_type}': {reason}; the nearest that is supported is {nearest}"
    close = get_close_matches(model_type, known, n=1)
    hint = f"; the nearest in name is {close[0]}" if close else ""
    return f"unsupported family '{model_type}'; supported families: {', '.join(known)}{hint}"
