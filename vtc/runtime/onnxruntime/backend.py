"""ONNX Runtime as a backend."""

from __future__ import annotations

from collections.abc import Mapping

from vtc.bundle.external_data import widened_bytes
from vtc.bundle.facts import Form
from vtc.bundle.interface import check_interface
from vtc.bundle.manifest import Manifest
from vtc.bundle.weights import check_weights
from vtc.runtime.interface import LoadedGraph, Past
from vtc.runtime.on_host import OnHost
from vtc.runtime.onnxruntime.graph import Graph
from vtc.runtime.onnxruntime.in_place import InPlacePast
from vtc.runtime.onnxruntime.providers import choose_provider, import_onnxruntime
from vtc.runtime.onnxruntime.steps import WithSteps
from vtc.runtime.options import RuntimeOptions
from vtc.runtime.past import GrowingPast
from vtc.runtime.variants import choose_variant

FORMS_OF: Mapping[str, tuple[Form, ...]] = {
    "cpu": ("ort", "portable", "opset23"),
    "cuda": ("ort", "portable", "opset23"),
}
"""Forms that providers run, best first; others run portable graphs."""
SINCE = (1, 31)
"""First ONNX Runtime that optimised graphs were run with: earlier ones lack attributes of their operators."""


def forms_of(provider: str, version: str) -> tuple[Form, ...]:
    """Forms that a provider of an ONNX Runtime runs, best first."""
    numbers = tuple(int(part) for part in version.split(".")[:2])
    return FORMS_OF.get(provider, ("portable",)) if numbers >= SINCE else ("portable",)


class OnnxRuntime(OnHost):
    """A bundle's graphs in ONNX Runtime: a :class:`~vtc.runtime.interface.Backend`, which says what its methods do.

    Parameters
    ----------
    manifest : Manifest
    options : RuntimeOptions
    sparing : bool
        As for :class:`~vtc.runtime.onnxruntime.graph.Graph`.

    Raises
    ------
    InputError
        If the provider or precision is not to be had.
    """

    def __init__(
        self, manifest: Manifest, options: RuntimeOptions = RuntimeOptions(), *, sparing: bool = False
    ) -> None:
        super().__init__()
        self._manifest, self._options, self._sparing = manifest, options, sparing
        self._provider = choose_provider(options.provider)
        self.provider = self._provider.short_name
        default = "fp16" if self._provider.device == "cuda" else "fp32"
        forms = forms_of(self.provider, import_onnxruntime().__version__)
        self._variant = choose_variant(manifest, options.precision, default, forms)
        self.variant = self._variant.name
        self.precision = self.exported = self._variant.precision

    def open(self, graph: str) -> LoadedGraph:
        step = next((one.step for one in self._manifest.segments if one.graph == graph), None)
        # A prompt's floats of experts that are stored in few bits are several times what their graph is else.
        wide = step is not None and widened_bytes(self._manifest.graph(graph, self.variant)) > 0
        opened = self._open(graph, keep_freed=not wide)
        # A graph that writes the cache where it reads it is ONNX Runtime's own, and computes the chosen experts alone.
        # On a GPU a second session would hold all weights once more.
        if step is None or opened.in_place or opened.device != "cpu":
            return opened
        return WithSteps(opened, self._open(step.graph, step=True), step.rows)

    def _open(self, graph: str, *, step: bool = False, keep_freed: bool = True) -> Graph:
        path = self._manifest.graph(graph, self.variant)
        if self._options.verify:
            check_weights(path)
        # Rows are looked up by one thread. Threads that wait busily would be in the way of the next graph's; the
        # decoder's is run again and again.
        segment = any(graph in one.graphs for one in self._manifest.segments)
        opened = Graph(
            path,
            self._provider,
            1 if graph == "embed_tokens" else self._options.threads,
            self._sparing,
            spin=self._options.spin and segment,
            session=self._variant.session,
            in_place=graph in self._variant.in_place,
            lay_out=not step,
            keep_freed=keep_freed,
        )
        check_interface(self._manifest, graph, *opened.shapes())
        return opened

    def past(self, graph: LoadedGraph, shape: tuple[int, int, int], most: int) -> Past:
        """A cache in place where the graph writes it there; else one that grows, as outputs may be of any length."""
        if isinstance(graph, Graph) and graph.in_place:
            return InPlacePast(graph, shape, most)
        return GrowingPast(graph, shape)
