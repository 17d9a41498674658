"""What a bundle's manifest says of a model: how the runtime serves images, feeds decoder segments and ends answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from exporters.graphs import segment_name, selector_name
from exporters.steps import step_name, step_rows
from exporters.vision_graphs import suffix, vision_graphs
from vtc.compressed.model import CompressedModel


def described(models: Sequence[CompressedModel], budgets: Sequence[int | None]) -> dict[str, Any]:
    """`images`, `generation` and `segments` of a manifest; plain JSON data of what :mod:`vtc.bundle.manifest` reads.

    Parameters
    ----------
    models : sequence of CompressedModel
        One for each layout of images that is served, at each budget.
    budgets : sequence of int or None
        Of each model.
    """
    first = models[0]
    return {
        "images": [
            _served(models, number) | ({} if keep is None else {"budget": keep}) for number, keep in enumerate(budgets)
        ],
        "generation": _generation(first),
        "segments": [_segment(first, number) for number in range(len(first.segments))],
    }


def _segment(model: CompressedModel, number: int) -> dict[str, Any]:
    planned = model.plan.segments[number]
    selector = {"graph": selector_name(number), "kind": planned.enters, "queries": model.query_tokens.get(number)}
    graph, rows = segment_name(model, number), step_rows(model.adapter.facts.decoder)
    return {
        "graph": graph,
        "layers": list(planned.layers),
        "sees": planned.sees,
        "selector": None if planned.enters == "same" else selector,
        "step": {"graph": step_name(graph), "rows": rows} if rows else None,
    }


def _generation(model: CompressedModel) -> dict[str, Any]:
    adapter, decoder = model.adapter, model.adapter.facts.decoder
    return {
        "eos_token_ids": adapter.eos_token_ids,
        "pad_token_id": adapter.pad_token_id,
        "bos_token_id": adapter.tokenizer.bos_token_id,
        "context": decoder.context,
        "width": decoder.width,
        "kv_heads": decoder.kv_heads,
        "head_dim": decoder.head_dim,
        "layers": len(model.plan.decoder_layers),
        "bidirectional": decoder.bidirectional,
        "rules": asdict(adapter.rules),
    }


def _served(models: Sequence[CompressedModel], number: int) -> dict[str, Any]:
    """What the manifest says of model number `number`; plain JSON data of :class:`vtc.bundle.manifest.ServedImage`."""
    model, graphs = models[number], vision_graphs(models, number)
    adapter, token_plan, layout = model.adapter, model.plan, model.adapter.facts.layout
    return {
        "size": layout.image_size,
        "frames": layout.frames,
        "suffix": suffix(number),
        "per_image": "" if model.reads_text and len(graphs) == 1 else graphs[0],
        "per_question": graphs[-1] if model.reads_text else "",
        "pixels": asdict(adapter.pixels),
        "placeholder": adapter.placeholder,
        "prompt_parts": list(adapter.prompt_parts),
        "token": adapter.image_token,
        "token_id": adapter.image_token_id,
        "grids": layout.grids,
        "tokens_per_span": layout.tokens,
        "keep_per_span": model.keep_per_span,
        "segment_tokens_per_span": [token_plan.per_span(segment.visual_tokens) for segment in token_plan.segments],
        "positions": asdict(model.rule),
        "prompt_frame": list(adapter.prompt_frame),
        "alone": layout.alone,
        "several": layout.several,
    }
