"""A decoder is tuned with the projector: trained, merged, exported, and the checkpoint stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import vtc
from exporters.copies import cast_copy
from tests.projectors.test_training import TRAINING
from tests.tiny import image, recipe
from tests.training.conftest import QUESTIONS, source
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import at_budgets, load_compressed
from vtc.compressed.model import CompressedModel
from vtc.compressed.needs import costs_of
from vtc.errors import InputError
from vtc.evaluate.contestants import compressed_contestant
from vtc.models import load_adapter
from vtc.models.lora import merge_lora, with_lora, without_lora
from vtc.models.random.tiny_families import write_tiny
from vtc.plan import plan
from vtc.recipe import RecipeSource
from vtc.recipe.lora import Lora
from vtc.selectors.trained import read_metadata
from vtc.training.frozen import tensors_digest
from vtc.training.needs import training_need

__all__ = ["source"]

STAGE = {
    "kind": "project",
    "keep": [1, 4],
    "projector": {"name": "deco", "lora": {"rank": 4, "alpha": 8}, "training": TRAINING},
}


@pytest.fixture(scope="module")
def compressed(checkpoint: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lora") / "c"
    vtc.compress(checkpoint, recipe(STAGE), out=out, data=source)
    return out


def logits(model: CompressedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model.prefill(*model.inputs([[image(0)]], [model.adapter.chat("what is it ?")]))[0]


def test_it_is_trained_merged_exported_and_run(compressed: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert read_metadata(compressed / "projector.safetensors")["lora"] == "rank 4, alpha 8"
    model, resolved, _ = load_compressed(compressed)
    assert not any(hasattr(module, "lora_A") for module in model.segments.modules())
    own = load_adapter(checkpoint).decoder_layers[0].self_attn.q_proj.weight
    assert not torch.equal(model.adapter.decoder_layers[0].self_attn.q_proj.weight, own)

    vtc.export(compressed, out=tmp_path / "b", samples=2)
    bundle = vtc.load(tmp_path / "b")
    for keep, at in at_budgets(model, resolved).items():
        for number, question in enumerate(QUESTIONS):
            expected = at.generate([[image(number)]], [at.adapter.chat(question)], max_new_tokens=6)[0].text
            assert bundle.ask(image(number), question, max_new_tokens=6, keep=keep) == expected


def test_budgets_share_the_merged_weights(compressed: Path) -> None:
    model, resolved, _ = load_compressed(compressed)
    smaller = at_budgets(model, resolved)[1]
    pairs = zip(model.segments.parameters(), smaller.segments.parameters(), strict=True)
    assert all(one is other for one, other in pairs)


def test_what_it_is_compared_with_is_not_tuned(compressed: Path, checkpoint: Path) -> None:
    model, *_ = load_compressed(compressed)
    (original,) = compressed_contestant("c", model, "abc").adapters
    assert tensors_digest(original.model) == tensors_digest(load_adapter(checkpoint).model)
    (narrow,) = cast_copy([model], torch.bfloat16)  # of which there is no narrow copy
    assert without_lora(narrow.adapter).model is original.model


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "qwen3_vl_moe", "gemma3"])
def test_a_merged_update_is_the_update(family: str, tmp_path: Path) -> None:
    """Merged or not, the answers are the same, and those of the model around which it was built stay as they were."""
    write_tiny(family, tmp_path / "m", encoder_layers=2, decoder_layers=2)
    adapter = load_adapter(tmp_path / "m")
    before, decoder = logits(apply_recipe(adapter, recipe())), adapter.facts.decoder
    tuned = with_lora(adapter, rank=2, alpha=8)
    assert tuned.lora is not None
    assert Lora(rank=2).parameters(decoder) == sum(parameter.numel() for parameter in tuned.lora.parameters())
    model = apply_recipe(tuned, recipe(), from_state=True)
    torch.testing.assert_close(logits(model), before)
    for parameter in tuned.lora.parameters():
        nn.init.normal_(parameter, std=0.2)
    updated = logits(model)
    assert (updated - before).abs().max() > 1e-2
    merge_lora(tuned)
    torch.testing.assert_close(logits(apply_recipe(tuned, recipe())), updated, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(apply_recipe(without_lora(tuned), recipe())), before)


def test_what_it_takes_is_told(checkpoint: Path) -> None:
    """Beside the model a copy of each matrix that is updated; in training the updates, their gradients and moments."""
    adapter = load_adapter(checkpoint)
    stage = {"kind": "project", "keep": 4, "projector": {"name": "deco", "training": TRAINING}}
    plain = recipe(stage)
    tuned = recipe({**stage, "projector": {**stage["projector"], "lora": {"rank": 4}}})
    costs = [costs_of(adapter, recipe=one) for one in (plain, tuned)]
    linear = [m for layer in adapter.decoder_layers for m in layer.modules() if isinstance(m, nn.Linear)]
    assert costs[1].loaded().work - costs[0].loaded().work == 4 * sum(one.weight.numel() for one in linear)
    needs = [
        training_need(one, 0, plan(one, adapter.facts), plan(recipe(), adapter.facts), cost)
        for one, cost in zip((plain, tuned), costs, strict=True)
    ]
    updates = 4 * 4 * Lora(rank=4).parameters(adapter.facts.decoder)
    assert needs[1].work - needs[0].work > costs[1].loaded().work - costs[0].loaded().work + updates


def test_a_file_of_another_rank_is_refused(compressed: Path, checkpoint: Path) -> None:
    *_, origin = load_compressed(compressed)
    stage = {**STAGE, "projector": {"name": "deco", "checkpoint": "projector.safetensors"}}
    plain = recipe(stage).with_source(RecipeSource(directory=compressed))
    with pytest.raises(InputError, match="trained for lora rank 4, alpha 8, here it is none; train it again"):
        apply_recipe(load_adapter(checkpoint), plain, model_digest=origin.digest)
