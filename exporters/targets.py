"""Where engines can be built for: TensorRT releases, the devices under them, and what each cannot do."""

from __future__ import annotations

from dataclasses import dataclass, field

from vtc.engines import Library
from vtc.errors import InputError


@dataclass(frozen=True)
class Target:
    """A release of TensorRT on a kind of device.

    Attributes
    ----------
    name, summary : str
        What the user calls it, and what it is.
    library : str
        ``tensorrt`` or ``tensorrt_rtx``.
    release : (int, int)
        Of the library, the oldest that it stands for.
    cuda : str
    capabilities : tuple of str
        GPU generations (SM), such as ``8.7``.
    max_opset : int
        Highest ONNX operator set that its parser takes.
    absent : frozenset of str
        Operators that newer releases have and this one has not.
    precisions : tuple of str
        Of `vtc export --precision`.
    strongly_typed_only : bool
        Whether types of a network can only come from the graph.
    ahead_of_time : bool
        Whether engines can be built on another machine than they run on, without a GPU.
    sources : tuple of str
        Addresses of the documents that say so.
    install : str
        How to get the library.
    """

    name: str
    summary: str
    library: Library
    release: tuple[int, int]
    cuda: str
    capabilities: tuple[str, ...]
    max_opset: int
    precisions: tuple[str, ...]
    absent: frozenset[str] = field(default=frozenset())
    strongly_typed_only: bool = False
    ahead_of_time: bool = False
    sources: tuple[str, ...] = ()
    install: str = ""


_ORIN = ("fp32", "fp16", "bf16", "int8", "int4")
_FUSED = frozenset({"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter", "DFT"})

TARGETS: tuple[Target, ...] = (
    Target(
        name="rtx",
        summary="TensorRT for RTX on GeForce RTX and other GPUs from Turing on; engines are built without a GPU",
        library="tensorrt_rtx",
        release=(1, 1),
        cuda="12.9 or 13",
        capabilities=("8.6", "8.9", "12.0"),
        max_opset=22,
        precisions=("fp32", "fp16", "bf16", "int8", "int4", "fp8"),
        strongly_typed_only=True,
        ahead_of_time=True,
        install="pip install 'vtc[rtx]'",
    ),
    Target(
        name="jetson-orin-jp6",
        summary="Jetson Orin with JetPack 6",
        library="tensorrt",
        release=(10, 3),
        cuda="12.6",
        capabilities=("8.7",),
        max_opset=20,
        precisions=_ORIN,
        absent=_FUSED,
        install="JetPack brings it: sudo apt install nvidia-jetpack",
    ),
)


def target(name: str) -> Target:
    """The target of a name.

    Raises
    ------
    InputError
        If there is none.
    """
    for one in TARGETS:
        if one.name == name:
            return one
    raise InputError(f"target '{name}' is not known; targets: {', '.join(one.name for one in TARGETS)}")
