"""Writing a family's tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast

from vtc.models.random.tiny_families.family import Family, Settings
from vtc.models.random.tiny_families.rows import TINY_FAMILIES
from vtc.reference import reference_dir

CONTEXT = 2048
SPREAD = 0.1
"""Of what would otherwise be all zeros or ones: biases, norms, positions."""


def write_tiny(model_type: str, path: Path, *, encoder_layers: int = 4, decoder_layers: int = 8, seed: int = 0) -> Path:
    """Write a checkpoint of random weights that looks as a real one of its family does.

    Parameters
    ----------
    model_type : str
        One of `TINY_FAMILIES`.
    path : Path
        A directory that does not exist yet.
    encoder_layers, decoder_layers : int
        At least 2.
    seed : int
        Of the weights.

    Returns
    -------
    Path
        `path`.
    """
    return write_family(model_type, TINY_FAMILIES[model_type](encoder_layers, decoder_layers), path, seed)


def write_family(model_type: str, family: Family, path: Path, seed: int = 0) -> Path:
    """As :func:`write_tiny`, of a family of sizes of one's own."""
    path.mkdir(parents=True)
    tokenizer = _tokenizer(family)
    tokenizer.save_pretrained(path)
    (path / "chat_template.jinja").write_text(family.chat.template(), encoding="utf-8")
    _write(path / "preprocessor_config.json", _image_processor(family))
    _write(path / "processor_config.json", family.processor)
    if family.video:
        _write(path / "video_preprocessor_config.json", _with_class(family, family.video))
    torch.manual_seed(seed)
    build: Any = AutoModelForImageTextToText.from_config
    model = build(_config(model_type, family, tokenizer))
    _spread(model)
    model.generation_config = _generation(family, tokenizer)
    model.save_pretrained(path)
    return path


def _tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """The reference VLM's tokenizer, and the family's special tokens."""
    core = Tokenizer.from_file(str(reference_dir() / "tokenizer.json"))
    added = [*family.names.values(), *family.tokens]
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in added])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        bos_token="<s>",
        eos_token=family.eos,
        pad_token="<pad>",
        extra_special_tokens=list(dict.fromkeys(added)),
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        processor_class=family.processor["processor_class"],
        **family.names,
    )


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    return int(tokenizer.get_vocab()[token])


def _config(model_type: str, family: Family, tokenizer: PreTrainedTokenizerFast) -> Any:
    text = family.text | {
        # A multiple of 8, as real ones are padded: the last rows stand for no token.
        "vocab_size": -(-len(tokenizer) // 8) * 8,
        "bos_token_id": _id(tokenizer, "<s>"),
        "eos_token_id": _id(tokenizer, family.eos),
        "pad_token_id": _id(tokenizer, "<pad>"),
    }
    ids = {name: _id(tokenizer, token) for name, token in family.ids.items()}
    return AutoConfig.for_model(model_type, vision_config=family.vision, text_config=text, **family.model, **ids)


def _generation(family: Family, tokenizer: PreTrainedTokenizerFast) -> GenerationConfig:
    """Chat models stop at the end of a turn and at the end of the text."""
    stops = list(dict.fromkeys([_id(tokenizer, family.eos), _id(tokenizer, "</s>")]))
    return GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=_id(tokenizer, "<s>"),
        eos_token_id=stops if len(stops) > 1 else stops[0],
        pad_token_id=_id(tokenizer, "<pad>"),
        do_sample=False,
    )


def _image_processor(family: Family) -> Settings:
    """All settings of the family's image processor, also those that stay at their default."""
    settings = dict(family.image)
    kind = settings.pop("image_processor_type")
    full = getattr(transformers, f"{kind}Pil")(**settings).to_dict()
    return _with_class(family, full | settings | {"image_processor_type": kind})


def _with_class(family: Family, settings: Settings) -> Settings:
    return settings | {"processor_class": family.processor["processor_class"]}


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """Make answers depend on every part: matrices wider than usual, and nothing left at zero or one."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(5)
        if parameter.dim() == 1 or not parameter.any():
            parameter.add_(torch.randn_like(parameter), alpha=SPREAD)


def _write(path: Path, content: Settings) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
