"""What contestants are made of, each made once: ``python -m docs.studies.peers.preparing STEP``, settings on stdin."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from docs.studies.peers.settings import QWEN_KEPT, QWEN_SIDE, Settings

VARIANTS = ("fp32", "q4", "q4-static", "fp32-ort", "q4-ort", "q4-static-ort")
PARITY_SAMPLES = 1
DONE = "done"


def models(settings: Settings) -> None:
    """The checkpoint in float16, and its decoder alone."""
    import torch
    from transformers import Qwen2ForCausalLM

    from vtc.models.random.weights import random_adapter

    path, decoder = _fresh(settings.work / "model"), _fresh(settings.work / "decoder")
    adapter = random_adapter(settings.shape, path, dtype=torch.float16)
    model: Any = adapter.model
    model.save_pretrained(path)
    config = model.config.text_config
    start: Any = Qwen2ForCausalLM._from_config
    alone = start(config, dtype=torch.float16)
    alone.model.load_state_dict(model.model.language_model.state_dict())
    alone.tie_weights()
    alone.save_pretrained(decoder)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (path / file).exists():
            shutil.copyfile(path / file, decoder / file)


def qwen(settings: Settings) -> None:
    """A checkpoint of Qwen2-VL's tower and Qwen2-0.5B's decoder."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    from vtc.models.random.tiny_families import write_tiny
    from vtc.models.random.weights import randomise

    path = _fresh(settings.work / "qwen")
    path.rmdir()
    write_tiny("qwen2_vl", path, encoder_layers=2, decoder_layers=2)
    told = json.loads((path / "config.json").read_text(encoding="utf-8"))
    decoder = settings.shape.decoder
    text = {
        "hidden_size": decoder.width,
        "intermediate_size": decoder.ffn,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "vocab_size": max(decoder.vocab, told["text_config"]["vocab_size"]),
        "max_position_embeddings": decoder.context,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
        "tie_word_embeddings": True,
        "layer_types": ["full_attention"] * decoder.layers,
        "max_window_layers": decoder.layers,
    }
    tower = {
        "depth": min(settings.layers or 32, 32),
        "embed_dim": 1280,
        "hidden_size": decoder.width,
        "num_heads": 16,
        "mlp_ratio": 4,
    }
    told["text_config"].pop("head_dim", None)
    told["text_config"] |= text
    told["vision_config"] |= tower
    told["tie_word_embeddings"] = True
    (path / "config.json").write_text(json.dumps(told, indent=1), encoding="utf-8")
    images = path / "preprocessor_config.json"
    read = json.loads(images.read_text(encoding="utf-8"))
    least, most = 56 * 56, QWEN_SIDE * QWEN_SIDE  # in pixels; in words of transformers, and in those of OpenVINO GenAI
    read |= {"size": {"shortest_edge": least, "longest_edge": most}, "min_pixels": least, "max_pixels": most}
    images.write_text(json.dumps(read, indent=1), encoding="utf-8")
    for file in path.glob("*.safetensors"):
        file.unlink()
    load: Any = AutoConfig.from_pretrained
    config = load(path)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with no_init_weights():
            build: Any = AutoModelForImageTextToText.from_config
            model = build(config)
    finally:
        torch.set_default_dtype(before)
    model.tie_weights()
    randomise(model)
    model.save_pretrained(path)


def bundle(settings: Settings, recipe: str) -> None:
    """The checkpoint with a recipe, in every variant; files that bundles share are stored once."""
    _export(settings.work / "model", settings.work / f"bundle-{recipe}", recipe, settings.kept, VARIANTS, None)
    _share(settings.work)


def qwen_bundle(settings: Settings, recipe: str) -> None:
    """The Qwen2-VL shape with a recipe."""
    out = settings.work / f"qwen-bundle-{recipe}"
    _export(settings.work / "qwen", out, recipe, QWEN_KEPT, VARIANTS, (QWEN_SIDE, QWEN_SIDE))
    _share(settings.work)


def _export(
    checkpoint: Path, out: Path, recipe_name: str, keep: int, variants: tuple[str, ...], size: tuple[int, int] | None
) -> None:
    from exporters.onnx import ExportRequest, export
    from exporters.variants import wanted_variants
    from vtc.compressed.build import apply_recipe
    from vtc.compressed.checkpoint import Origin
    from vtc.data.samples import samples_from
    from vtc.facts.layout import ImageOptions
    from vtc.heap import return_large_blocks
    from vtc.models import load_adapter, model_digest
    from vtc.recipe import load_recipe

    return_large_blocks()
    adapter = load_adapter(checkpoint, ImageOptions(image_size=size)) if size else load_adapter(checkpoint)
    recipe = load_recipe(recipe_name, () if recipe_name == "none" else (f"stages.0.keep={keep}",))
    model = apply_recipe(adapter, recipe)
    samples = samples_from(adapter, None, PARITY_SAMPLES, seed=0)
    precisions, optimised = wanted_variants(variants)
    origin = Origin(checkpoint.name, model_digest(checkpoint))
    export(ExportRequest([model], recipe, origin, samples, precisions, optimised, progress=_tell), out)


def _tell(what: str, done: int, total: int) -> None:
    print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)


def _share(work: Path) -> None:
    """Make equal files of bundles one file: the recipe changes the vision graph alone."""
    first: dict[str, Path] = {}
    for manifest in sorted(work.glob("*bundle-*/manifest.json")):
        for name, entry in json.loads(manifest.read_text(encoding="utf-8"))["files"].items():
            file = manifest.parent / name
            same = first.setdefault(entry["sha256"], file)
            if not file.samefile(same):
                spare = file.with_name(f"{file.name}.shared")
                os.link(same, spare)
                spare.replace(file)


def ort_genai(settings: Settings, precision: str, *options: str) -> None:
    """The decoder by ONNX Runtime GenAI's builder."""
    from docs.studies.peers.ort_genai import convert

    name = "-".join(["ort-genai", precision, *(["head"] if options else [])])
    convert(settings.work / "decoder", settings.work / name, precision, *options)


def openvino_genai(settings: Settings, kind: str, weights: str) -> None:
    """The decoder, or the Qwen2-VL shape, by optimum-intel."""
    from docs.studies.peers.openvino_genai import convert

    source = settings.work / ("decoder" if kind == "llm" else "qwen")
    task = "text-generation-with-past" if kind == "llm" else "image-text-to-text"
    convert(source, settings.work / f"openvino-{kind}-{weights}", task, weights)


STEPS: dict[str, Callable[..., None]] = {
    "models": models,
    "qwen": qwen,
    "bundle": bundle,
    "qwen_bundle": qwen_bundle,
    "ort_genai": ort_genai,
    "openvino_genai": openvino_genai,
}


def mark(work: Path, step: tuple[str, ...]) -> Path:
    """A file that is there once a step is done."""
    return work / DONE / "-".join(part.replace("=", "-") for part in step)


def _fresh(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def request(settings: Settings) -> str:
    """Settings, for stdin."""
    return json.dumps(asdict(settings), default=str)


def main() -> None:
    """Take one step."""
    given = json.load(sys.stdin)
    settings = Settings(**given | {"work": Path(given["work"])})
    name, *arguments = sys.argv[1:]
    STEPS[name](settings, *arguments)
    done = mark(settings.work, (name, *arguments))
    done.parent.mkdir(exist_ok=True)
    done.touch()


if __name__ == "__main__":
    main()
