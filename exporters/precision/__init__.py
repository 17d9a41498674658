"""What `vtc export --precision` offers: how graphs compute, how weights are stored, and what counts as rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from vtc.errors import InputError

Stored = Literal["int8", "int4", "fp8"]


@dataclass(frozen=True)
class Precision:
    """A way to compute and to store weights.

    Attributes
    ----------
    name, summary : str
        What the user calls it, and what it is for.
    suffix : str
        After a graph's name. transformers.js' own for the formats that it knows: nothing, ``_fp16``, ``_q4``,
        ``_int8`` and ``_q4f16``.
    base : str
        ``fp32``, ``fp16`` or ``bf16``: what is computed in. Quantised precisions are made of their base's graphs.
    stored : str or None
        How weights of linear layers are stored where it is not as the base has them.
    activations : {"", "vision", "all"}
        Of which linear layers the inputs are quantised too, with ranges found on samples: none, those of the vision
        tower and the projector, all. In a precision where it is "vision", these layers are in int8, a scale for each
        output, and what stands here of weights is of the others.
    block : int
        Most inputs that share a scale; 0 where all of an output's do, or all of a weight's.
    either_sign : bool
        Whether scales of 4-bit blocks may be below zero, so that the lowest number, -8, is of use: a step of a block is
        an eighth of its largest weight, not a seventh. TensorRT takes none.
    wide : float
        Most of the weights, as a share, that get 8 bits in place of 4 for the error that samples show.
    head : bool
        Whether head and embedding are stored in few bits too.
    opset : int
        Lowest ONNX operator set that can say so.
    session : mapping of str to str
        Entries of ONNX Runtime's configuration that it is to be run with; those of a bundle that is being proved are
        the runtime's own, which compute exactly.
    tolerance : float
        Largest difference of a logit that counts as rounding; not judged where activations are quantised.
    near_tie : float
        A greedy token may differ where the two best logits are closer than this.
    moved : float
        Share of an image's kept tokens that may be others than the model's, as near-ties of scores are; one always may.
    """

    name: str
    summary: str
    suffix: str
    base: Literal["fp32", "fp16", "bf16"]
    tolerance: float
    near_tie: float
    moved: float
    stored: Stored | None = None
    activations: Literal["", "vision", "all"] = ""
    block: int = 0
    either_sign: bool = False
    wide: float = 0.0
    head: bool = False
    opset: int = 18
    session: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def number(self) -> str:
        """What weights of linear layers are stored in, as targets call it."""
        return self.stored or self.base

    @property
    def rounds_to(self) -> Stored:
        """What inputs are rounded to where they are."""
        stored = self.of_layer(vision=True).stored
        if stored is None:
            raise AssertionError("only quantised precisions round inputs")
        return stored

    @property
    def experts(self) -> bool:
        """Whether experts of mixtures are stored in few bits too, to the nearest number.

        Not where engines are built of the graphs: TensorRT takes no zero points, which ONNX Runtime's mixture has.
        """
        return self.base == "fp32" and self.stored is not None

    @property
    def zero_points(self) -> bool:
        """Whether inputs and experts are whole numbers around a zero point, as ONNX Runtime has them on processors."""
        return self.experts

    def of_layer(self, *, vision: bool) -> Precision:
        """What holds for linear layers of vision tower and projector, or for those behind them."""
        if self.activations != "vision":
            return self
        if vision:
            return replace(self, stored="int8", block=0, either_sign=False, wide=0.0, activations="all")
        return replace(self, activations="")


_INT8_PRODUCTS = {"session.qdq_matmulnbits_accuracy_level": "4"}
"""ONNX Runtime's CPU kernels round inputs to 8 bits, block by block, and multiply integers."""

_Q4 = Precision(
    "q4",
    "weights in int4, blocks of 32, computed in float32: for decoding on a CPU",
    "_q4",
    "fp32",
    1e-2,
    5e-2,
    0.05,
    stored="int4",
    block=32,
    either_sign=True,
    wide=0.1,
    head=True,
    opset=21,
    session=_INT8_PRODUCTS,
)
PRECISIONS: tuple[Precision, ...] = (
    Precision("fp32", "float32 throughout: the yardstick", "", "fp32", 1e-3, 1e-2, 0.05),
    Precision(
        "fp16", "float16, in float32 where it would overflow: the default on a GPU", "_fp16", "fp16", 0.25, 0.5, 0.2
    ),
    Precision(
        "bf16", "bfloat16, for models that float16 is too narrow for; needs a GPU", "_bf16", "bf16", 2.0, 2.0, 0.3
    ),
    _Q4,
    replace(
        _Q4,
        name="q4-static",
        summary="as q4, and the vision tower multiplies 8 bits by 8, ranges from samples: for CPUs, images above all",
        suffix="_q4_static",
        moved=0.3,
        activations="vision",
    ),
    Precision(
        "int8",
        "weights in int8, blocks of 32, computed in float32: as q4, and closer to fp32",
        "_int8",
        "fp32",
        1e-2,
        5e-2,
        0.05,
        stored="int8",
        block=32,
        head=True,
        opset=21,
        session=_INT8_PRODUCTS,
    ),
    Precision(
        "q4f16",
        "weights in int4, blocks of 128, computed in float16: a quarter of fp16's memory, for long decoding",
        "_q4f16",
        "fp16",
        0.25,
        0.5,
        0.2,
        stored="int4",
        block=128,
        opset=21,
    ),
    Precision(
        "q8f16",
        "weights in int8, computed in float16: half of fp16's memory",
        "_q8f16",
        "fp16",
        0.25,
        0.5,
        0.2,
        stored="int8",
        opset=19,
    ),
    Precision(
        "int8-static",
        "weights and activations in int8, ranges from samples: for prefill on int8 tensor cores",
        "_int8_static",
        "fp16",
        1.0,
        1.0,
        0.3,
        stored="int8",
        activations="all",
        opset=19,
    ),
    Precision(
        "fp8",
        "weights and activations in float8 (E4M3), ranges from samples: for GPUs of compute capability 8.9 and above",
        "_fp8",
        "fp16",
        1.0,
        1.0,
        0.3,
        stored="fp8",
        activations="all",
        opset=19,
    ),
)
LAYER_TOLERANCE = 1e-2
"""Room for a few numbers that were rounded up here and down there; share of a layer's largest value."""
NAMES = tuple(one.name for one in PRECISIONS)


def precision(name: str) -> Precision:
    """The precision of a name.

    Raises
    ------
    InputError
        If there is none.
    """
    for one in PRECISIONS:
        if one.name == name:
            return one
    raise InputError(f"precision '{name}' is not known; precisions: {', '.join(NAMES)}")
