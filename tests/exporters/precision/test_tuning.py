"""Scales that are learned bring a model in few bits closer to the model, and leave that one alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporters.onnx import VALUES, export
from exporters.precision import precision, tuning
from exporters.precision.quantize import linear_layers
from exporters.precision.tuning import tuned
from exporters.precision.weights import Chosen, choose
from tests.exporters.export_request import request
from tests.tiny import RECIPES, compressed, image
from vtc.compressed.model import CompressedModel
from vtc.data.samples import Sample
from vtc.errors import InputError
from vtc.models.base import VLMAdapter
from vtc.training.frozen import tensors_digest

Q4 = replace(precision("q4"), wide=0.1)


@pytest.fixture(scope="module")
def samples(adapter: VLMAdapter) -> list[Sample]:
    return [Sample([image(seed)], adapter.chat(f"what is {word} ?")) for seed, word in enumerate("abcdefgh")]


@pytest.fixture(scope="module")
def model(adapter: VLMAdapter) -> CompressedModel:
    return compressed(adapter, *RECIPES["cls"])


@pytest.fixture(scope="module")
def rounded(model: CompressedModel, samples: list[Sample]) -> dict[str, Chosen]:
    return choose([model], [Q4], samples)["q4"]


def _in_decoder(name: str) -> bool:
    return "language_model.layers" in name or "lm_head" in name


def _spoilt(one: Chosen) -> Chosen:
    """With scales that are wrong by a tenth or so."""
    wrong = np.random.default_rng(0).uniform(0.85, 1.15, one.small.scales.shape).astype(np.float32)
    return replace(one, small=replace(one.small, scales=one.small.scales * wrong))


def test_held_out_prompts_come_closer_and_the_model_stays(
    adapter: VLMAdapter,
    model: CompressedModel,
    samples: list[Sample],
    rounded: dict[str, Chosen],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "RATE", 1e-2)
    spoilt = {name: _spoilt(one) if _in_decoder(name) else one for name, one in rounded.items()}
    digest = tensors_digest(adapter.model)
    asked = {name: weight.requires_grad for name, weight in adapter.model.named_parameters()}
    found, result = tuned([model], spoilt, samples, 40)
    assert result.kept
    assert result.after < 0.7 * result.before
    assert tensors_digest(adapter.model) == digest
    assert {name: weight.requires_grad for name, weight in adapter.model.named_parameters()} == asked
    assert not any("parametrizations" in name for name, _ in adapter.model.named_modules())
    assert found.keys() == spoilt.keys()
    changed = {name for name in found if not np.array_equal(found[name].small.scales, spoilt[name].small.scales)}
    assert changed == {name for name, _ in linear_layers(adapter, head=True) if _in_decoder(name)}
    for name, one in found.items():
        assert np.array_equal(one.small.numbers, spoilt[name].small.numbers)
        assert one.small.scales.dtype == spoilt[name].small.scales.dtype
        assert one.small.scales.shape == spoilt[name].small.scales.shape


def test_scales_stay_where_learning_is_of_no_use(
    model: CompressedModel, samples: list[Sample], rounded: dict[str, Chosen], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "RATE", 10.0)
    found, result = tuned([model], rounded, samples, 2)
    assert not result.kept
    assert found == rounded


def test_layers_of_equal_weights_go_on_sharing_what_is_stored(
    adapter: VLMAdapter, model: CompressedModel, samples: list[Sample]
) -> None:
    layers: Any = adapter.decoder_layers
    first, second = (layers[number].self_attn.o_proj for number in (0, 1))
    before = second.weight.detach().clone()
    try:
        second.weight.data.copy_(first.weight)
        names = [name for name, module in adapter.model.named_modules() if module in (first, second)]
        rounded = choose([model], [Q4], samples)["q4"]
        found, _ = tuned([model], rounded, samples, 3)
        assert np.array_equal(*(found[name].small.scales for name in names))
    finally:
        second.weight.data.copy_(before)


def test_one_prompt_is_refused(model: CompressedModel, samples: list[Sample], rounded: dict[str, Chosen]) -> None:
    with pytest.raises(InputError, match="two at least"):
        tuned([model], rounded, samples[:1], 1)


def test_an_error_leaves_the_model_as_it_was(
    adapter: VLMAdapter,
    model: CompressedModel,
    samples: list[Sample],
    rounded: dict[str, Chosen],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    digest = tensors_digest(adapter.model)
    monkeypatch.setattr(tuning, "_learn", fails)
    with pytest.raises(KeyboardInterrupt):
        tuned([model], rounded, samples, 1)
    assert tensors_digest(adapter.model) == digest
    assert not torch.nn.utils.parametrize.is_parametrized(adapter.head)


def test_bundle_tells_of_it(adapter: VLMAdapter, samples: list[Sample], tmp_path: Path) -> None:
    wanted = request(adapter, *RECIPES["cls"], precisions=("q4",), calibration=samples, tuning=2)
    assert export(wanted, tmp_path / "b")["q4"].logits_max_diff < 1e-3
    told = json.loads((tmp_path / "b" / VALUES).read_text())["q4"]["tuning"]
    assert told["steps"] == 2
    assert told["before"] > 0
    assert told["after"] > 0
