"""Files of a bundle that other runtimes read: tokenizer, processor and configuration, told of what was compressed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from exporters.writing import external_data
from vtc.compressed.model import CompressedModel
from vtc.models.images.processor_files import IMAGES, PROCESSOR, image_settings, settings_if_any
from vtc.plan import TokenPlan

COPIED_FILE = "special_tokens_map.json"
WRITTEN_FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def write_processor(model: CompressedModel, work: Path) -> None:
    """The base model's own files, told of the smaller number of tokens and layers."""
    adapter, token_plan = model.adapter, model.plan
    if (adapter.path / COPIED_FILE).is_file():
        shutil.copyfile(adapter.path / COPIED_FILE, work / COPIED_FILE)
    write_tokenizer(adapter.tokenizer, work / "tokenizer.json")
    (work / "chat_template.jinja").write_text(adapter.chat_template, encoding="utf-8")
    tokenizer = settings_if_any(adapter.path / "tokenizer_config.json") or {}
    # Templates read them, and checkpoints may have them in other files alone.
    special = {name: token for name, token in adapter.tokenizer.special_tokens_map.items() if isinstance(token, str)}
    write_json(work / "tokenizer_config.json", {**tokenizer, **special, "chat_template": adapter.chat_template})
    generation = settings_if_any(adapter.path / "generation_config.json") or {}
    write_json(work / "generation_config.json", {**generation, "eos_token_id": adapter.eos_token_ids})
    # What is nested there would hold over the files of its own that are written beside it.
    nested = ("image_processor", "chat_template")
    own = {
        name: value for name, value in (settings_if_any(adapter.path / PROCESSOR) or {}).items() if name not in nested
    }
    write_json(work / PROCESSOR, own | adapter.placeholder_settings(model.keep_per_span))
    images = image_settings(adapter.path, adapter.image_processor)
    if "image_seq_length" in images:
        images["image_seq_length"] = model.keep_per_span
    write_json(work / IMAGES, images)
    write_json(work / "config.json", told_of(token_plan, settings_if_any(adapter.path / "config.json") or {}))


def write_tokenizer(loaded: Any, path: Path) -> None:
    """A tokenizer as `transformers` has loaded it: its class, and other files than its own, may have changed it."""
    tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(path))


def name_external_data(work: Path, graphs: Iterable[str]) -> None:
    """Tell transformers.js, which does not look for them, of weights beside their graphs."""
    beside = sorted(Path(graph).name for graph in graphs if external_data(work / graph).is_file())
    if beside:
        config = settings_if_any(work / "config.json") or {}
        told = {"use_external_data_format": dict.fromkeys(beside, 1)}
        write_json(work / "config.json", config | {"transformers.js_config": told})


def told_of(token_plan: TokenPlan, config: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's ``config.json``, told of the smaller number of tokens and layers.

    What it says of the decoder stands in its ``text_config``, in older files at the top, in some in both places.
    """
    told = dict(config)
    if "image_seq_length" in told:
        told["image_seq_length"] = token_plan.keep
    text = dict(told.get("text_config") or {})
    for part in (told, text):
        if part.get("layer_types"):
            part["layer_types"] = [part["layer_types"][layer] for layer in token_plan.decoder_layers]
        if "num_hidden_layers" in part:
            part["num_hidden_layers"] = len(token_plan.decoder_layers)
    (text or told)["num_hidden_layers"] = len(token_plan.decoder_layers)
    return told | ({"text_config": text} if text else {})


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
