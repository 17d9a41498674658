"""Vision-language models that vtc can compress: the only place that knows an architecture.

A new family is one file with a :class:`~vtc.models.base.VLMAdapter` and one line in :data:`FAMILIES`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.artifact import sha256
from vtc.errors import MissingDependency, ModelError
from vtc.facts.layout import ANY_IMAGE, ImageOptions
from vtc.machine import machine_fault
from vtc.models.refused import NEAREST, refusal

if TYPE_CHECKING:
    from vtc.facts.model import ModelFacts
    from vtc.models.base import VLMAdapter

FAMILIES: dict[str, str] = {
    "gemma3": "vtc.models.gemma3:Gemma3Adapter",
    "idefics3": "vtc.models.idefics3:Idefics3Adapter",
    "internvl": "vtc.models.internvl:InternVLAdapter",
    "llava": "vtc.models.llava:LlavaAdapter",
    "llava_next": "vtc.models.llava_next:LlavaNextAdapter",
    "llava_onevision": "vtc.models.llava_onevision:LlavaOnevisionAdapter",
    "paligemma": "vtc.models.paligemma:PaliGemmaAdapter",
    "qwen2_5_vl": "vtc.models.qwen2_5_vl:Qwen2_5VLAdapter",
    "qwen2_vl": "vtc.models.qwen2_vl:Qwen2VLAdapter",
    "qwen3_vl": "vtc.models.qwen3_vl:Qwen3VLAdapter",
    "qwen3_vl_moe": "vtc.models.qwen3_vl_moe:Qwen3VLMoeAdapter",
    "smolvlm": "vtc.models.smolvlm:SmolVLMAdapter",
}
"""`model_type` of a checkpoint's config.json to the adapter that serves it."""


VISUAL = {"vision_config", "visual", "image_token_id", "image_token_index"}
"""Fields that configurations of vision-language models have."""


def resolve_model(name: str | Path) -> Path:
    """Directory of a checkpoint: ``reference`` is the reference VLM that ships with vtc, anything else a path.

    Raises
    ------
    ModelError
        If there is no such directory or it holds no config.json.
    """
    if str(name) == "reference":
        from vtc.reference import reference_dir

        return reference_dir()
    path = Path(name)
    if not path.is_dir():
        raise ModelError(f"{name}: no such checkpoint directory; give a directory with config.json, or 'reference'")
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: holds no config.json, so it is not a Hugging Face checkpoint")
    return path


def read_config(path: Path) -> dict[str, Any]:
    """The checkpoint's config.json.

    Raises
    ------
    ModelError
        If it is not valid JSON.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise machine_fault(error) or ModelError(
            f"{path / 'config.json'}: cannot be read as JSON ({error}); fetch the checkpoint again"
        ) from None
    if not isinstance(config, dict):
        raise ModelError(f"{path / 'config.json'}: is not a JSON object; fetch the checkpoint again")
    return config


def adapter_class(path: Path) -> type[VLMAdapter]:
    """The adapter that serves a checkpoint.

    Raises
    ------
    ModelError
        If the checkpoint is not a VLM of a supported family; the message names those that are.
    MissingDependency
        If torch or transformers is not installed.
    """
    config = read_config(path)
    model_type = str(config.get("model_type", "unknown"))
    if model_type not in FAMILIES and (model_type in NEAREST or VISUAL & set(config)):
        raise ModelError(f"{path}: {refusal(model_type, FAMILIES)}")
    if model_type not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        raise ModelError(
            f"{path}: unsupported model, not a vision-language model: '{model_type}'; supported families: {supported}"
        )
    try:
        importlib.import_module("torch")
        importlib.import_module("transformers")
    except ImportError as error:
        raise MissingDependency(f"this needs {error.name}: pip install 'vtc[compress]'") from None
    module, _, name = FAMILIES[model_type].partition(":")
    adapter: type[VLMAdapter] = getattr(importlib.import_module(module), name)
    return adapter


def read_facts(path: Path, options: ImageOptions = ANY_IMAGE) -> ModelFacts:
    """Sizes of a checkpoint, from its configuration alone and not its weights, for the images that it is to serve."""
    return adapter_class(path).read(path, options)[0]


def load_adapter(path: Path, options: ImageOptions = ANY_IMAGE) -> VLMAdapter:
    """Load a checkpoint's weights and tokenizer into its family's adapter, for the images that it is to serve."""
    return adapter_class(path).load(path, options)


def model_digest(path: Path) -> str:
    """SHA-256 over the names and contents of a checkpoint's config and weights."""
    digest = hashlib.sha256()
    for file in sorted([path / "config.json", *path.glob("*.safetensors")]):
        digest.update(file.name.encode())
        digest.update(bytes.fromhex(sha256(file)))
    return digest.hexdigest()
