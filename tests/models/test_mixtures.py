"""Mixtures of experts in families whose decoders may be dense: LLaVA with Mixtral, InternVL with Qwen3-MoE."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.families import compressed, pictures
from tests.models.own import own_inputs, own_logits
from vtc.models import load_adapter
from vtc.models.base import VLMAdapter
from vtc.models.parts.experts import EVERY_EXPERT
from vtc.models.random.tiny_families import TINY_FAMILIES, write_tiny


@pytest.fixture
def internvl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VLMAdapter:
    """A tiny InternVL whose decoder is a mixture of 4 experts."""
    dense = TINY_FAMILIES["internvl"](2, 3)
    sizes = {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    text = dense.text | sizes | {"model_type": "qwen3_moe", "norm_topk_prob": True}
    monkeypatch.setitem(TINY_FAMILIES, "internvl", lambda *_: replace(dense, text=text))
    return load_adapter(write_tiny("internvl", tmp_path / "model"))


def answers_as_its_own(adapter: VLMAdapter) -> None:
    """Without a recipe, logits are those of the model's own class."""
    images, prompts = [pictures(adapter, 1)], [adapter.chat("what is red ?")]
    model = compressed(adapter)
    with torch.inference_mode():
        ours, _ = model.prefill(*model.inputs(images, prompts))
    theirs = own_logits(adapter.path, own_inputs(adapter.path, images, prompts))
    torch.testing.assert_close(ours[:, -1], theirs[:, -1], atol=1e-5, rtol=1e-5)


def test_llava_with_mixtral(mixture: VLMAdapter) -> None:
    answers_as_its_own(mixture)
    decoder = mixture.facts.decoder
    assert (decoder.experts, decoder.active_experts, decoder.ffn) == (8, 2, 32)


def test_mixtral_in_16_bits_as_exported(mixture: VLMAdapter) -> None:
    """Its router gives weights in float32, whatever the experts are in."""
    block: Any = copy.deepcopy(mixture.decoder_layers[0]).mlp
    hidden = torch.randn(1, 5, 48, generator=torch.Generator().manual_seed(0))
    expected = block(hidden)
    block.half().experts.config._experts_implementation = EVERY_EXPERT
    found = block(hidden.half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, atol=2e-3 * float(expected.abs().max()), rtol=0)


def test_internvl_with_qwen3_moe(internvl: VLMAdapter) -> None:
    answers_as_its_own(internvl)
    decoder = internvl.facts.decoder
    assert (decoder.experts, decoder.active_experts, decoder.ffn) == (4, 2, 32)
