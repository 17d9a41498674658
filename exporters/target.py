"""What a target for engines is: a release of TensorRT, the device under it, and what both take.

Needs neither onnx nor TensorRT.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exporters.precision import PRECISIONS
from vtc.bundle.engines import Library
from vtc.errors import InputError

PRODUCTS: dict[Library, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})
_BY_NAME = {one.name: one for one in PRECISIONS}
_FOR_CPUS = {one.name for one in PRECISIONS if one.head}
"""Rows of their embedding are looked up in int8, and TensorRT for RTX 1.7.1 takes such a constant before
``DequantizeLinear`` alone; it parses blocks of int8 and does not build them. No document says that another does.
"""


@dataclass(frozen=True)
class Source:
    """A document, and what it is the source of."""

    fact: str
    address: str


@dataclass(frozen=True)
class Operators:
    """What operators a release does not take.

    Attributes
    ----------
    absent : frozenset of str
        Standard operators that it has not.
    max_topk_k : int
        Largest K of TopK.
    cumsum_types : frozenset of str
        Element types that CumSum takes, as ONNX names them.
    einsum_ellipsis : bool
        Whether an Einsum's equation may have an ellipsis.
    scatter_reductions : frozenset of str
        Scatter operators that take a reduction.
    zero_points : bool
        Whether values may be quantised around a zero point, and so to unsigned integers.
    """

    absent: frozenset[str]
    max_topk_k: int = 3840
    cumsum_types: frozenset[str] = FLOATS
    einsum_ellipsis: bool = True
    scatter_reductions: frozenset[str] = frozenset()
    zero_points: bool = False


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
        Of the library, the oldest that it stands for; all that is said holds for that one.
    cuda : str
        That the library was built for.
    machine : str
        Processors of the device, as `platform.machine` calls them: ``x86_64`` or ``aarch64``.
    jetson : bool
    capabilities : tuple of str
        GPU generations (SM), such as ``8.7``, that engines are for unless asked otherwise.
    on_request : tuple of str
        Further GPU generations that the library builds for.
    max_opset : int
        Highest ONNX operator set that its parser is documented to take.
    int4_opset : int
        The same for a graph with 4-bit weights, which ONNX has only from operator set 21 on.
    precisions : tuple of str
        Numeric formats that it takes on one of its GPU generations at least. What `vtc export --precision` offers is
        stored in one of them; ``nvfp4`` is not among those.
    since : dict of numeric format to str
        First GPU generation with it; every one has a format that is not here.
    operators : Operators
    strongly_typed_only : bool
        Whether types of a network can only come from the graph.
    ahead_of_time : bool
        Whether engines can be built on another machine than they run on, without a GPU.
    sources : tuple of Source
    unverified : tuple of str
        What is said here without a document.
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
    operators: Operators
    machine: str = "x86_64"
    jetson: bool = False
    on_request: tuple[str, ...] = ()
    int4_opset: int = 0
    since: dict[str, str] = field(default_factory=dict, hash=False)
    strongly_typed_only: bool = False
    ahead_of_time: bool = False
    sources: tuple[Source, ...] = ()
    unverified: tuple[str, ...] = ()
    install: str = ""

    @property
    def called(self) -> str:
        """Its name with the release, for a message."""
        return f"{self.name} ({PRODUCTS[self.library]} {self.oldest})"

    @property
    def oldest(self) -> str:
        """The oldest release that it stands for, as it is written."""
        return ".".join(map(str, self.release))

    def includes(self, version: Sequence[int]) -> bool:
        """Whether it stands for a version of its library: the release itself, or a later one of the same major."""
        return version[0] == self.release[0] and tuple(version[:2]) >= self.release

    def allows(self, precision: str, capability: str | None = None) -> bool:
        """Whether a precision works on a GPU generation; without one, on any of those that it is for."""
        return not self.refusal(precision, capability)

    def refusal(self, precision: str, capability: str | None = None) -> str:
        """Why a precision does not work here, in one line; empty where it does.

        Parameters
        ----------
        precision : str
            A name of `vtc export --precision`, or a numeric format.
        capability : str or None
            A GPU generation, as for :meth:`allows`.
        """
        found = _BY_NAME.get(precision)
        reason = self.lacks(found.number if found else precision, capability, precision)
        if precision in _FOR_CPUS and not reason:
            reason = f"{precision} looks its embedding up in int8, for CPUs, which no TensorRT takes"
            reason += f"; it takes {', '.join(self._usable(capability))}"
        return reason

    def lacks(self, number: str, capability: str | None = None, called: str | None = None) -> str:
        """Why it does not take a numeric format, in one line; empty where it does.

        Parameters
        ----------
        number : str
        capability : str or None
            A GPU generation, as for :meth:`allows`.
        called : str or None
            What the line is to call it.
        """
        known = (*self.capabilities, *self.on_request)
        if capability is not None and capability not in known:
            return f"target {self.name} does not build for SM {capability}; it builds for SM {', '.join(known)}"
        here = self.capabilities if capability is None else (capability,)
        if number in self.precisions and any(self._has(number, gpu) for gpu in here):
            return ""
        takes, called = f"it takes {', '.join(self._usable(capability))}", called or number
        since = self.since.get(number)
        if since and not any(self._has(number, gpu) for gpu in here):
            reason = f"{called} needs SM {since} or newer, and target {self.name} is for SM {', '.join(here)}"
            return f"{reason}; {takes}" + ("" if capability is None else " there")
        return f"target {self.called} does not take {called}; {takes}"

    def ceiling(self, number: str) -> int:
        """Highest ONNX operator set that it takes of a graph with weights in a numeric format."""
        return max(self.max_opset, self.int4_opset if number == "int4" else 0)

    def _usable(self, capability: str | None) -> list[str]:
        """What `vtc export --precision` offers and works here."""
        here = self.capabilities if capability is None else (capability,)
        return [
            name
            for name, one in _BY_NAME.items()
            if name not in _FOR_CPUS
            and one.number in self.precisions
            and any(self._has(one.number, gpu) for gpu in here)
        ]

    def _has(self, number: str, capability: str) -> bool:
        """Whether a GPU generation has a numeric format."""
        return sm(capability) >= sm(self.since.get(number, "0"))

    def check(self, precision: str, capability: str | None = None) -> None:
        """Make sure that a precision works here.

        Raises
        ------
        InputError
            If it does not, with what would.
        """
        reason = self.refusal(precision, capability)
        if reason:
            raise InputError(reason)

    def check_export(self, precisions: Iterable[str], opset: int) -> None:
        """Make sure that what an export asks for works here, before any of it is done.

        Raises
        ------
        InputError
            If it does not, with what would.
        """
        for precision in precisions:
            self.check(precision)
        if opset > self.max_opset:
            raise InputError(
                f"--opset {opset} is above {self.max_opset}, the highest that target {self.called} takes; "
                f"leave it out or give --opset {self.max_opset}"
            )

    def check_plan(self, plan: Mapping[str, Any]) -> None:
        """Make sure that engines can be built of what a plan, as plain JSON data, comes to.

        Raises
        ------
        InputError
            If visual tokens have experts of their own.
        """
        if any(stage.get("visual_experts") for stage in plan.get("stages", ())):
            raise InputError(
                f"target {self.called} takes no visual tokens with experts of their own; "
                "run such bundles with ONNX Runtime or OpenVINO, or leave visual_experts out of the recipe"
            )


def sm(capability: str) -> tuple[int, int]:
    """A GPU generation as numbers that compare: ``12.0`` is (12, 0)."""
    major, _, minor = capability.partition(".")
    return int(major), int(minor or 0)
