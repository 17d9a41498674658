"""Training sees what inference computes: packed questions, masked tokens and gathered tokens agree."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.tiny import compressed
from vtc.models.base import VLMAdapter
from vtc.training.evaluation import exact
from vtc.training.examples import Data, EncodedExamples
from vtc.training.forward import answer_states
from vtc.training.frozen import tensors_digest
from vtc.training.masks import soft_top_k
from vtc.visual_tokens import gather_tokens

LAYERS = (0, 1)


@pytest.fixture
def encoded(adapter: VLMAdapter, data: Data) -> Iterator[EncodedExamples]:
    adapter.set_decoder_attention("grouped")
    yield EncodedExamples(adapter, LAYERS, data.beginning, data.train, memory=2**30)
    adapter.set_decoder_attention("sdpa")


@torch.no_grad()
def test_masked_forward_equals_the_compressed_models_prefill(encoded: EncodedExamples) -> None:
    adapter = encoded.adapter
    stage = {"kind": "prune", "keep": 5, "selector": {"name": "random", "seed": 4}, "positions": "original"}
    model = compressed(adapter, stage)
    examples = encoded.examples[:4]
    pixels = adapter.preprocess([example.items[0].load() for example in examples])
    visual, places = encoded.encoder(pixels)
    keep = model.vision(pixels)[1]
    policy = torch.zeros(4, 16).scatter(1, keep, 1.0)
    logits = adapter.head(answer_states(adapter, encoded.pack(range(4), places), visual, policy))
    at = 0
    for example in examples:
        for item, question in zip(example.items, example.questions, strict=True):
            expected = model.score([[item.load()]], [adapter.chat(item.question)], [question.answer])[0]
            ours = logits[at : at + len(question.answer)].numpy()
            assert abs(ours - expected).max() <= 1e-4
            at += len(question.answer)
    assert at == len(logits)


@torch.no_grad()
def test_masked_forward_equals_gathering(encoded: EncodedExamples) -> None:
    adapter = encoded.adapter
    visual, places, *_ = encoded.encoder.compress(encoded.tokens(range(6)))
    keep = torch.rand(6, 16, generator=torch.Generator().manual_seed(0)).topk(7).indices.sort().values
    policy = torch.zeros(6, 16).scatter(1, keep, 1.0)
    masked = answer_states(adapter, encoded.pack(range(6), places), visual, policy)
    gathered = answer_states(adapter, encoded.pack(range(6), keep), gather_tokens(visual, keep))
    assert (masked - gathered).abs().max() <= 1e-4


def test_gradient_reaches_dropped_tokens_and_no_base_weight(encoded: EncodedExamples) -> None:
    adapter = encoded.adapter
    before = tensors_digest(adapter.model)
    visual, places, *_ = encoded.encoder.compress(encoded.tokens(range(2)))
    scores = torch.randn(2, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    policy = soft_top_k(scores, 4)
    policy.retain_grad()
    answer_states(adapter, encoded.pack(range(2), places), visual, policy)[:, 0].sum().backward()
    assert policy.grad is not None
    assert bool((policy.grad[policy == 0] != 0).all())
    assert scores.grad is not None
    assert bool(scores.grad.abs().sum() > 0)
    assert all(parameter.grad is None for parameter in adapter.model.parameters())
    assert tensors_digest(adapter.model) == before


@torch.no_grad()
def test_teacher_states_are_the_unpruned_models(encoded: EncodedExamples) -> None:
    adapter = encoded.adapter
    model = compressed(adapter)
    item, question = encoded.examples[0].items[0], encoded.examples[0].questions[0]
    expected = model.score([[item.load()]], [adapter.chat(item.question)], [question.answer])[0]
    ours = adapter.head(encoded.get([0])[0].states.float())[: len(question.answer)]
    assert abs(ours.numpy() - expected).max() <= 0.02 * abs(expected).max()  # kept in bfloat16


def test_images_beyond_the_memory_limit_are_encoded_when_asked_for(encoded: EncodedExamples, data: Data) -> None:
    small = EncodedExamples(encoded.adapter, LAYERS, data.beginning, data.train, memory=0)
    assert not small.kept
    for ours, theirs in zip(small.get([3, 1]), encoded.get([3, 1]), strict=True):
        torch.testing.assert_close(ours.tokens.features, theirs.tokens.features)
        torch.testing.assert_close(ours.states, theirs.states, atol=0.02, rtol=0.02)


@torch.no_grad()
def test_exact_answers_are_those_that_greedy_decoding_gives(encoded: EncodedExamples) -> None:
    packed = encoded.pack(range(3), torch.arange(16).expand(3, -1))
    right = torch.nn.functional.one_hot(packed.targets, 500).float()
    assert exact(right, packed).all()
    right[0] = 0
    assert exact(right, packed).tolist() == [False] + [True] * int(packed.question[-1])
