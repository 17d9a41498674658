"""A checkpoint's JSON files, read with bounds: numbers that no model has are refused before they are used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtc.errors import ModelError
from vtc.files import TEXT_BYTES, TOKENIZER_BYTES, check_file, read_json
from vtc.models.checkpoint_files import CONFIGURATIONS, TEMPLATES, TOKENIZERS

_LAYERS, _WIDTH, _SIDE, _SMALL = 1024, 2**20, 2**16, 1024
MOST: dict[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "depth", "encoder_layers", "decoder_layers"), _LAYERS),
    **dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size", "embed_dim", "head_dim"), _WIDTH),
    **dict.fromkeys(("out_hidden_size", "projection_dim", "num_experts", "num_local_experts"), _WIDTH),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads", "num_channels"), 2**14),
    **dict.fromkeys(("vocab_size", "num_position_embeddings", "image_seq_len", "image_seq_length"), 2**24),
    **dict.fromkeys(("max_position_embeddings", "mm_tokens_per_image"), 2**31),
    **dict.fromkeys(("image_size", "height", "width"), _SIDE),
    **dict.fromkeys(("patch_size", "spatial_patch_size", "temporal_patch_size"), _SMALL),
    **dict.fromkeys(("spatial_merge_size", "merge_size", "scale_factor", "max_patches"), _SMALL),
    **dict.fromkeys(("num_experts_per_tok", "tokens_per_second"), _SMALL),
    **dict.fromkeys(("shortest_edge", "longest_edge", "min_pixels", "max_pixels"), 2**31),
}
"""Counts and sizes, and the most that each could be in a model; the least is 1."""
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps"), (0.0, 1.0)),
    **dict.fromkeys(("rope_theta", "rope_local_base_freq"), (1.0, 1e12)),
}
"""Numbers that need not be whole, and the range of each in a model."""
BY_SIDE = {"image_size", "patch_size"}
"""Of these, sizes that some models list for rows and columns."""
NUMBERS = (MOST.keys() | RANGES.keys()) - BY_SIDE
"""Of these, all that is one number."""
NEVER_NULL = {"num_local_experts"}
"""Numbers that a model cannot do without, of which transformers does not say so."""
PLENTY = 2**63
"""No other integer is larger, but for limits of a tokenizer."""


def read_configuration(file: Path) -> dict[str, Any]:
    """One of a checkpoint's JSON files.

    Raises
    ------
    ModelError
        If it is not a small file of plain JSON that holds an object, or a number in it is no model's.
    """
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"{file}: cannot be read as JSON ({words}); fetch the checkpoint again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file}: is not a JSON object; fetch the checkpoint again")
    for fault in _number_faults(content, file.name.startswith("tokenizer")):
        raise ModelError(f"{file}: {fault}; fetch the checkpoint again")
    return content


def check_small_files(path: Path) -> None:
    """Look at each of a checkpoint's files but its weights with bounds, before a library reads them without.

    Raises
    ------
    ModelError
        As :func:`read_configuration`; or if a vocabulary or a template is not a regular file of bounded size.
    """
    for name in CONFIGURATIONS:
        if (path / name).exists():
            read_configuration(path / name)
    vocabularies = {path / name: TOKENIZER_BYTES for name in TOKENIZERS if (path / name).exists()}
    templates = {file: TEXT_BYTES for pattern in TEMPLATES for file in sorted(path.glob(pattern)) if file.exists()}
    for file, limit in (vocabularies | templates).items():
        try:
            check_file(file, limit)
        except (OSError, ValueError) as error:
            words = error.strerror if isinstance(error, OSError) else error
            raise ModelError(f"{file}: cannot be read ({words}); fetch the checkpoint again") from None


def _number_faults(content: dict[str, Any], tokenizer: bool) -> Iterator[str]:
    for key, value in _leaves(content):
        name = key.rpartition(".")[2]
        if name in MOST and (value is not None or name in NEVER_NULL):
            if not isinstance(value, int) or isinstance(value, bool):
                yield f"{key} is {value!r:.40}, and must be a whole number"
            elif not 1 <= value <= MOST[name]:
                yield f"{key} is {value}, and can be 1 to {MOST[name]}"
        elif name in RANGES and value is not None:
            least, most = RANGES[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                yield f"{key} is {value!r:.40}, and can be {least:g} to {most:g}"
        elif isinstance(value, int) and abs(value) > PLENTY and not tokenizer:
            yield f"{key} is {value}, which no model has"
    for key in ("text_config", "vision_config", "image_processor", "video_processor", "quantization_config"):
        if not isinstance(content.get(key, {}), dict | type(None)):
            yield f"{key} is {content[key]!r:.40}, and must be an object"


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Values that are not made of others, with their path; those of a list have the list's.

    Where one number must stand, whatever stands there is a value.
    """
    if key.rpartition(".")[2] in NUMBERS:
        yield key, value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for part in value:
            yield from _leaves(part, key)
    else:
        yield key, value
