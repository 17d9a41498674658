"""What an export takes: memory, disk and about how much time, and a refusal before it begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import gcd
from pathlib import Path

from exporters.precision import Precision, precision
from exporters.precision.scales import block_of
from vtc.compressed.needs import costs_of
from vtc.data.samples import ANSWER_TOKENS
from vtc.models.base import VLMAdapter
from vtc.needs import Need, refuse_what_cannot_fit
from vtc.plan import TokenPlan, plan
from vtc.plan.costs import LOADING, Costs, expert_count, weight_count
from vtc.recipe import Recipe
from vtc.runtime.needs import graphs_need

LIBRARIES = 130 * 2**20
"""Memory that onnx, onnxscript and ONNX Runtime take beside PyTorch: measured, 120 to 150 MiB."""
TRACED = 2 * 2**20
"""Bytes for each layer that PyTorch keeps of what it has traced: measured on layers of 2 billion weights."""
GRAPH = 10**5
"""Bytes of a layer's nodes in a graph's file: measured, 77 kB of an encoder's, 115 kB of a decoder's."""
SMALL_FILES = 10**5
"""Bytes of manifest, tokenizer and settings; a large vocabulary has more, beside larger weights."""
TRACING = 2.0
"""Seconds for each layer that tracing and checking its graph takes: measured, 0.8 of an encoder's, 3.4 of a
decoder's on one core."""
RUNTIME_START = 2.0
"""Seconds until interpreter and ONNX Runtime are loaded."""
FEW_BYTES = {"int4": 0.5, "int8": 1.0, "fp8": 1.0}
"""Bytes of a number that is stored in few bits, without its block's scale."""


def export_need(plan: TokenPlan, costs: Costs, wanted: Sequence[Precision], samples: int, layouts: int = 1) -> Need:
    """What writing graphs of some precisions takes, and proving them on samples; the model runs in float32.

    In memory are the model and what PyTorch traced of it, and the largest of what comes and goes: a copy of the model
    in 16 bits, what one prompt computes, a graph that ONNX Runtime widens to float32 or that is rewritten in few bits.
    On the disk are the graphs of each base, whether it is asked for or not, and those made of them; each layout of
    images after the first has a vision graph of its own.
    """
    layers = len(plan.encoder_layers) + len(plan.decoder_layers)
    numbers = weight_count(plan, costs.facts)
    vision = _encoder(plan, costs) + costs.facts.projector_params
    decoder = numbers - costs.facts.decoder.vocab * costs.facts.decoder.width - vision
    asked = costs.asked(plan, scored=2 * (ANSWER_TOKENS + 1), every_expert=True)
    coming = max(_coming(one, costs.weights.numbers, decoder) for one in wanted)
    bases = {one.base for one in wanted}
    written = [*(precision(base) for base in bases), *(one for one in wanted if one.stored)]
    disk = sum(graph_bytes(one, plan, costs) + GRAPH * layers for one in written) + SMALL_FILES
    disk += (layouts - 1) * sum(int(_each(one) * vision) + GRAPH * len(plan.encoder_layers) for one in written)
    seconds = None
    if costs.speed is not None:
        proofs = samples * len(wanted)
        prefills, decoded = costs.prefill(plan, 5 * proofs), costs.decode(4 * ANSWER_TOKENS * proofs)
        seconds = TRACING * layers * len(bases) + disk / costs.speed.hashed + (prefills or 0) + (decoded or 0)
    loaded = costs.loaded()
    loaded = replace(loaded, libraries=loaded.libraries + LIBRARIES)
    in_place = max((4 if one.base == "fp32" else 2) * decoder for one in wanted)
    need = costs.more(loaded, TRACED * layers + asked + coming, seconds, disk)
    return replace(need, mapped=loaded.mapped + in_place)


def _encoder(plan: TokenPlan, costs: Costs) -> int:
    """Numbers of the vision graph."""
    return weight_count(plan, costs.facts) - weight_count(replace(plan, encoder_layers=()), costs.facts)


