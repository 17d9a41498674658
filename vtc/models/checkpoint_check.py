"""What a checkpoint holds, and whether its parts agree; found before any weights are loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from typing_extensions import Self

from vtc.errors import CheckpointError, ModelError, all_faults
from vtc.facts.model import ModelFacts
from vtc.models.chat_templates import located_template
from vtc.models.checkpoint_files import (
    TOKENIZERS,
    adapter_fault,
    has_model,
    is_lfs_pointer,
    python_command,
    weight_files,
)
from vtc.models.configuration import read_configuration

if TYPE_CHECKING:
    from vtc.models.base import VLMAdapter

FLOATS = ("F64", "F32", "F16", "BF16")
"""Formats of weights that are taken."""
NARROW = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4")
"""Formats of quantised floating-point numbers; integers beside few floats are quantised, too."""
TOKENS = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id")
NUMBERS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "max_length")


@dataclass(frozen=True)
class Contents:
    """What there is.

    Attributes
    ----------
    weights, quantised, adapter, tokenizer, template, processor, generation : str
        A few words on each.
    """

    weights: str
    quantised: str
    adapter: str
    tokenizer: str
    template: str
    processor: str
    generation: str = ""

    def told(self, rules: Sequence[str], unused: Sequence[str]) -> Self:
        """With what only the whole model tells: its rules of generation, and weights that it has no place for."""
        left_out = f"; {len(unused)} tensors are not used: {', '.join(unused[:3])}" if unused else ""
        return replace(self, weights=self.weights + left_out, generation=", ".join(rules) or "the best token each time")

    def lines(self) -> list[str]:
        """One line each."""
        return [f"{name:11}{words}" for name, words in vars(self).items()]


class Checked(NamedTuple):
    """A checkpoint without a fault.

    Attributes
    ----------
    contents : Contents
    outline : VLMAdapter
        All of it but the numbers of its weights.
    """

    contents: Contents
    outline: VLMAdapter


def check_checkpoint(path: Path, config: Any, facts: ModelFacts) -> Contents:
    """Make sure that a checkpoint's weights, tokenizer and settings are there, whole, and of one model.

    Parameters
    ----------
    path : Path
    config
        Its configuration, as transformers reads it.
    facts : ModelFacts
        What the adapter makes of that.

    Raises
    ------
    CheckpointError
        With every fault, one a line.
    """
    faults: list[str] = []
    adapter = adapter_fault(path)
    faults += [adapter] if adapter else []
    quantised = _quantised(path, faults)
    weights = "" if adapter and not has_model(path) else _weights(path, faults)
    generation = _configuration(path, "generation_config.json", faults)
    settings = _configuration(path, "tokenizer_config.json", faults)
    template = _template(path, faults)
    words = _vocabulary(path, settings, faults)
    faults += [f"{path / 'generation_config.json'}: {fault}" for fault in _generation_faults(generation)]
    if words is not None:
        faults += [f"{path}: {fault}" for fault in _token_faults(words, config, generation, settings, facts)]
    if faults:
        raise CheckpointError(all_faults(faults))
    return Contents(
        weights=weights,
        quantised=quantised or "no",
        adapter="none",
        tokenizer=f"{len(words or {})} tokens, {facts.decoder.vocab} rows in the embedding",
        template=template,
        processor=_processor(path),
    )


def _quantised(path: Path, faults: list[str]) -> str:
    config = read_configuration(path / "config.json")
    parts = [config, *(config.get(name) or {} for name in ("text_config", "vision_config"))]
    found = [part.get(key) for part in parts for key in ("quantization_config", "compression_config")]
    method = next((one.get("quant_method") or "unnamed" for one in found if isinstance(one, dict) and one), None)
    if method is None and any((path / name).exists() for name in ("quantize_config.json", "quant_config.json")):
        method = "GPTQ or AWQ"
    if method is not None:
        faults.append(_unquantised(path, f"weights are quantised ({str(method)[:40]})"))
    return str(method or "")


def _unquantised(path: Path, what: str) -> str:
    return (
        f"{path}: {what}; take the unquantised checkpoint (the hub page names it as base model): "
        "vtc quantises on export (--precision)"
    )


def _weights(path: Path, faults: list[str]) -> str:
    """Files, bytes and formats of the weights."""
    try:
        files = weight_files(path)
    except ModelError as error:
        faults.append(str(error))
        return ""
    formats: dict[str, int] = {}
    places: dict[str, str] = {}
    twice: dict[tuple[str, str], str] = {}
    for file in files:
        try:
            if is_lfs_pointer(file):
                faults.append(f"{file}: is a Git LFS pointer, not the weights; fetch them: git lfs pull")
                continue
            with safe_open(file, framework="numpy") as stored:
                for name in stored.keys():  # noqa: SIM118 (not a dict)
                    if (first := places.setdefault(name, file.name)) != file.name:
                        twice.setdefault((first, file.name), name)
                    part = stored.get_slice(name)
                    formats[part.get_dtype()] = formats.get(part.get_dtype(), 0) + math.prod(part.get_shape())
        except (OSError, ValueError, SafetensorError) as error:
            faults.append(f"{file}: weights cannot be loaded ({error}); fetch them again")
    faults += [
        f"{path}: {first} and {file} both hold {name}; fetch both again" for (first, file), name in twice.items()
    ]
    others = sorted(set(formats) - set(FLOATS))
    if not _mostly_floats(formats) or set(others) & set(NARROW):
        faults.append(_unquantised(path, f"weights are of type {', '.join(others)}"))
    size = sum(file.stat().st_size for file in files)
    what = files[0].name if len(files) == 1 else f"{len(files)} files"
    return f"{what}, {size / 1e6:.1f} MB, {' and '.join(sorted(formats))}"


def _mostly_floats(formats: Mapping[str, int]) -> bool:
    """Whether integers are no more than a few positions or counters."""
    floats = sum(count for name, count in formats.items() if name in FLOATS)
    return 100 * (sum(formats.values()) - floats) <= floats


def _configuration(path: Path, name: str, faults: list[str]) -> dict[str, Any]:
    try:
        return read_configuration(path / name) if (path / name).exists() else {}
    except ModelError as error:
        faults.append(str(error))
        return {}


def _vocabulary(path: Path, settings: Mapping[str, Any], faults: list[str]) -> dict[int, str] | None:
    """Token ids and tokens; None where they are not to be had."""
    file = path / "tokenizer.json"
    if not file.exists():
        if (path / "vocab.json").exists() and (path / "merges.txt").exists():
            return None  # transformers makes the one of these that it needs
        slow = next((name for name in TOKENIZERS[1:] if (path / name).exists()), None)
        here = repr(str(path))
        save = f"from transformers import AutoTokenizer as T; T.from_pretrained({here}).save_pretrained({here})"
        convert = f"convert it: pip install sentencepiece protobuf; {python_command(save)}"
        held = f"holds a slow tokenizer alone ({slow}); {convert}" if slow else "holds no tokenizer.json; fetch it too"
        faults.append(f"{path}: {held}")
        return None
    try:
        if is_lfs_pointer(file):
            faults.append(f"{file}: is a Git LFS pointer, not the tokenizer; fetch it: git lfs pull")
            return None
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.encode("What is this?")  # one without a token for what it does not know fails here
        words = tokenizer.get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises bare Exceptions
        faults.append(f"{file}: tokenizer cannot be used ({str(error)[:200]}); fetch it again")
        return None
    added = settings.get("added_tokens_decoder")
    listed = added if isinstance(added, dict) else {}
    own = {int(number): str(token) for number, token in listed.items() if number.isdecimal()}
    more = _configuration(path, "added_tokens.json", faults)
    named = {number: token for token, number in {**more, **words}.items() if isinstance(number, int)}
    return own | named


def _generation_faults(generation: Mapping[str, Any]) -> Iterator[str]:
    for name in TOKENS:
        ids = generation.get(name)
        for one in ids if isinstance(ids, list) else [ids]:
            if one is not None and (not isinstance(one, int) or isinstance(one, bool)):
                yield f"{name} is {one!r:.40}, and must be a token's number"
    for name in NUMBERS:
        value = generation.get(name)
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool) or value < 0):
            yield f"{name} is {value!r:.40}, and must be a number that is not negative"
    if not isinstance(generation.get("do_sample", False), bool | None):
        yield f"do_sample is {generation['do_sample']!r:.40}, and must be true or false"


def _token_faults(
    words: Mapping[int, str],
    config: Any,
    generation: Mapping[str, Any],
    settings: Mapping[str, Any],
    facts: ModelFacts,
) -> Iterator[str]:
    rows = facts.decoder.vocab
    images = {name: getattr(config, name, None) for name in ("image_token_id", "image_token_index")}
    image = next((one for one in images.values() if one is not None), None)
    last = max((number for number in words if number != image), default=0)  # the placeholder is never looked up
    if last >= rows:
        yield (
            f"the tokenizer has tokens up to number {last} ({words[last][:40]!r}), the model's embedding "
            f"has {rows} rows; take the tokenizer that belongs to these weights, or resize the model's embedding "
            "(resize_token_embeddings) and train it"
        )
    if image is None or image not in words:
        told = "names no image token" if image is None else f"has image token {image}, which the tokenizer has not"
        yield f"config.json {told}; set image_token_id to the number of the tokenizer's image token"
    ends = [one for one in _ends(config, generation) if isinstance(one, int)]
    if not ends and not settings.get("eos_token"):
        yield "no file names an end token, so that no answer would end; set eos_token_id in generation_config.json"
    if ends and not set(ends) & set(words):
        yield f"end token {ends[0]} is none of the tokenizer's; set eos_token_id in generation_config.json"


def _ends(config: Any, generation: Mapping[str, Any]) -> list[Any]:
    """End tokens where transformers looks for them: generation settings, else the configuration."""
    places = [generation] if generation.get("eos_token_id") is not None else []
    text = getattr(config, "text_config", None)
    places += [] if places or generation else [vars(one) for one in (config, text) if one is not None]
    found = [place.get("eos_token_id") for place in places]
    return [token for one in found for token in (one if isinstance(one, list) else [one])]


def _template(path: Path, faults: list[str]) -> str:
    try:
        located = located_template(path)
    except ModelError as error:
        faults.append(str(error))
        return ""
    return located[0].name if located else "that of the family's processor"


def _processor(path: Path) -> str:
    names = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
    return ", ".join(name for name in names if (path / name).exists())
