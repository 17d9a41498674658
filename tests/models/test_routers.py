"""What is watched of routers is what they decide; soft scores follow the attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.own import own_model
from tests.tiny import compressed, image
from vtc.errors import InputError
from vtc.models.base import VLMAdapter
from vtc.models.routers import Routed, Tokens, check_mixture, chosen_outputs, router_and_experts, watching_routers

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def batch(mixture: VLMAdapter) -> Batch:
    """Token ids, mask and pixels of two prompts of unequal length, and the positions of their tokens."""
    prompts = [mixture.chat("what is it ?"), mixture.chat("what digit is the red one and where is it ?")]
    ids, mask, pixels = compressed(mixture).inputs([[image(0)], [image(1)]], prompts)
    assert pixels is not None
    return ids, mask, pixels, (mask.cumsum(dim=1) - 1).clamp(min=0)


@pytest.fixture(scope="module")
def watched(mixture: VLMAdapter, batch: Batch) -> list[Routed]:
    """What each layer's router decided on them."""
    ids, mask, pixels, positions = batch
    found: list[Routed] = []
    with watching_routers(mixture, found.append) as tell, torch.inference_mode():
        tell(Tokens.of(ids == mixture.image_token_id, positions))
        compressed(mixture).prefill(ids, mask, pixels)
    return found


@dataclass
class Own:
    """What the checkpoint's own model does with the batch, with eager attention; a list over layers each."""

    maps: list[Tensor]
    entering: list[Tensor]
    attended: list[Tensor] = field(default_factory=list)
    routed: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)


@pytest.fixture(scope="module")
def own(mixture: VLMAdapter, batch: Batch) -> Own:
    ids, mask, pixels, _ = batch
    attended: list[Any] = []
    routed: list[Any] = []
    model = own_model(mixture.path)
    model.set_attn_implementation({"text_config": "eager"})
    for layer in model.model.language_model.layers:
        layer.self_attn.register_forward_hook(lambda *given: attended.append(given[-1][0]))
        layer.mlp.gate.register_forward_hook(lambda *given: routed.append(given[-1]))
    wanted = {"use_cache": False, "output_attentions": True, "output_hidden_states": True}
    with torch.inference_mode():
        found = model(input_ids=ids, attention_mask=mask, pixel_values=pixels, **wanted)
    return Own([maps.mean(dim=1) for maps in found.attentions], list(found.hidden_states), attended, routed)


def test_logits_and_choices_are_the_models_own(batch: Batch, watched: list[Routed], own: Own) -> None:
    real = batch[1].bool()
    assert [routed.layer for routed in watched] == list(range(len(own.routed)))
    for routed, theirs in zip(watched, own.routed, strict=True):
        logits, weights, chosen = (values.reshape(*real.shape, -1)[real] for values in theirs)
        torch.testing.assert_close(routed.logits[real], logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(routed.weights[real], weights, atol=1e-5, rtol=1e-4)
        assert torch.equal(routed.chosen[real], chosen)


def test_scores_follow_the_attention_maps(mixture: VLMAdapter, batch: Batch, watched: list[Routed], own: Own) -> None:
    """Each token takes over what it looks at, by the share that attention has in the sum of norms."""
    real = batch[1].bool()
    visual = (batch[0] == mixture.image_token_id).float()
    scores = torch.stack([1 - visual, visual], dim=-1)
    for layer, routed in enumerate(watched):
        added, stayed = (values.norm(dim=-1, keepdim=True) for values in (own.attended[layer], own.entering[layer]))
        scores = (added * (own.maps[layer] @ scores) + stayed * scores) / (added + stayed)
        torch.testing.assert_close(routed.scores[real], scores[real], atol=1e-4, rtol=1e-4)
    shares = scores[real][:, 1]
    assert ((shares > 0.01) & (shares < 0.99)).any()


def test_outputs_of_chosen_experts_add_up_to_the_layers(mixture: VLMAdapter, watched: list[Routed]) -> None:
    routed = watched[1]
    hidden, chosen, weights = (values.flatten(0, 1) for values in (routed.hidden, routed.chosen, routed.weights))
    total = torch.zeros_like(hidden)
    with torch.inference_mode():
        for expert, outputs in chosen_outputs(routed.experts, hidden, chosen):
            picked = chosen == expert
            total[picked.any(dim=1)] += outputs * (weights * picked).sum(dim=1)[picked.any(dim=1), None]
        expected = routed.experts(hidden, chosen, weights)
    torch.testing.assert_close(total, expected, atol=1e-5, rtol=1e-4)


def test_nothing_is_left_on_the_model(mixture: VLMAdapter, adapter: VLMAdapter, watched: list[Routed]) -> None:
    for layer in mixture.decoder_layers:
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())
    assert router_and_experts(adapter.decoder_layers[0]) is None
    check_mixture(mixture)
    with pytest.raises(InputError, match="is dense, it has no experts"):
        check_mixture(adapter)
