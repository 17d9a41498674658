"""Does each layer that rounds its input compute what PyTorch computes with the same rounding?

Rounding to one number or the next can be a matter of the last bit, and a few such differences spread to all values
within a few layers. So a whole model with rounded activations is close to nothing but itself, and its layers are
compared one by one, each on the input that it has in the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from exporters.graph_spec import SourceModule
from exporters.precision.probe import fed, opened
from exporters.precision.quantize import Rounded
from vtc.compressed.model import CompressedModel
from vtc.data.samples import Sample


def layers_off(
    path: Path,
    layers: Sequence[Rounded],
    rounded_model: CompressedModel,
    sources: Sequence[SourceModule],
    sample: Sample,
) -> float:
    """Largest difference of a layer's output from PyTorch's, in units of its largest value.

    Parameters
    ----------
    path : Path
        A graph, computing in float32.
    layers : sequence of Rounded
    rounded_model : CompressedModel
        See :func:`exporters.precision.fake_quantised.fake_quantised`.
    sources : sequence of (model, module)
        What the graph is made of.
    sample : Sample
    """
    graph = onnx.load(path, load_external_data=False)
    there = {value.name for value in graph.graph.output}
    for name in {name for layer in layers for name in (layer.input, layer.output)} - there:
        graph.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = opened(graph, path.with_name(f"{path.name}.layers"), "cpu")
    modules: dict[str, nn.Module] = dict(rounded_model.adapter.model.named_modules())
    worst = 0.0

    def compare(found: Mapping[str, Any]) -> None:
        nonlocal worst
        for layer in layers:
            module: Any = modules[layer.module]
            ours = module(torch.from_numpy(found[layer.input].numpy()))
            if module.bias is not None and not layer.biased:
                ours = ours - module.bias
            theirs = torch.from_numpy(found[layer.output].numpy())
            off = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-12))
            worst = max(worst, off if math.isfinite(off) else math.inf)

    fed(session, sources, [sample], compare, new_tokens=1)
    return worst
