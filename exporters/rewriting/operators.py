"""Which operators a rewritten graph has, where they run, in which types, and what they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from exporters.rewriting.report import Form

Provider = Literal["cpu", "cuda", "rtx"]
"""Execution providers of ONNX Runtime: its own on processors, CUDA, TensorRT for RTX."""

FLOATS, HALF = ("float32", "float16", "bfloat16"), ("float16", "bfloat16")
KERNELS = "ONNX Runtime, docs/OperatorKernels.md at 001d12d"
SCHEMA = "ONNX Runtime 1.31, the operator's schema"
TRIED = "tried with ONNX Runtime 1.31"
MOBIUS = "mobius, .agents/skills/attention-optimization/SKILL.md"


@dataclass(frozen=True)
class Operator:
    """An operator of a form.

    Attributes
    ----------
    form : {"ort", "opset23"}
    name : str
    domain : str
        Empty is ONNX's own.
    since : int
        Version of the domain that has it first.
    types : dict of provider to tuple of str
        Element types that a provider computes it in. A provider that is not here has no kernel, or none that a source
        names; ONNX Runtime then runs the operator on the processor.
    asks : tuple of str
        What it asks of a graph or of who runs it.
    sources : tuple of str
    """

    form: Form
    name: str
    domain: str
    since: int
    types: dict[Provider, tuple[str, ...]]
    asks: tuple[str, ...]
    sources: tuple[str, ...]


OPERATORS = (
    Operator(
        "ort",
        "GroupQueryAttention",
        "com.microsoft",
        1,
        {"cpu": ("float32", "float16"), "cuda": HALF, "rtx": HALF},
        (
            "rows are padded on the right; seqlens_k is the place of each row's last token",
            "the size of a head is a multiple of 8",
            "several new tokens after cached ones only with one row",
            "past and present may be one buffer of any length; otherwise present is as long as total_sequence_length",
            "position_ids would be read of the first token only, so rotations stand before it",
            "the mask is causal; any other, with soft caps too, is added on a processor and not on CUDA",
        ),
        (SCHEMA, KERNELS, TRIED, MOBIUS),
    ),
    Operator(
        "ort",
        "RotaryEmbedding",
        "com.microsoft",
        1,
        {"cpu": ("float32", "float16"), "cuda": FLOATS},
        (
            "both halves of a head are turned by the same angles",
            "these are computed in the graph, a row for each token",
            "at least as many rows as a sequence has tokens",
        ),
        (SCHEMA, KERNELS),
    ),
    Operator(
        "ort",
        "SimplifiedLayerNormalization",
        "",
        1,
        {"cpu": ("float32", "float16"), "cuda": FLOATS},
        ("ONNX Runtime's, though in ONNX's domain: ONNX's own checker does not know it",),
        (SCHEMA, KERNELS, TRIED),
    ),
    Operator(
        "ort",
        "SkipSimplifiedLayerNormalization",
        "com.microsoft",
        1,
        {"cpu": ("float32", "float16"), "cuda": FLOATS},
        ("both summands are of one shape, (B, S, E)",),
        (SCHEMA, KERNELS),
    ),
    Operator(
        "ort",
        "MultiHeadAttention",
        "com.microsoft",
        1,
        {"cpu": ("float32",), "cuda": FLOATS},
        ("as many key-value heads as query heads",),
        (SCHEMA, KERNELS),
    ),
    Operator(
        "ort",
        "MoE",
        "com.microsoft",
        1,
        {"cpu": ("float32", "float16")},
        (
            "the router's weights are the softmax over the chosen experts",
            "among experts of equal scores it may take others than TopK, which takes the first",
            "SwiGLU, rows of gate and up projection by turns: the kernel for processors takes no other layout",
        ),
        (SCHEMA, TRIED),
    ),
    Operator(
        "ort",
        "QMoE",
        "com.microsoft",
        1,
        {"cpu": ("float32", "float16")},
        (
            "what `MoE` asks",
            "numbers of 4 or 8 bits around a zero point in the middle, a scale for each block of 16 inputs or more",
            "at accuracy level 4, and always where numbers have 8 bits, inputs are rounded to 8 bits block by block",
        ),
        (SCHEMA, TRIED),
    ),
    Operator(
        "opset23",
        "Attention",
        "",
        23,
        {"cpu": ("float32", "float16"), "cuda": FLOATS},
        (
            "the cache grows: present is a new tensor in each step",
            "the mask is added to the scores, so rows may be padded anywhere; on CUDA no flash attention with a mask",
        ),
        (SCHEMA, KERNELS, TRIED, MOBIUS),
    ),
    Operator(
        "opset23",
        "RMSNormalization",
        "",
        23,
        {"cpu": ("float32",), "cuda": FLOATS},
        (),
        (SCHEMA, KERNELS, TRIED),
    ),
    Operator(
        "opset23",
        "RotaryEmbedding",
        "",
        23,
        {"cpu": ("float32",), "cuda": FLOATS},
        ("both halves of a head are turned by the same angles",),
        (SCHEMA, KERNELS, TRIED),
    ),
)
"""In the order in which a page shows them."""


def names(form: Form) -> frozenset[str]:
    """The operators of a form."""
    return frozenset(operator.name for operator in OPERATORS if operator.form == form)


def markdown() -> Iterator[str]:
    """The table, line by line."""
    yield "| form | operator | since | CPU | CUDA | TensorRT for RTX | asks for | source |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    providers: tuple[Provider, ...] = ("cpu", "cuda", "rtx")
    for one in OPERATORS:
        name = f"`{one.domain}.{one.name}`" if one.domain else f"`{one.name}`"
        types = (", ".join(one.types.get(provider, ())) or "-" for provider in providers)
        cells = (f"`{one.form}`", name, str(one.since), *types, "; ".join(one.asks) or "-", "; ".join(one.sources))
        yield f"| {' | '.join(cells)} |"
