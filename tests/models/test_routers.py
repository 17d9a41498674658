"""What is watched of routers is what they decide; soft scores follow the attention."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from tests.models.families import Case, Checkpoints, compressed, prompts_of
from tests.models.own import own_inputs, own_logits, own_model
from vtc.compressed.following import following
from vtc.compressed.model import CompressedModel
from vtc.errors import InputError
from vtc.models.base import VLMAdapter
from vtc.models.routers import Routed, Tokens, check_mixture, chosen_outputs, router_and_experts, watching_routers


@pytest.fixture(scope="module", params=["llava", "qwen3_vl_moe"])
def model(
    request: pytest.FixtureRequest, mixture: VLMAdapter, tmp_path_factory: pytest.TempPathFactory
) -> CompressedModel:
    """A mixture with one position a token, and one with three and DeepStack features."""
    if request.param == "llava":
        return compressed(mixture)
    return compressed(Checkpoints(tmp_path_factory.mktemp("routers"), 2, 3).adapter(Case(request.param)))


@pytest.fixture(scope="module")
def watched(model: CompressedModel) -> list[Routed]:
    """What each layer's router decided on two prompts of unequal length."""
    found: list[Routed] = []
    told: list[Tokens] = []
    ids, mask, pixels = model.inputs(*prompts_of(model.adapter, "batch"))

    def enter(values: Tensor, _: Tensor, position_ids: Tensor) -> None:
        told.append(Tokens.of(values[..., 0].bool(), position_ids))
        tell(told[-1])

    with (
        watching_routers(model.adapter, found.append) as tell,
        following(model, enter, lambda values: values) as follow,
        torch.inference_mode(),
    ):
        follow((ids == model.adapter.image_token_id)[..., None])
        model.prefill(ids, mask, pixels)
    return found


@dataclass
class Own:
    """What the checkpoint's own model does with the prompts, with eager attention; lists over layers."""

    visual: Tensor
    real: Tensor
    entering: list[Tensor] = field(default_factory=list)
    attended: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    routed: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)


@pytest.fixture(scope="module")
def own(model: CompressedModel) -> Own:
    adapter = model.adapter
    inputs = own_inputs(adapter.path, *prompts_of(adapter, "batch"))
    found = Own(inputs["input_ids"] == adapter.image_token_id, inputs["attention_mask"].bool())
    whole = own_model(adapter.path)
    whole.set_attn_implementation({"text_config": "eager"})
    for layer in whole.model.language_model.layers:
        layer.register_forward_pre_hook(lambda _, given: found.entering.append(given[0]))
        layer.self_attn.register_forward_hook(lambda *given: found.attended.append(given[-1]))
        layer.mlp.gate.register_forward_hook(lambda *given: found.routed.append(given[-1]))
    own_logits(whole, inputs)
    return found


def test_logits_and_choices_are_the_models_own(watched: list[Routed], own: Own) -> None:
    real = own.real
    assert [routed.layer for routed in watched] == list(range(len(own.routed)))
    for routed, theirs in zip(watched, own.routed, strict=True):
        logits, weights, chosen = (values.reshape(*real.shape, -1)[real] for values in theirs)
        torch.testing.assert_close(routed.logits[real], logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(routed.weights[real], weights, atol=1e-5, rtol=1e-4)
        assert torch.equal(routed.chosen[real], chosen)


def test_scores_follow_the_attention_maps(watched: list[Routed], own: Own) -> None:
    """Each token takes over what it looks at, by the share that attention has in the sum of norms."""
    scores = torch.stack([~own.visual, own.visual], dim=-1).float()
    for routed, entering, (output, maps) in zip(watched, own.entering, own.attended, strict=True):
        added, stayed = (values.norm(dim=-1, keepdim=True) for values in (output, entering))
        scores = (added * (maps.mean(dim=1) @ scores) + stayed * scores) / (added + stayed)
        torch.testing.assert_close(routed.scores[own.real], scores[own.real], atol=1e-4, rtol=1e-4)
    shares = scores[own.real][:, 1]
    assert ((shares > 0.01) & (shares < 0.99)).any()


def test_outputs_of_chosen_experts_add_up_to_the_layers(watched: list[Routed]) -> None:
    routed = watched[1]
    hidden, chosen, weights = (values.flatten(0, 1) for values in (routed.hidden, routed.chosen, routed.weights))
    total = torch.zeros_like(hidden)
    with torch.inference_mode():
        for expert, outputs in chosen_outputs(routed.experts, hidden, chosen):
            picked = chosen == expert
            total[picked.any(dim=1)] += outputs * (weights * picked).sum(dim=1)[picked.any(dim=1), None]
        expected = routed.experts(hidden, chosen, weights)
    torch.testing.assert_close(total, expected, atol=1e-5, rtol=1e-4)


def test_nothing_is_left_on_the_model(model: CompressedModel, watched: list[Routed]) -> None:
    for layer in model.adapter.decoder_layers:
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())


def test_dense_models_have_none(mixture: VLMAdapter, adapter: VLMAdapter) -> None:
    assert router_and_experts(adapter.decoder_layers[0]) is None
    check_mixture(mixture)
    with pytest.raises(InputError, match="is dense, it has no experts"):
        check_mixture(adapter)
