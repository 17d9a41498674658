"""Decoder graphs to rewrite, and runs of them side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import exporters.onnx
from exporters.graphs import graph_specs
from exporters.precision.floats import set_nodes
from exporters.precision.joined import join_products
from exporters.writing import DEFAULT_OPSET
from tests.tiny import recipe
from vtc.compressed.build import apply_recipe
from vtc.inputs.schedule import token_rows
from vtc.models import load_adapter
from vtc.models.random.shapes import TINY
from vtc.models.random.tiny import write_tiny_llava
from vtc.models.random.tiny_families import TINY_FAMILIES, write_tiny
from vtc.models.random.tiny_families.family import Family
from vtc.runtime.decoder import ROWS as INPUTS_BY_MODALITY

Array = NDArray[Any]
LAYERS = 2
FEW_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
"""Of 24 numbers, a multiple of 8 as in all real models; those of most tiny ones have 12."""
ROWS = ((9, 6), (7,), (4, 8, 1))
"""Lengths of the rows of batches: padded on the left, alone, and a single token among longer ones."""
STEPS = 3
BUFFER = 16
"""Places of a cache that is written in place."""


def export_decoder(family: str, directory: Path, *stages: dict[str, Any]) -> Path:
    """Export the decoder of a tiny compressed model of a family, with heads as ONNX Runtime's attention takes them."""
    path = directory / "model"
    if family in TINY_FAMILIES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(TINY_FAMILIES, family, lambda *layers, make=TINY_FAMILIES[family]: _few_heads(make(*layers)))
            write_tiny(family, path, encoder_layers=2, decoder_layers=LAYERS)
    else:
        shape = replace(TINY, decoder=replace(TINY.decoder, heads=2, kv_heads=1))
        write_tiny_llava(path, grid=4, encoder_layers=2, decoder_layers=LAYERS, like=shape)
    return export_segments(path, directory, *stages)[0]


def _few_heads(family: Family) -> Family:
    text = family.text | ({} if family.text.get("head_dim", 12) % 8 == 0 else FEW_HEADS)
    if text is not family.text and "num_experts" not in text and text.get("head_dim") == 12:
        text = text | {"head_dim": 24}
    rope = text.get("rope_parameters", {})
    if rope.get("mrope_section") == [2, 2, 2]:
        text = text | {"rope_parameters": rope | {"mrope_section": [4, 4, 4]}}
    return replace(family, text=text)


def export_segments(model: Path, directory: Path, *stages: dict[str, Any]) -> list[Path]:
    """Export the decoder's segments of a model compressed by these stages."""
    compressed = apply_recipe(load_adapter(model), recipe(*stages))
    compressed.adapter.set_decoder_attention("grouped")
    paths = []
    for spec in graph_specs([compressed], torch.float32):
        if spec.name.startswith("decoder"):
            paths.append(directory / f"{spec.name}.onnx")
            exporters.onnx.export_graph(spec, paths[-1], opset=DEFAULT_OPSET)
    return paths


def join_heads(portable: Path, to: Path) -> Path:
    """Round the weights of queries, keys and values to 8 bits, and join their products as exports do."""
    model = onnx.load(portable)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    together = Counter(node.input[0] for node in products)
    nodes = []
    for node in model.graph.node:
        if node in products and together[node.input[0]] == 3:
            values = numpy_helper.to_array(weights[node.input[1]])
            scales = np.abs(values).max(axis=0, keepdims=True) / 127
            numbers, scale, made = (f"{node.input[1]}/{part}" for part in ("numbers", "scales", "made"))
            model.graph.initializer.append(numpy_helper.from_array(np.rint(values / scales).astype(np.int8), numbers))
            model.graph.initializer.append(numpy_helper.from_array(scales, scale))
            block = len(values)
            nodes.append(helper.make_node("DequantizeLinear", [numbers, scale], [made], axis=0, block_size=block))
            node.input[1] = made
        nodes.append(node)
    set_nodes(model, nodes)
    model.opset_import[0].version = 21
    assert join_products(model) == 2 * LAYERS
    onnx.save(model, to)
    return to


