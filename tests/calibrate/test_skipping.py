"""Skipping is simulated as thresholds say, for real tokens of each modality; nothing of it stays in the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import RECIPES, compressed, image
from vtc.calibrate.skipping import measure_skipping, skipping
from vtc.compressed.model import CompressedModel
from vtc.data.samples import Sample
from vtc.errors import InputError
from vtc.experts.skipping import skipped_share
from vtc.models.base import VLMAdapter

LAYERS, ACTIVE = 4, 2


@pytest.fixture(scope="module")
def samples(mixture: VLMAdapter) -> list[Sample]:
    """Prompts of unequal length: one image, two images, none."""
    asked = [(mixture.chat("what digit is red ?"), [0]), (mixture.chat("where ?", 2), [1, 2])]
    return [Sample([image(seed) for seed in seeds], text) for text, seeds in [*asked, (mixture.chat("how ?", 0), [])]]


@pytest.fixture(scope="module")
def model(mixture: VLMAdapter) -> CompressedModel:
    return compressed(mixture)


@torch.inference_mode()
def logits(model: CompressedModel, samples: list[Sample]) -> Tensor:
    """Of a batch's last tokens."""
    return model.prefill(*model.inputs([s.images for s in samples], [s.prompt for s in samples]))[0]


def test_all_experts_of_a_layer_are_skipped_for_one_modality(model: CompressedModel, samples: list[Sample]) -> None:
    ids, mask, _ = model.inputs([s.images for s in samples], [s.prompt for s in samples])
    visual = (ids == model.adapter.image_token_id) & mask.bool()
    layer: Any = model.adapter.decoder_layers[1]
    text = ~(ids == model.adapter.image_token_id)
    before = logits(model, samples)
    with skipping(model) as state:
        assert torch.equal(logits(model, samples), before)
        assert state.share() == (0.0, 0.0, 0.0)
        state.limits[0, 1] = torch.inf
        found = logits(model, samples)
        shares = state.share()
    handle = layer.mlp.register_forward_hook(lambda _, __, output: output * visual[..., None])
    expected = logits(model, samples)
    handle.remove()
    assert not torch.allclose(found, before, atol=1e-3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    own = int((text & mask.bool()).sum())
    assert shares.text == pytest.approx(1 / LAYERS)
    assert shares.visual == 0.0
    assert shares.all == pytest.approx(own / (LAYERS * int(mask.sum())))
    assert torch.equal(logits(model, samples), before)


def test_thresholds_are_of_importance_times_weight(model: CompressedModel, samples: list[Sample]) -> None:
    importance = np.array([[0.4, 0.3, 0.2, 0.1], [0.7, 0.2, 0.1, 0.0]])
    with skipping(model) as state:
        state.counts = []
        logits(model, samples)
        weights, modality, layer = state.counts[0]
        assert layer == 0
        state.share()
        state.by_thresholds(np.where(np.arange(LAYERS) == 0, importance, 1e6), 0.19, 0.36)
        logits(model, samples)
        found = state.share()
    first = skipped_share(weights[None].numpy(), modality.numpy(), importance[:, :1], (0.19, 0.36))
    assert 0 < first < 1
    assert found.all == pytest.approx(first / LAYERS, abs=1e-6)  # of the other layers, none is skipped


def test_what_is_asked_for_is_skipped(model: CompressedModel, samples: list[Sample]) -> None:
    before = logits(model, samples)
    found = measure_skipping(model, samples * 2, 0.4)
    assert found.thresholds.skipped >= 0.4
    assert found.skipped.all == pytest.approx(found.thresholds.skipped, abs=0.1)
    assert found.loss >= 0
    assert found.importance.shape == (2, LAYERS)
    np.testing.assert_allclose(found.importance.sum(axis=1), 1)
    assert found.importance[1, -1] == pytest.approx(0, abs=1e-6)  # of the last layer, only the last token's is read
    assert torch.equal(logits(model, samples), before)
    data = found.to_dict()
    assert (data["kind"], data["share"], set(data["skipped"])) == ("skipping", 0.4, {"text", "visual", "all"})


def test_prompts_without_images_have_no_visual_share(model: CompressedModel, samples: list[Sample]) -> None:
    found = measure_skipping(model, samples[2:] * 2, 0.4)
    assert found.skipped.visual is None
    assert found.skipped.text == found.skipped.all >= 0.4


def test_what_cannot_be_measured(
    adapter: VLMAdapter, mixture: VLMAdapter, model: CompressedModel, samples: list[Sample]
) -> None:
    with pytest.raises(InputError, match="is dense, it has no experts"):
        measure_skipping(compressed(adapter), samples, 0.3)
    with pytest.raises(InputError, match="visual tokens leave inside the decoder, and skipping is measured where all"):
        measure_skipping(compressed(mixture, *RECIPES["exit"]), samples, 0.3)
    with pytest.raises(InputError, match="1 question is too few: thresholds are found on half"):
        measure_skipping(model, samples[:1], 0.3)
