"""One bundle at several budgets of visual tokens: each answers as the model there, and weights are stored once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporters.describe import described
from exporters.graphs import graph_specs
from exporters.onnx import ExportRequest, export
from tests.exporters.export_request import request as asked_for
from tests.tiny import image
from vtc.bundle.manifest import load_manifest
from vtc.compressed.checkpoint import at_budgets
from vtc.compressed.elastic import ElasticModel
from vtc.compressed.vision_encoder import VisionEncoder
from vtc.errors import InputError
from vtc.models.base import VLMAdapter
from vtc.runtime.budgets import Entropy, entropies
from vtc.runtime.vlm import VLM

STAGES: dict[str, list[dict[str, Any]]] = {
    "prune": [{"kind": "prune", "keep": [4, 8], "selector": "cls_attention"}],
    "m3": [{"kind": "project", "keep": [1, 4], "projector": "m3"}],
}
Made = tuple[ExportRequest, Path]
Asked = tuple[list[list[Any]], list[str]]


@pytest.fixture(scope="module", params=STAGES)
def made(request: pytest.FixtureRequest, adapter: VLMAdapter, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle of several budgets, and what was asked for."""
    wanted = asked_for(adapter, *STAGES[request.param])
    path = tmp_path_factory.mktemp("budgets") / "bundle"
    export(wanted, path)
    return wanted, path


@pytest.fixture
def asked(adapter: VLMAdapter) -> Asked:
    """Two questions about images."""
    return [[image(0)], [image(1)]], [adapter.chat("what digit is red ?"), adapter.chat("how many ?")]


def test_every_budget_answers_as_the_model_there(made: Made, asked: Asked) -> None:
    wanted, path = made
    bundle = VLM.load(path)
    assert bundle.budgets == wanted.recipe.budgets
    for keep, model in zip(reversed(bundle.budgets), wanted.models, strict=True):
        assert model.plan.keep == bundle.at_budget(keep).image_tokens == keep
        ours, theirs = bundle.generate(*asked, 4, keep=keep), model.generate(*asked, 4)
        assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]
        assert ours[0].budgets == (keep,)
    assert bundle.image_tokens == bundle.budgets[-1]
    with pytest.raises(InputError, match="has no budget of 3 visual tokens; it has "):
        bundle.generate(*asked, 4, keep=3)


def test_weights_of_all_budgets_are_stored_once(made: Made) -> None:
    wanted, path = made
    manifest = load_manifest(path)
    graphs = [f"vision_encoder{served.suffix}" for served in manifest.images]
    shared = {name for graph in graphs for name in manifest.graph_files(graph, "fp32") if name.endswith("_data")}
    assert shared == {"onnx/vision_encoder.onnx_data"}
    tower = sum(weight.numel() * 4 for weight in wanted.model.adapter.model.model.vision_tower.parameters())
    assert tower * 0.5 < manifest.files["onnx/vision_encoder.onnx_data"].bytes
    assert all(manifest.files[f"onnx/{graph}.onnx"].bytes < tower for graph in graphs)


def test_uncertain_answers_go_up_to_the_next_budget(made: Made, asked: Asked) -> None:
    bundle = VLM.load(made[1])
    images, prompts = asked
    first = [
        bundle.start([one], [text], 4, keep=bundle.budgets[0]).entropies[0] for one, text in zip(*asked, strict=True)
    ]
    between = sum(first) / 2
    answers = bundle.generate(images, prompts, 4, keep=Entropy(between, bundle.budgets[:2]))
    for answer, entropy, group, text in zip(answers, first, *asked, strict=True):
        tried = bundle.budgets[:1] if entropy <= between else bundle.budgets[:2]
        assert answer.budgets == tried
        assert answer.token_ids == bundle.generate([group], [text], 4, keep=tried[-1])[0].token_ids
    assert min(first) < between < max(first)
    eager = ElasticModel(made[0].model, at_budgets(made[0].model, made[0].recipe))
    theirs = eager.generate(*asked, 4, keep=Entropy(between, bundle.budgets[:2]))
    assert [(one.budgets, one.token_ids) for one in theirs] == [(one.budgets, one.token_ids) for one in answers]
    assert bundle.generate(images, prompts, 4, keep=Entropy(0.0))[0].budgets == bundle.budgets
    everything = bundle.start(images[:1], prompts[:1], 4, keep=Entropy(0.0))
    assert len(bundle.budgets) > 1
    assert everything.timings.ttft_ms > everything.timings.vision_ms > 0


def test_in_pytorch_all_passes_share_what_the_encoder_made(
    made: Made, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ElasticModel(made[0].model, at_budgets(made[0].model, made[0].recipe))
    prompt = [asked[0][0]], [asked[1][0]]
    ids, mask, pixels = model.at_budget(model.budgets[0]).inputs(*prompt)
    with torch.inference_mode():
        seen = model.model.vision.tokens(pixels)
        shared, _ = model.at_budget(model.budgets[0]).prefill(ids, mask, pixels, seen=seen)
        own, _ = model.at_budget(model.budgets[0]).prefill(ids, mask, pixels)
    assert torch.equal(shared, own)
    runs: list[int] = []
    encode = VisionEncoder.tokens
    monkeypatch.setattr(VisionEncoder, "tokens", lambda self, pixels: (runs.append(1), encode(self, pixels))[1])
    assert model.generate(*prompt, 4, keep=Entropy(0.0))[0].budgets == model.budgets
    assert len(runs) == 1


def test_a_prompt_without_an_image_is_asked_once(made: Made, adapter: VLMAdapter) -> None:
    bundle = VLM.load(made[1])
    assert bundle.generate([[]], [adapter.chat("why ?", 0)], 2, keep=Entropy(0.0))[0].budgets == bundle.budgets[:1]


def test_a_cut_in_the_decoder_has_a_graph_for_each_budget(adapter: VLMAdapter) -> None:
    pruned = {"kind": "prune", "keep": [4, 8], "selector": "cls_attention"}
    wanted = asked_for(adapter, pruned, {"kind": "prune_in_decoder", "layer": 2, "keep": 0.5})
    names = [spec.name for spec in graph_specs(wanted.models, torch.float32)]
    assert names == [
        *("vision_encoder", "vision_encoder_1", "embed_tokens", "decoder_segment_0"),
        *("token_selector_1", "token_selector_1_1", "decoder_segment_1"),
    ]
    told = described(wanted.models, wanted.budgets)["images"]
    assert [(one["budget"], one["suffix"], one["segment_tokens_per_span"]) for one in told] == [
        (8, "", [8, 4]),
        (4, "_1", [4, 2]),
    ]


def test_entropy_is_that_of_the_distribution() -> None:
    halves = np.array([[0.0, 0.0, -np.inf], [3.0, -np.inf, -np.inf]], dtype=np.float32)
    np.testing.assert_allclose(entropies(halves), [math.log(2), 0.0])


def test_what_is_no_policy_is_refused() -> None:
    with pytest.raises(InputError, match="an entropy is 0 nats or more"):
        Entropy(-1.0)
    with pytest.raises(InputError, match="ascending order, not 8, 4"):
        Entropy(1.0, (8, 4))
