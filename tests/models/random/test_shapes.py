"""Published shapes have the sizes that were published; random models of a shape compute sane numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny import compressed, image
from vtc.benchmark.prediction import predict
from vtc.facts.model import ModelFacts
from vtc.models import read_facts
from vtc.models.base import VLMAdapter
from vtc.models.random.shapes import SHAPES, TINY, TINY_SIGLIP, Shape
from vtc.models.random.weights import PERIOD, facts_of, random_adapter, randomise
from vtc.plan import plan
from vtc.plan.costs import weight_count
from vtc.recipe import NONE


def facts(name: str) -> ModelFacts:
    return facts_of(SHAPES[name])


@pytest.mark.parametrize(
    ("name", "tokens", "layers", "billions"),
    # Parameters as published, less the tower's last layer where it does not run; a tied head counts twice.
    [("llava-1.5-7b", 576, 23, 7.05), ("llava-next-7b", 576, 23, 7.05), ("llava-onevision-0.5b", 729, 26, 1.03)],
)
def test_sizes_are_the_published_ones(name: str, tokens: int, layers: int, billions: float) -> None:
    found = facts(name)
    assert found.visual_tokens == tokens
    assert found.encoder.feature_layer + 1 == layers
    assert weight_count(plan(NONE, found), found) / 1e9 == pytest.approx(billions, rel=0.01)


def test_llava_next_has_2880_visual_tokens() -> None:
    shape, found = SHAPES["llava-next-7b"], facts("llava-next-7b")
    assert shape.images * found.visual_tokens == 2880
    whole = plan(NONE, found)
    predicted = predict(whole, found, shape.images, 2, 2)
    assert predicted.kv_bytes == 2 * 2 * 32 * 4096 * (2880 + whole.text_tokens)


def test_one_image_is_what_the_plan_says() -> None:
    found = facts("llava-1.5-7b")
    whole = plan(NONE, found)
    predicted = predict(whole, found, 1, 2, 2)
    assert (predicted.flops, predicted.kv_bytes) == (whole.flops["exact"], whole.kv_bytes)
    assert predicted.prefill_flops == whole.flops_parts["decoder"] + whole.flops_parts["head"]


@pytest.fixture(scope="module", params=[TINY, TINY_SIGLIP], ids=lambda shape: shape.name)
def random_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLMAdapter:
    shape: Shape = request.param
    return random_adapter(shape, tmp_path_factory.mktemp("random"))


def test_weights_are_counted_as_the_model_has_them(random_model: VLMAdapter) -> None:
    tower = random_model.model.model.vision_tower
    run = random_model.encoder_layers[: random_model.facts.encoder.feature_layer + 1]
    modules = [tower.embeddings, *run, random_model.projector, *random_model.decoder_layers]
    modules += [random_model.embed_tokens, random_model.head]
    matrices = sum(p.numel() for module in modules for p in module.parameters() if p.dim() > 1)
    found = random_model.facts
    assert weight_count(plan(NONE, found), found) == matrices


def test_random_models_compute_sane_numbers(random_model: VLMAdapter) -> None:
    model = compressed(random_model)
    with torch.inference_mode():
        logits, _ = model.prefill(*model.inputs([[image(0)]], [random_model.chat("what is it ?")]))
    assert 0.1 < float(logits.std()) < 10


def test_no_two_rows_or_matrices_are_alike(random_model: VLMAdapter) -> None:
    first, second = (layer.self_attn.q_proj.weight for layer in random_model.decoder_layers[:2])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    assert all(float(bias.abs().max()) > 0 for name, bias in random_model.model.named_parameters() if "bias" in name)


def test_long_matrices_go_round_the_draw() -> None:
    long, after = torch.nn.Linear(1000, 2500, bias=False), torch.nn.Linear(4, 2, bias=False)
    randomise(torch.nn.ModuleList([long, after]))
    values = torch.cat([long.weight.flatten() * 1000**0.5, after.weight.flatten() * 2])
    torch.testing.assert_close(values[PERIOD:], values[:-PERIOD])
    assert float(values.detach().std()) == pytest.approx(1, abs=0.01)


def test_weights_have_the_type_asked_for_and_never_touch_the_disk(tmp_path: Path) -> None:
    adapter = random_adapter(TINY_SIGLIP, tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in adapter.model.parameters()} == {torch.bfloat16}
    assert adapter.model.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert adapter.head.weight is adapter.embed_tokens.weight
    assert not list(tmp_path.glob("*.safetensors"))
    assert read_facts(tmp_path) == adapter.facts
