"""Second graphs of decoder segments with mixtures of experts: for one token of each row, by the experts it chose.

They are made of the segments' own, and refer to the same files of weights.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from exporters.rewriting.edit import producer, replace
from exporters.rewriting.gathering import gather_mixtures
from vtc.facts.model import DecoderFacts
from vtc.runtime.decoder import ROWS

SEGMENT, WHOLE, STEP = "decoder_segment", "decoder_model_merged", "decoder_step"
"""What file stems of decoder graphs begin with: of a segment, of a decoder in one piece, and of a graph for steps."""


def step_name(graph: str) -> str:
    """File stem of the graph for steps of a decoder's graph."""
    return STEP if graph == WHOLE else graph.replace(SEGMENT, STEP)


def step_rows(decoder: DecoderFacts) -> int:
    """Rows of one token up to which gathering experts is the faster way; 0 where it never is.

    Each row reads the matrices of its experts, and writes them once more. Measured on processors it breaks even where
    they are three quarters as many as there are experts; half is taken.
    """
    return decoder.experts // (2 * decoder.active_experts) if decoder.experts > 1 else 0


def add_steps(paths: dict[str, Path]) -> None:
    """Write the graphs for steps beside a decoder's graphs, and name them among those."""
    for name, path in list(paths.items()):
        if name.startswith((SEGMENT, WHOLE)):
            model = ir.load(path)
            _drop_visual(model.graph)
            gather_mixtures(model)
            step = path.with_name(path.name.replace(name, step_name(name), 1))
            ir.save(model, step)  # large weights stay in the file beside the segment's graph
            paths[step_name(name)] = step


def _drop_visual(graph: ir.Graph) -> None:
    """Of mixtures with experts for visual tokens alone, leave those of text; the graph takes the same inputs."""
    order = next((value for value in graph.inputs if value.name == ROWS[-1]), None)
    for taker in () if order is None else list(order.consumers()):
        joined = producer(taker.inputs[0], "Concat")
        text = None if joined is None else joined.inputs[0]
        if taker.op_type == "Gather" and joined is not None and text is not None:
            replace(graph, {joined.outputs[0]: text})
