"""Second graphs of decoder segments with mixtures of experts: for one token of each row, by the experts it chose.

They are made of the segments' own, and refer to the same files of weights.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from exporters.rewriting.gathering import gather_mixtures
from vtc.facts.model import DecoderFacts

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
            gather_mixtures(model)
            step = path.with_name(path.name.replace(name, step_name(name), 1))
            ir.save(model, step)  # large weights stay in the file beside the segment's graph
            paths[step_name(name)] = step
