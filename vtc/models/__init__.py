"""Vision-language models that vtc can compress: the only place that knows an architecture.

A new family is one file with a :class:`~vtc.models.base.VLMAdapter` and one line in :data:`FAMILIES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vtc.artifact import KINDS, artifact_kind
from vtc.errors import MissingDependency, ModelError
from vtc.facts.layout import ANY_IMAGE, ImageOptions
from vtc.facts.placement import ON_CPU, Placement
from vtc.models.checkpoint_files import adapter_fault, holds_weights, model_digest
from vtc.models.configuration import check_small_files, read_configuration
from vtc.models.refused import NEAREST, refusal
from vtc.reference import is_shipped, reference_dir

if TYPE_CHECKING:
    from vtc.facts.model import ModelFacts
    from vtc.models.base import VLMAdapter
    from vtc.models.checkpoint_check import Checked

__all__ = [
    "FAMILIES",
    "adapter_class",
    "check_model",
    "holds_weights",
    "load_adapter",
    "model_digest",
    "read_facts",
    "resolve_model",
]

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
    """Directory of a checkpoint: ``reference`` and ``reference-moe`` ship with vtc, anything else is a path.

    Raises
    ------
    ModelError
        If there is no such directory or it holds no config.json.
    """
    if is_shipped(name):
        return reference_dir(name)
    path = Path(name)
    if not path.is_dir():
        raise ModelError(f"{name}: no such checkpoint directory; give a directory with config.json, or 'reference'")
    if (kind := artifact_kind(path)) in KINDS:
        raise ModelError(f"{path}: is a '{kind}' of vtc's, not a checkpoint; give the checkpoint that it was made from")
    if not (path / "config.json").exists():
        if fault := adapter_fault(path):
            raise ModelError(fault)
        raise ModelError(f"{path}: holds no config.json, so it is not a Hugging Face checkpoint")
    return path


def adapter_class(path: Path) -> type[VLMAdapter]:
    """The adapter that serves a checkpoint.

    Raises
    ------
    ModelError
        If the checkpoint is not a VLM of a supported family; the message names those that are.
    MissingDependency
        If torch or transformers is not installed.
    """
    check_small_files(path)
    config = read_configuration(path / "config.json")
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


def check_model(path: Path, options: ImageOptions = ANY_IMAGE) -> Checked:
    """Make sure that all of a checkpoint is there and of one model, before its weights are loaded.

    Only the numbers of the weights are left to loading.

    Returns
    -------
    Checked
        What there is, and an adapter without numbers.

    Raises
    ------
    ModelError
        If it is no checkpoint of a supported family.
    CheckpointError
        With every fault of its files, one a line.
    InputError
        If it cannot serve those images.
    """
    adapter = adapter_class(path)
    from vtc.models.checkpoint_check import Checked, check_checkpoint

    contents = check_checkpoint(path, adapter.configuration(path), adapter.read(path, options)[0])
    outline, unused = adapter.outline(path, options)
    return Checked(contents.told(outline.rules.words, unused), outline)


def load_adapter(
    path: Path,
    options: ImageOptions = ANY_IMAGE,
    placement: Placement = ON_CPU,
    first: Callable[[VLMAdapter], None] | None = None,
) -> VLMAdapter:
    """Load a checkpoint's weights and tokenizer into its family's adapter, for the images that it is to serve.

    Before that `first` is called with all but the numbers of its weights.
    """
    outline = check_model(path, options).outline
    if first is not None:
        first(outline)
    return outline.with_weights(placement)
