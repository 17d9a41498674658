"""OpenVINO as a backend: a bundle's portable graphs on Intel's and other processors, in float32 or bfloat16.

Keys and values are state of the requests that run a segment; everything else comes to the host.
"""

from __future__ import annotations

from typing import cast

from vtc.bundle.interface import check_interface
from vtc.bundle.manifest import Manifest
from vtc.bundle.weights import check_weights
from vtc.errors import InputError
from vtc.runtime.interface import LoadedGraph, Past
from vtc.runtime.on_host import OnHost
from vtc.runtime.openvino.device import WIDTHS, Device, choose_device
from vtc.runtime.openvino.graph import Graph
from vtc.runtime.openvino.past import KeptPast
from vtc.runtime.options import RuntimeOptions
from vtc.runtime.variants import choose_variant

ROUNDING = ("session.qdq_matmulnbits_accuracy_level", "4")
"""Entry of a variant's session that lets activations be rounded to 8 bits where they meet weights of few bits."""

IN_FLOAT32 = ("fp32", "q4", "q4-static", "int8")
"""Precisions whose graphs compute in float32, which OpenVINO may do in bfloat16."""


class OpenVINO(OnHost):
    """A bundle's graphs in OpenVINO: a :class:`~vtc.runtime.interface.Backend`, which says what its methods do.

    Parameters
    ----------
    manifest : Manifest
    options : RuntimeOptions
        The precisions ``bf16``, ``q4-bf16``, ``q4-static-bf16`` and ``int8-bf16`` compute graphs of ``fp32``, ``q4``,
        ``q4-static`` and ``int8`` in bfloat16.

    Raises
    ------
    InputError
        If the device or precision is not to be had.
    """

    def __init__(self, manifest: Manifest, options: RuntimeOptions = RuntimeOptions()) -> None:
        super().__init__()
        self._manifest, self._verify = manifest, options.verify
        device = choose_device(options.provider)
        self.provider = device.provider
        self.variant, self._numbers, self.precision = _chosen(manifest, device, options.precision)
        entry, value = ROUNDING
        variant = next(one for one in manifest.variants if one.name == self.variant)
        session, self.exported = variant.session, variant.precision
        self._device = device.name
        self._properties = {
            numbers: device.properties(numbers, options.threads, session.get(entry) == value)
            for numbers in {self._numbers, "f32"}
        }
        self._whole = {one.graph for one in manifest.segments} | {"embed_tokens"}

    def open(self, graph: str) -> Graph:
        path = self._manifest.graph(graph, self.variant)
        if self._verify:
            check_weights(path)
        facts = self._manifest.generation
        # Between segments, positions are rotated and tokens numbered: whole numbers beyond 256 that bfloat16 rounds.
        between = graph not in self._whole and not graph.startswith("vision_encoder")
        properties = self._properties["f32" if between else self._numbers]
        opened = Graph(path, self._device, properties, (facts.kv_heads, facts.head_dim))
        check_interface(self._manifest, graph, *opened.shapes)
        return opened

    def past(self, graph: LoadedGraph, shape: tuple[int, int, int], most: int) -> Past:
        """A cache that OpenVINO keeps to itself."""
        return KeptPast(cast(Graph, graph), shape, WIDTHS[self._numbers])


def _chosen(manifest: Manifest, device: Device, wanted: str | None) -> tuple[str, str, str]:
    """Which graphs to run, what they are computed in, and what both together are called."""
    if wanted is None or not wanted.endswith("bf16"):
        variant = choose_variant(manifest, wanted, "fp32", ("portable",))
        return variant.name, "f32", variant.precision
    stored = wanted.removesuffix("bf16").removesuffix("-") or "fp32"
    if stored not in IN_FLOAT32:
        raise InputError(f"OpenVINO computes {', '.join(IN_FLOAT32)} graphs in bfloat16, not {stored}")
    if not device.computes("bf16"):
        raise InputError(
            f"precision {wanted} is not to be had: this machine's {device.name} does not compute in bfloat16; "
            f"give --precision {stored}"
        )
    if stored not in manifest.precisions:
        raise InputError(
            f"{manifest.root}: OpenVINO computes {wanted} from {stored} graphs, and there are only "
            f"{', '.join(manifest.precisions)}; export it with --precision {stored}"
        )
    return stored, "bf16", wanted
