"""Weights in few bits are chosen by samples: what is measured, what gets 8 bits, and what a bundle holds of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from exporters.onnx import VALUES, export
from exporters.precision import calibration, precision, weights
from exporters.precision.quantize import linear_layers, vision_layers
from exporters.precision.small import Small
from exporters.precision.weights import Chosen, choose, standing_out, table
from tests.exporters.export_request import request
from tests.tiny import RECIPES, compressed, image
from vtc.data.samples import Sample
from vtc.models.base import VLMAdapter


@pytest.fixture(scope="module")
def samples(adapter: VLMAdapter) -> list[Sample]:
    return [Sample([image(seed)], adapter.chat("what is it ?")) for seed in range(3)]


def chosen(error: float | None, bits: int = 4) -> Chosen:
    return Chosen(Small(np.zeros((1, 1)), np.ones(1), 0), bits, "gptq", error, divergence=error and error / 10)


def test_products_are_those_of_what_goes_in(
    adapter: VLMAdapter, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compressed(adapter, *RECIPES["cls"])
    layers = dict(linear_layers(adapter, head=True))
    whole = {name: one for part in calibration.products([model], samples, layers) for name, one in part.items()}
    assert list(whole) == list(layers)
    answers = [model.generate([one.images], [one.prompt], 16)[0].token_ids for one in samples]
    for name in (name for name in layers if name.endswith(("layers.0.self_attn.q_proj", "linear_2"))):
        seen: list[torch.Tensor] = []
        handle = layers[name].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].flatten(0, -2)))
        for sample, answer in zip(samples, answers, strict=True):
            ends = [*answer, adapter.eos_token_ids[0], adapter.pad_token_id]
            model.score([sample.images], [sample.prompt], [ends])
        handle.remove()
        rows = torch.cat(seen)
        torch.testing.assert_close(whole[name], rows.T @ rows)
    assert torch.linalg.matrix_rank(whole["lm_head"]) > 20  # by all tokens, not by the last of each prompt alone
    monkeypatch.setattr(calibration, "MOST_BYTES", 4 * 48**2)
    parts = list(calibration.products([model], samples, layers))
    assert len(parts) > len(layers) / 2
    for part in parts:
        for name, one in part.items():
            torch.testing.assert_close(one, whole[name])


def test_calibrated_layers_are_closer_than_nearest_ones(adapter: VLMAdapter, samples: list[Sample]) -> None:
    model, how = compressed(adapter, *RECIPES["cls"]), replace(precision("q4"), wide=0.0)
    by_samples, by_weight = (choose([model], [how], some)["q4"] for some in (samples, []))
    assert by_samples.keys() == by_weight.keys()
    assert {one.method for one in by_weight.values()} == {"nearest"}
    assert all(one.error is None for one in by_weight.values())
    layers = dict(linear_layers(adapter, head=True))
    off, plain = [], []
    for part in calibration.products([model], samples, layers):
        for name, product in part.items():
            one = by_samples[name]
            assert (one.error is None) == (not product.any())
            weight = layers[name].weight.detach()
            for errors, found in ((off, one), (plain, by_weight[name])):
                change = torch.from_numpy(found.small.values()) - weight
                errors.append(float(((change @ product) * change).sum()))
    assert sum(off) < 0.5 * sum(plain)


def test_precisions_share_what_they_store_alike(
    adapter: VLMAdapter, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    estimate = weights.divergences

    def counted(models: Any, new: Any, *more: Any) -> dict[str, float]:
        asked.append(len(new))
        return estimate(models, new, *more)

    monkeypatch.setattr(weights, "divergences", counted)
    model = compressed(adapter, *RECIPES["cls"])
    found = choose([model], [precision("q4"), precision("q4-static")], samples)
    vision = vision_layers(adapter)
    for name, one in found["q4"].items():
        other = found["q4-static"][name]
        if name in vision:
            assert (other.bits, other.method, other.small.block) == (8, "nearest", 0)
        elif one.bits == other.bits == 4:
            assert one.small is other.small
    assert len(asked) == 1  # the second has nothing that the first has not


def test_layers_that_matter_most_for_their_size_get_8_bits() -> None:
    layers = {"a": chosen(0.3), "b": chosen(0.2), "c": chosen(0.1), "d": chosen(None), "e": chosen(0.9, bits=8)}
    sizes = {"a": 300, "b": 50, "c": 50, "d": 500, "e": 100}
    assert standing_out(layers, sizes, 0.0) == []
    assert standing_out(layers, sizes, 0.05) == ["b"]
    assert standing_out(layers, sizes, 0.1) == ["b", "c"]
    assert standing_out(layers, sizes, 0.4) == ["b", "c", "a"]


def test_table_is_worst_first_and_json() -> None:
    rows = table({"a": chosen(0.123456), "b": chosen(None, bits=8), "c": chosen(0.2)})
    assert [row["layer"] for row in rows] == ["c", "a", "b"]
    assert rows[1] == {"layer": "a", "bits": 4, "method": "gptq", "error": 0.1235, "divergence": 0.01235}
    assert json.loads(json.dumps(rows)) == rows


def test_bundle_holds_what_was_chosen(adapter: VLMAdapter, samples: list[Sample], tmp_path: Path) -> None:
    wanted = request(adapter, *RECIPES["cls"], precisions=("q4",), calibration=samples)
    parity = export(wanted, tmp_path / "b")
    assert parity["q4"].logits_max_diff < 1e-3
    notes = json.loads((tmp_path / "b" / VALUES).read_text())
    assert notes["q4"]["method"] == "gptq"
    rows = notes["q4"]["layers"]
    errors = [row["error"] for row in rows if row["error"] is not None]
    assert errors == sorted(errors, reverse=True)
    wide = [row["layer"] for row in rows if row["bits"] == 8 and "embed" not in row["layer"]]
    assert wide
    stored = {TensorProto.INT4: 0, TensorProto.INT8: 0}
    for file in (tmp_path / "b" / "onnx").glob("*_q4.onnx"):
        for tensor in onnx.load(file).graph.initializer:
            if tensor.name.endswith("/numbers"):
                stored[tensor.data_type] += int(np.prod(tensor.dims))
    sizes = {name: module.weight.numel() for name, module in linear_layers(adapter, head=True)}
    assert stored[TensorProto.INT8] == sum(sizes[name] for name in wide)
    assert stored[TensorProto.INT4] > stored[TensorProto.INT8]