class Run:
    """A decoder's graph, run step by step on random hidden states.

    Parameters
    ----------
    path : Path
    lengths : sequence of int
        Of each row at first.
    buffer : int
        Places of a cache that past and present share; 0 lets the cache grow.
    """

    def __init__(self, path: Path, lengths: Sequence[int], buffer: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.lengths, self.past, self.buffer = np.array(lengths), 0, buffer
        self.first = int(self.lengths.max())
        self.cache = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(
                # What was never written must not be read.
                np.full((len(lengths), value.shape[1], buffer, value.shape[3]), np.nan, dtype=np.float32)
            )
            for name, value in self.inputs.items()
            if name.startswith("past_key_values.")
        }

    def step(self) -> dict[str, Array]:
        """Run the prompts, or once they have been more tokens: what comes out for real tokens, less the cache."""
        alone = len(self.lengths) == 1 and self.past == self.lengths[0] == self.first
        new = (3 if alone else 1) if self.past else self.first  # a row alone may go on by several tokens at once
        self.lengths = self.lengths + (new if self.past else 0)
        total = self.past + new
        feeds = self._feeds(new, total)
        binding = self.session.io_binding()
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        for name, cached in self.cache.items():
            binding.bind_ortvalue_input(name, cached)
        for name in self.outputs:
            past = name.replace("present.", "past_key_values.")
            if self.buffer and past in self.cache:
                binding.bind_ortvalue_output(name, self.cache[past])
            else:
                binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        results = dict(zip(self.outputs, binding.get_outputs(), strict=True))
        present = {name: results.pop(name.replace("past_key_values", "present")) for name in self.cache}
        if self.buffer:
            assert all(present[name].data_ptr() == cached.data_ptr() for name, cached in self.cache.items())
        else:
            self.cache = present  # a buffer's first values own its memory, and what comes out does not
        self.past = total
        real = feeds["attention_mask"][:, -new:].astype(bool)
        found = {}
        for name, result in results.items():
            values = result.numpy()
            assert np.isfinite(values).all(), f"{name} of padding must not spoil what it meets"
            found[name] = values if name == "logits" else values[real]
        return found

    def _feeds(self, new: int, total: int) -> dict[str, Array]:
        """Positions have gaps, as after pruning, and go beyond windows; tokens 2 and 3 of each prompt are an image."""
        generator = np.random.default_rng(total)
        mask = (np.arange(total) >= total - self.lengths[:, None]).astype(np.int64)
        places = np.maximum(np.cumsum(mask, axis=1) - 1, 0) * 3
        image = (places >= 6) & (places < 12) & (mask == 1) & (self.past == 0)
        named: dict[str, Array] = {"attention_mask": mask, "key_position_ids": places}
        named["block_ids"] = np.where(image, 0, -1)
        named |= zip(INPUTS_BY_MODALITY, token_rows(image[:, -new:]), strict=True)
        own = places[:, -new:]
        named["position_ids"] = np.stack([own, own + 1, own // 2]) if self._axes == 3 else own
        width = next(iter(self.inputs.values())).shape[2]
        hidden = generator.standard_normal((len(self.lengths), new, width)).astype(np.float32)
        named[next(iter(self.inputs))] = hidden
        return {name: np.ascontiguousarray(value) for name, value in named.items() if name in self.inputs}

    @property
    def _axes(self) -> int:
        return 3 if len(self.inputs["position_ids"].shape) == 3 else 1


def assert_alike(portable: Path, rewritten: Path, *, in_place: bool, tolerance: float = 1e-5) -> None:
    """Both graphs give the same for prompts of all kinds and the tokens after them, however the cache is held."""
    for lengths in ROWS:
        expected = Run(portable, lengths)
        runs = [Run(rewritten, lengths)] + ([Run(rewritten, lengths, BUFFER)] if in_place else [])
        assert [expected.outputs, list(expected.inputs)] == [runs[0].outputs, list(runs[0].inputs)]
        for _ in range(STEPS + 1):
            values = expected.step()
            assert values
            for run in runs:
                for name, found in run.step().items():
                    scale = np.abs(values[name]).max()
                    np.testing.assert_allclose(found, values[name], rtol=0, atol=tolerance * scale, err_msg=name)
