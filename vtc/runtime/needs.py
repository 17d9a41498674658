"""What a bundle takes to be run, by the sizes of its graphs, and a refusal before any is loaded."""

from __future__ import annotations

from vtc.bundle.external_data import stacked_bytes, widened_bytes
from vtc.bundle.facts import precision_and_form
from vtc.bundle.manifest import Manifest
from vtc.needs import Need, refuse_what_cannot_fit
from vtc.runtime.interface import Backend
from vtc.runtime.nvidia import gpu_here
from vtc.runtime.options import RuntimeOptions

LIBRARIES = 100 * 2**20
"""Memory of the interpreter, numpy, Pillow and ONNX Runtime."""
EMBEDDING = "embed_tokens"
LESS_MEMORY = "a smaller --precision of the bundle, such as q4 (vtc export --precision q4)"


def graphs_need(
    matrices: int, table: int, precision: str, provider: str = "cpu", experts: int = 0, widened: int = 0
) -> Need:
    """What ONNX Runtime takes for graphs; what an answer computes is small beside that.

    On a CPU matrices are laid out anew, in float32 where they are 16 bits wide: a copy that the system cannot take
    back. Rows of the embedding are looked up in its file, and stacked matrices multiplied as they lie there, or made
    floats of a layer at a time.

    Parameters
    ----------
    matrices, table : int
        Bytes of all graphs but the embedding's, and of that.
    precision : str
    provider : str
        ``cpu`` or ``cuda``.
    experts : int
        Bytes of the stacked matrices among `matrices` that are read in place.
    widened : int
        Bytes of those of a layer in float32 where they are stored in few bits.
    """
    if provider != "cpu":
        return Need(LIBRARIES, gpu=matrices + table)
    if precision in ("fp16", "bf16"):
        return Need(LIBRARIES, work=2 * matrices, mapped=table)
    return Need(LIBRARIES, work=matrices - experts + widened, mapped=table + experts)


def bundle_need(manifest: Manifest, variant: str, provider: str) -> Need:
    """What a variant of a bundle takes in ONNX Runtime; see :func:`graphs_need`."""
    table = sum(entry.bytes for entry in manifest.graph_files(EMBEDDING, variant).values())
    matrices = manifest.graph_bytes(variant) - table
    graphs = [manifest.graph(segment.graph, variant) for segment in manifest.segments]
    experts, widened = sum(map(stacked_bytes, graphs)), max(map(widened_bytes, graphs))
    precision, form = precision_and_form(variant)
    if form == "ort" and widened:  # its own operator lays numbers out anew too, and has no use for floats
        experts = widened = 0
    return graphs_need(matrices, table, precision, provider, experts, widened)


def need_of(manifest: Manifest, options: RuntimeOptions, backend: Backend) -> Need:
    """What a bundle takes in the backend that was opened for it; what others than ONNX Runtime take is not known."""
    if options.backend != "onnxruntime":
        return Need()
    return bundle_need(manifest, backend.variant, backend.provider)


def check_room(manifest: Manifest, options: RuntimeOptions, backend: Backend) -> None:
    """Refuse to run a bundle for which there is not memory.

    Raises
    ------
    OutOfResources
    """
    need = need_of(manifest, options, backend)
    gpu = gpu_here() if need.gpu else None
    refuse_what_cannot_fit(f"running {manifest.root}", need, LESS_MEMORY, gpu=None if gpu is None else gpu.memory)