def _coming(one: Precision, numbers: int, decoder: int) -> int:
    """Bytes that come and go for a precision beside the model; float32 graphs are read in place."""
    narrow = 0 if one.base == "fp32" else max(2 * numbers, 4 * decoder)
    return max(narrow, int((4 + FEW_BYTES[one.stored]) * decoder) if one.stored else 0)


def graph_bytes(one: Precision, plan: TokenPlan, costs: Costs) -> int:
    """Bytes of the weights in graphs of a precision; a head that is the embedding's transpose is there twice."""
    numbers = weight_count(plan, costs.facts)
    if not one.stored:
        return (4 if one.base == "fp32" else 2) * numbers
    table = costs.facts.decoder.vocab * costs.facts.decoder.width
    experts = expert_count(plan, costs.facts.decoder)
    stored = int(_each(one) * (numbers - 2 * table - experts)) + 2 * _table_bytes(one, costs)
    return stored + expert_bytes(one, plan, costs)


def expert_bytes(one: Precision, plan: TokenPlan, costs: Costs) -> int:
    """Bytes of the experts among those; in few bits with a scale for each block, and zero points of one layer."""
    experts, decoder = expert_count(plan, costs.facts.decoder), plan.decoder(costs.facts.decoder)
    block = block_of(gcd(decoder.width, decoder.ffn), one.block) if one.experts else 0
    if one.stored is None or not block:
        return (4 if one.base == "fp32" else 2) * experts
    zeros = FEW_BYTES[one.stored] / len(plan.decoder_layers)
    return int((FEW_BYTES[one.stored] + (4 + zeros) / block) * experts)


def _each(one: Precision) -> float:
    """Bytes of a number of a linear layer, its block's scale included."""
    whole = 4 if one.base == "fp32" else 2
    return FEW_BYTES[one.stored] + (whole / one.block if one.block else 0) if one.stored else whole


def _table_bytes(one: Precision, costs: Costs) -> int:
    """Bytes of the embedding, or of the head."""
    whole = 4 if one.base == "fp32" else 2
    return int((_each(one) if one.head else whole) * costs.facts.decoder.vocab * costs.facts.decoder.width)


def run_need(one: Precision, plan: TokenPlan, costs: Costs, answer: int) -> Need:
    """What running a precision's graphs takes in ONNX Runtime on a CPU, for one answer of so many tokens.

    The time is that of float32; others have kernels of their own.
    """
    size, table = graph_bytes(one, plan, costs), _table_bytes(one, costs)
    experts, whole = expert_bytes(one, plan, costs), 4 * expert_count(plan, costs.facts.decoder)
    # Gate and up projection of two layers; a third more than one layer's experts, as memory is not used without gaps.
    widened = 4 * whole // (3 * len(plan.decoder_layers)) if experts < whole else 0
    need = graphs_need(size - table, table, one.name, experts=experts, widened=widened)
    if one.name == "fp32" and costs.speed is not None:
        seconds = RUNTIME_START + size / costs.speed.hashed + LOADING * size / costs.speed.moved
        need = replace(need, seconds=seconds)
        need = costs.more(need, seconds=costs.prefill(plan, every_expert=True))
        need = costs.more(need, seconds=costs.decode(answer))
    return costs.more(need, costs.asked(plan, every_expert=True))


def room_to_export(
    out: Path, wanted: Sequence[Precision], samples: int, layouts: int
) -> Callable[[VLMAdapter, Recipe], None]:
    """Make sure that there is room for an export before weights are read.

    Raises
    ------
    OutOfResources
        When it is called, if there is not.
    """

    def check(outline: VLMAdapter, recipe: Recipe) -> None:
        need = export_need(plan(recipe, outline.facts), costs_of(outline, recipe=recipe), wanted, samples, layouts)
        refuse_what_cannot_fit(f"exporting to {out}", need, "fewer pixels or a machine with more memory", out)

    return check
