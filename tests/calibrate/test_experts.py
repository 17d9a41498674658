"""Expert use is what the model's own experts do, token by token; choices by it are those that trying all would make."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.own import own_model
from tests.tiny import RECIPES, compressed, image, recipe
from vtc.calibrate import watching as module
from vtc.calibrate.calibrator import Calibrator
from vtc.calibrate.expert_outputs import layer_outputs
from vtc.calibrate.expert_use import expert_use
from vtc.calibrate.measurements import Measurements
from vtc.data.samples import Sample
from vtc.errors import InputError
from vtc.experts.statistics import SUMS, TEXT, VISUAL, ExpertUse
from vtc.facts.placement import Placement
from vtc.models import load_adapter, placing
from vtc.models.base import VLMAdapter
from vtc.models.fewer_experts import keep_experts
from vtc.recipe import Recipe

LAYERS, EXPERTS, ACTIVE = 4, 8, 2
PAIRS = [[[[2 * pair, 0.25], [2 * pair + 1, 0.75]] for pair in range(4)]] * LAYERS
EXACT = [name for name in SUMS if name != "gaussian"]
"""Sums that do not depend on what was measured before: the Gaussians are running estimates."""


@pytest.fixture(scope="module")
def samples(mixture: VLMAdapter) -> list[Sample]:
    """Prompts of unequal length: one image, two images, none."""
    chat = mixture.chat
    return [
        Sample([image(0)], chat("what digit is red ?")),
        Sample([image(1), image(2)], chat("is there a circle ?", 2)),
        Sample([], chat("how many ?", 0)),
    ]


@pytest.fixture(scope="module")
def use(mixture: VLMAdapter, samples: list[Sample]) -> ExpertUse:
    """Of all prompts at once, without a recipe."""
    return expert_use(compressed(mixture), samples)


def agree(found: ExpertUse, parts: Sequence[ExpertUse]) -> None:
    """Sums are those of the parts together, and routes those of one part after the other."""
    for name in EXACT:
        total = sum(getattr(part, name) for part in parts)
        np.testing.assert_allclose(getattr(found, name), total, atol=1e-3, rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(found.routes.chosen, np.concatenate([p.routes.chosen for p in parts], axis=1))
    np.testing.assert_array_equal(found.routes.modality, np.concatenate([p.routes.modality for p in parts]))


def test_sums_are_of_every_token(mixture: VLMAdapter, samples: list[Sample], use: ExpertUse) -> None:
    ids, mask, _ = compressed(mixture).inputs([s.images for s in samples], [s.prompt for s in samples])
    visual = ids == mixture.image_token_id
    assert use.tokens.tolist() == [(mask.bool() & ~visual).sum(), visual.sum()]
    for name in ("chosen", "attention", "gaussian"):
        np.testing.assert_allclose(getattr(use, name).sum(axis=(1, 2)), ACTIVE * use.tokens.sum(), rtol=1e-5)
    np.testing.assert_array_equal(use.chosen.sum(axis=2), np.tile(ACTIVE * use.tokens, (LAYERS, 1)))
    np.testing.assert_array_equal(np.diagonal(use.together, axis1=2, axis2=3), use.chosen)
    np.testing.assert_array_equal(use.together.sum(axis=3), ACTIVE * use.chosen)
    np.testing.assert_allclose(use.weight.sum(axis=2), np.tile(use.tokens, (LAYERS, 1)), rtol=1e-5)
    assert use.routes.sample.tolist() == np.repeat([0, 1, 2], mask.sum(dim=1).numpy()).tolist()
    assert (use.layers, use.experts, use.active) == (LAYERS, EXPERTS, ACTIVE)


def test_sums_by_hand(mixture: VLMAdapter, samples: list[Sample]) -> None:
    """Of one prompt, from what goes into the experts of the checkpoint's own model."""
    found = expert_use(compressed(mixture), samples[:1])
    ids, mask, pixels = compressed(mixture).inputs([samples[0].images], [samples[0].prompt])
    taken: list[Any] = []
    logits: list[Any] = []
    model = own_model(mixture.path)
    layers = model.model.language_model.layers
    for layer in layers:
        layer.mlp.experts.register_forward_pre_hook(lambda _, given: taken.append(given))
        layer.mlp.gate.register_forward_hook(lambda *given: logits.append(given[-1][0]))
    with torch.inference_mode():
        model(input_ids=ids, attention_mask=mask, pixel_values=pixels, use_cache=False)
    kinds = (ids[0] == mixture.image_token_id).long().tolist()
    sums = {name: np.zeros((LAYERS, 2, EXPERTS)) for name in ("chosen", "weight", "norm", "weighted_norm")}
    confidence = np.zeros((LAYERS, 2))
    with torch.inference_mode():
        for number, (hidden, chosen, weights) in enumerate(taken):
            experts = layers[number].mlp.experts
            for token, kind in enumerate(kinds):
                confidence[number, kind] += float(logits[number][token].softmax(dim=-1).max())
                for expert, weight in zip(chosen[token].tolist(), weights[token].tolist(), strict=True):
                    gate, up = (experts.gate_up_proj[expert] @ hidden[token]).chunk(2)
                    norm = float((experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)).norm())
                    for name, value in zip(sums, (1, weight, norm, weight * norm), strict=True):
                        sums[name][number, kind, expert] += value
    for name, values in sums.items():
        np.testing.assert_allclose(getattr(found, name), values, atol=1e-3, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(found.confidence, confidence, rtol=1e-4)


def test_padding_counts_for_nothing(mixture: VLMAdapter, samples: list[Sample], use: ExpertUse) -> None:
    agree(use, [expert_use(compressed(mixture), [one]) for one in samples])


def test_batches_add_up(
    mixture: VLMAdapter, samples: list[Sample], use: ExpertUse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    told: list[tuple[int, int]] = []
    found = expert_use(compressed(mixture), samples, lambda _, done, total: told.append((done, total)), routes=30)
    agree(found, [ExpertUse(**vars(use) | {"routes": found.routes})])
    np.testing.assert_array_equal(found.routes.chosen, use.routes.chosen[:, :30])
    np.testing.assert_array_equal(found.routes.sample, use.routes.sample[:30])
    assert told == [(0, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("name", ["exit", "visual_only", "skip_after_cut", "merged_in_the_decoder", "depth"])
def test_routes_end_where_tokens_are_gone(mixture: VLMAdapter, samples: list[Sample], name: str) -> None:
    model = compressed(mixture, *RECIPES[name])
    found = expert_use(model, samples)
    inputs = model.inputs([s.images for s in samples], [s.prompt for s in samples])
    with torch.inference_mode():
        _, state = model.prefill(*inputs)
    visual, cut = found.routes.modality == VISUAL, 0
    expected = np.zeros((LAYERS, len(visual)), dtype=bool)
    for segment in model.plan.segments:
        cut += segment.enters == "prune"
        stays = ~visual
        if segment.sees == "all":
            kept = (state.kept[0][:, :, None] == state.kept[cut][:, None]).any(dim=-1)
            stays[visual] = kept.flatten().numpy()
        expected[[model.plan.decoder_layers[place] for place in segment.layers]] = stays
    np.testing.assert_array_equal((found.routes.chosen >= 0).all(axis=2), expected)
    np.testing.assert_array_equal((found.routes.chosen >= 0).any(axis=2), expected)
    np.testing.assert_array_equal(found.chosen[:, VISUAL].sum(axis=1), ACTIVE * expected[:, visual].sum(axis=1))
    np.testing.assert_array_equal(found.chosen[:, TEXT].sum(axis=1), ACTIVE * expected[:, ~visual].sum(axis=1))


def test_a_merged_expert_may_be_chosen_twice(mixture: VLMAdapter, samples: list[Sample]) -> None:
    found = expert_use(compressed(mixture, {"kind": "merge_experts", "groups": PAIRS}), samples)
    twice = (found.routes.chosen[..., 0] == found.routes.chosen[..., 1]).sum(axis=1)
    assert twice.all()
    np.testing.assert_array_equal(found.chosen.sum(axis=(1, 2)), ACTIVE * found.tokens.sum())
    np.testing.assert_allclose(found.weight.sum(axis=(1, 2)), found.tokens.sum(), rtol=1e-5)
    np.testing.assert_array_equal(np.diagonal(found.together, axis1=2, axis2=3), found.chosen)
    others = found.together.sum(axis=(1, 2, 3)) - found.chosen.sum(axis=(1, 2))
    np.testing.assert_array_equal(others, ACTIVE * (found.tokens.sum() - twice))
    assert (found.norm[found.chosen > 0] > 0).all()


def test_outputs_of_every_expert(mixture: VLMAdapter, samples: list[Sample]) -> None:
    """A layer's output is that of its chosen experts by their weights; a layer that is removed has none."""
    model = compressed(mixture, *RECIPES["depth"])
    taken: list[torch.Tensor] = []
    mlp: Any = mixture.decoder_layers[1]
    hook = mlp.mlp.register_forward_hook(lambda *given: taken.append(given[-1][0]))
    found = layer_outputs(model, samples[2:])
    hook.remove()
    assert [layer.outputs.any() for layer in found] == [True, True, False, True]
    logits, outputs = torch.from_numpy(found[1].logits), torch.from_numpy(found[1].outputs)
    weights, chosen = logits.softmax(dim=-1).topk(ACTIVE)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    mixed = (weights[..., None] * outputs[chosen, torch.arange(len(chosen))[:, None]]).sum(dim=1)
    torch.testing.assert_close(mixed.float(), taken[0], atol=1e-4, rtol=1e-3)


def test_at_most_so_many_tokens_of_each_modality(mixture: VLMAdapter, samples: list[Sample]) -> None:
    found = layer_outputs(compressed(mixture), samples, tokens=12)
    assert [layer.outputs.shape for layer in found] == [(EXPERTS, 12, 48)] * LAYERS


# Choices --------------------------------------------------------------------------------------------------------------


def layers_of(adapter: VLMAdapter) -> list[Any]:
    """Its layers' mixtures."""
    return [layer.mlp for layer in adapter.decoder_layers]


def resolved(adapter: VLMAdapter, samples: list[Sample], *stages: dict[str, Any]) -> Recipe:
    """A recipe of these stages, with what it leaves open chosen on samples."""
    return Calibrator(adapter, samples, Measurements()).resolve(recipe(*stages))


def of_all(_: Any, given: Any, output: Any) -> Any:
    """As a router whose weights are shares of all experts, as softmax has them."""
    logits, _, chosen = output
    return logits, logits.softmax(dim=-1).gather(1, chosen), chosen


@pytest.mark.parametrize("router", [None, of_all], ids=["weights sum to 1", "weights are shares of all"])
def test_the_best_set_is_found_by_trying_all(mixture: VLMAdapter, samples: list[Sample], router: Any) -> None:
    changed: list[Any] = []

    def change(adapter: VLMAdapter) -> list[Any]:
        blocks = layers_of(adapter)
        changed.extend(block.gate.register_forward_hook(router) for block in blocks if router)
        return blocks

    inputs: list[torch.Tensor] = []
    blocks = change(mixture)
    hooks = [block.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for block in blocks]
    model = compressed(mixture)
    with torch.inference_mode():
        model.prefill(*model.inputs([samples[0].images], [samples[0].prompt]))
    for hook in hooks:
        hook.remove()
    losses = {}
    for kept in combinations(range(EXPERTS), 6):
        fewer = change(keep_experts(mixture, [list(kept)] * LAYERS))
        pairs = zip(blocks, fewer, inputs, strict=True)
        with torch.inference_mode():
            losses[kept] = [float((whole(x) - less(x)).norm()) for whole, less, x in pairs]
    found = resolved(mixture, samples[:1], {"kind": "prune_experts", "keep": 6, "score": "naee"})
    for hook in changed:
        hook.remove()
    for layer, kept in enumerate(found.canonical()["stages"][0]["experts"]):
        each = [loss[layer] for loss in losses.values()]
        assert losses[tuple(kept)][layer] == pytest.approx(min(each), abs=1e-5)
        assert min(each) < 0.9 * sorted(each)[len(each) // 2]


def test_a_router_that_naee_does_not_know(mixture: VLMAdapter, samples: list[Sample]) -> None:
    hook = layers_of(mixture)[2].gate.register_forward_hook(lambda *given: (given[2][0].tanh(), *given[2][1:]))
    with pytest.raises(InputError, match="layer 2: the router's weights are no softmax of its scores"):
        resolved(mixture, samples[:1], {"kind": "prune_experts", "keep": 6, "score": "naee"})
    hook.remove()


@pytest.mark.parametrize(
    "asked",
    [{}, {"score": "frequency", "modality": "visual"}, {"score": "random", "seed": 3}, {"score": "naee", "keep": 7}],
    ids=str,
)
def test_choices_work_after_other_stages(mixture: VLMAdapter, samples: list[Sample], asked: dict[str, Any]) -> None:
    stages = [*RECIPES["depth"], *RECIPES["exit"], {"kind": "prune_experts", "keep": 0.5} | asked]
    found = resolved(mixture, samples, *stages)
    assert found.autos == []
    kept = found.canonical()["stages"][2]["experts"]
    assert [len(layer) for layer in kept] == [asked.get("keep", 4)] * LAYERS
    if asked.get("score") == "frequency":
        use = expert_use(compressed(mixture, *stages[:2]), samples)
        assert set(kept[0]) == set(np.argsort(-use.chosen[0, VISUAL], kind="stable")[:4].tolist())
    model = compressed(mixture, *found.canonical()["stages"])
    assert model.generate([samples[0].images], [samples[0].prompt], 2)


@pytest.mark.parametrize("score", ["reap", "frequency", "random"])
def test_visual_tokens_get_the_experts_that_they_need_most(
    mixture: VLMAdapter, samples: list[Sample], score: str
) -> None:
    kept = {"kind": "prune_experts", "experts": [[0, 2, 3, 4, 6, 7]] * LAYERS}
    found = resolved(mixture, samples, kept, {"kind": "visual_experts", "keep": 0.5, "score": score})
    own = found.canonical()["stages"][1]["experts"]
    assert [len(layer) for layer in own] == [3] * LAYERS
    if score != "random":
        use = expert_use(compressed(mixture, kept), samples)
        sums = use.chosen if score == "frequency" else use.weighted_norm / np.maximum(use.chosen, 1)
        best = np.argsort(-sums[:, VISUAL], axis=1, kind="stable")[:, :3]
        assert own == np.sort(best, axis=1).tolist()


def test_twins_are_merged(mixture: VLMAdapter, samples: list[Sample]) -> None:
    twins = keep_experts(mixture, [list(range(EXPERTS))] * LAYERS)
    for block in layers_of(twins):
        for weight in block.experts.parameters():
            weight[1::2] = weight[0::2]
    use = expert_use(compressed(twins), samples)
    found = resolved(twins, samples, {"kind": "merge_experts", "keep": 4})
    for number, groups in enumerate(found.canonical()["stages"][0]["groups"]):
        assert [[expert for expert, _ in group] for group in groups] == [[0, 1], [2, 3], [4, 5], [6, 7]]
        chosen = use.chosen[number].sum(axis=0).reshape(4, 2)
        shares = np.array([[share for _, share in group] for group in groups])
        np.testing.assert_allclose(shares, chosen / chosen.sum(axis=1, keepdims=True), atol=1e-6)


def test_a_removed_layer_can_be_merged_too(mixture: VLMAdapter, samples: list[Sample]) -> None:
    found = resolved(mixture, samples, *RECIPES["depth"], {"kind": "merge_experts", "keep": 6})
    groups = found.canonical()["stages"][1]["groups"]
    assert [len(layer) for layer in groups] == [6] * LAYERS
    use = expert_use(compressed(mixture, *RECIPES["depth"]), samples)
    for layer, own in enumerate(groups):
        for group in own:
            counts = np.array([use.chosen[layer, :, expert].sum() for expert, _ in group])
            expected = counts / counts.sum() if counts.sum() else np.full(len(group), 1 / len(group))
            np.testing.assert_allclose([share for _, share in group], expected, atol=1e-6)


# What cannot be measured ----------------------------------------------------------------------------------------------


def test_dense_models_are_refused(adapter: VLMAdapter) -> None:
    with pytest.raises(InputError, match="is dense, it has no experts; give a model whose decoder is a mixture"):
        expert_use(compressed(adapter), [Sample([image(0)], adapter.chat("what ?"))])


def test_weights_must_be_in_memory(
    mixture_checkpoint: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "_room", lambda _free: 10**6)
    away = load_adapter(mixture_checkpoint, placement=Placement("auto"))
    with pytest.raises(InputError, match="there is not memory for all weights"):
        expert_use(compressed(away), samples)
    with pytest.raises(InputError, match="there is not memory for all weights"):
        keep_experts(away, [[0, 1]] * LAYERS)
