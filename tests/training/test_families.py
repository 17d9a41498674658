"""Every family is trained on what it computes later: the masked forward, labels of relevance, and the whole way."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import vtc
from tests.models.families import CASES, Case, Checkpoints, compressed, every_family, marks_of
from tests.tiny import image, recipe
from tests.training.conftest import QUESTIONS
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import load_compressed
from vtc.compressed.model import CompressedModel
from vtc.data.datasets import Item
from vtc.facts.layout import ImageOptions
from vtc.models.base import VLMAdapter
from vtc.plan import plan
from vtc.progress import silent
from vtc.recipe.selectors.decoder.relevance import RelevanceTraining
from vtc.selectors.decoder.relevance import Relevance
from vtc.training import explanations
from vtc.training.examples import Data, EncodedExamples, load_examples
from vtc.training.explanations import Explained, Explainer, RelevanceSubject, _watching, explain, label, rollout
from vtc.training.forward import answer_states
from vtc.training.packing import QuestionTokens

CompressedOf = Callable[[str], Path]
ALWAYS = (
    "gemma3",
    "internvl",
    "llava_next",
    "llava_onevision",
    "paligemma",
    "qwen2_5_vl",
    "qwen3_vl",
    "smolvlm",
)
"""Families of which the others are variants; training the others is left to `make test-full`."""
LAYOUTS = [case for case in CASES if case.name == "default"] + [
    Case("gemma3", "crops", ImageOptions(tiles=(1, 2))),
    Case("llava_onevision", "padded", ImageOptions(image_size=(150, 60))),
]
every_layout = pytest.mark.parametrize(
    "case", [pytest.param(case, id=str(case), marks=marks_of(case.family, full=False)) for case in LAYOUTS]
)
TRAINING = {
    "steps": 30,
    "imitation_steps": 0,
    "batch": 8,
    "images": 10,
    "validation": 1,
    "dropped": 0,
    "budgets": [1, 1],
    "lm_weight": 0,
    "learning_rate": 0.01,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("families"), encoder_layers=2, decoder_layers=2)


@contextmanager
def examples_of(
    checkpoints: Checkpoints, case: Case, source: Path, attention: Literal["grouped", "eager"]
) -> Iterator[tuple[VLMAdapter, Data]]:
    """A case's adapter with a kind of decoder attention, and images with their questions."""
    adapter = checkpoints.adapter(case)
    adapter.set_decoder_attention(attention)
    try:
        yield adapter, load_examples(adapter, str(source), images=4, validation=1, seed=0)
    finally:
        adapter.set_decoder_attention("sdpa")


def asked_of(data: Data) -> list[tuple[Item, QuestionTokens]]:
    return [pair for one in data.train for pair in zip(one.items, one.questions, strict=True)]


def scores(model: CompressedModel, asked: list[tuple[Item, QuestionTokens]]) -> Tensor:
    """Logits of the answers' tokens, each question asked alone and answered token by token."""
    found = [
        model.score([[item.load()]], [model.adapter.chat(item.question)], [tokens.answer])[0] for item, tokens in asked
    ]
    return torch.cat([torch.from_numpy(logits) for logits in found])


@every_layout
@torch.no_grad()
def test_masked_forward_is_what_the_compressed_model_computes(
    checkpoints: Checkpoints, case: Case, source: Path
) -> None:
    with examples_of(checkpoints, case, source, "grouped") as (adapter, data):
        examples = EncodedExamples(
            adapter, range(adapter.facts.encoder.feature_layer + 1), data.beginning, data.train, 0
        )
        numbers, encoder = range(len(examples)), examples.encoder
        pixels = adapter.preprocess([one.items[0].load() for one in data.train])
        tokens = encoder.tokens(pixels)
        random = {"kind": "prune", "keep": 0.5, "selector": "random", "positions": "original"}
        model = compressed(adapter, random)
        places = torch.tensor(adapter.facts.layout.places)
        chosen = torch.searchsorted(places, model.vision(pixels)[1])
        policy = torch.zeros(tokens.indices.shape).scatter(1, chosen, 1.0)
        assert (policy.sum(dim=1) == model.plan.keep_per_span).all()

        all_of_it = encoder.in_decoder_space(tokens)
        masked = adapter.head(answer_states(adapter, examples.pack(numbers, tokens.indices), all_of_it, policy))
        kept = tokens.keep(chosen)
        packed = examples.pack(numbers, kept.indices)
        gathered = adapter.head(answer_states(adapter, packed, encoder.in_decoder_space(kept)))
        assert (masked - gathered).abs().max() <= 1e-4
        assert (masked - scores(model, asked_of(data))).abs().max() <= 1e-4

        visual, everywhere, *_ = encoder.compress(tokens)  # separators included
        unpruned = adapter.head(answer_states(adapter, examples.pack(numbers, everywhere), visual))
        assert (unpruned - scores(compressed(adapter), asked_of(data))).abs().max() <= 1e-4
        assert (unpruned - gathered).abs().max() > 1e-2


@every_layout
def test_relevance_is_explained_as_the_model_answers(
    checkpoints: Checkpoints, case: Case, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels are those of questions asked alone, and the network learns from what it reads at its cut."""
    with examples_of(checkpoints, case, source, "eager") as (adapter, data):
        asked = asked_of(data)[:3]
        assert len({len(tokens.question) for _, tokens in asked}) > 1
        whole = compressed(adapter)
        with torch.no_grad():
            visual, places, *_ = whole.vision(adapter.preprocess([item.load() for item, _ in asked]))
        network = RelevanceSubject(adapter, "abc", 1, 0).network()
        found = explain(network, [tokens for _, tokens in asked], data.beginning, visual)
        spans = adapter.facts.layout.spans
        for number, (item, tokens) in enumerate(asked):
            own = slice(number * spans, (number + 1) * spans)
            expected = labels_alone(whole, item, tokens, visual[own], places[own])
            torch.testing.assert_close(found.labels[own], expected, atol=1e-4, rtol=1e-3)

        read: list[Tensor] = []
        logits = Relevance.logits
        monkeypatch.setattr(Relevance, "logits", lambda self, row: read.append(row) or logits(self, row))
        cut = {"kind": "prune_in_decoder", "layer": 1, "keep": 0.5, "selector": {"name": "relevance"}}
        model = untrained(adapter, cut)
        model.kept([[item.load()] for item, _ in asked], [adapter.chat(item.question) for item, _ in asked])
        torch.testing.assert_close(read[0], found.rows, atol=1e-5, rtol=1e-4)


def untrained(adapter: VLMAdapter, *stages: dict[str, Any]) -> CompressedModel:
    """A model whose trained parts are as they are created."""
    return apply_recipe(adapter, recipe(*stages), from_state=True)


def labels_alone(model: CompressedModel, item: Item, tokens: QuestionTokens, visual: Tensor, places: Tensor) -> Tensor:
    """Labels (S, N) of one question, by the chain of whole matrices over the model's own prefill."""
    adapter, said = model.adapter, len(tokens.answer)
    ids, _ = adapter.tokenize([adapter.chat(item.question)], [1], model.keep_per_span)
    ids = torch.cat([ids, torch.tensor([tokens.answer[:-1]], dtype=torch.long)], dim=1)
    encoded = visual.clone().requires_grad_(), places
    with torch.enable_grad(), _watching(adapter, 0) as seen:
        whole = ids, torch.ones_like(ids), None
        logits, _ = model.prefill(*whole, encoded=encoded, wanted=said, answered=[said - 1])
        likely = logits[0].double().log_softmax(dim=-1)
        slopes = torch.autograd.grad(sum(likely[at, token] for at, token in enumerate(tokens.answer)), seen.attention)
    start = torch.zeros(1, ids.shape[1])
    start[:, -said:] = 1.0
    relevance = rollout([one.detach() for one in seen.attention], slopes, start)
    return label(relevance[ids == adapter.image_token_id].reshape(places.shape))


@pytest.fixture(scope="module")
def compressed_of(
    checkpoints: Checkpoints, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Directory of a family's model whose pruner was trained, and whose question prunes inside the decoder."""
    prune = {"kind": "prune", "keep": 0.5, "positions": "original"}
    learned = {**prune, "selector": {"name": "learned", "diversity": 0, "training": TRAINING}}
    stages = [learned, {"kind": "prune_in_decoder", "layer": 1, "keep": 0.5}]
    directory = tmp_path_factory.mktemp("compressed")

    @cache
    def train(family: str) -> Path:
        vtc.compress(checkpoints.path(family), recipe(*stages), out=directory / family, data=source)
        return directory / family

    return train


def questions_of(adapter: VLMAdapter) -> tuple[list[list[Image.Image]], list[str]]:
    height, width = adapter.facts.image_size
    images = [[image(50 + number, (width, height))] for number in range(len(QUESTIONS))]
    return images, [adapter.chat(question) for question in QUESTIONS]


@every_family(*ALWAYS)
def test_pruner_is_trained(compressed_of: CompressedOf, family: str) -> None:
    directory = compressed_of(family)
    with (directory / "pruner_log.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    model, _, _ = load_compressed(directory)
    asked = questions_of(model.adapter)
    for kept, stage in zip(model.kept(*asked), model.plan.stages, strict=True):
        keep = model.plan.per_span(stage.tokens_out)
        assert [len(set(row)) for row in kept.tolist()] == [keep] * (len(QUESTIONS) * model.plan.spans)
    flops_are_planned(model.adapter)


@every_family("qwen3_vl", "smolvlm")
def test_relevance_network_is_trained(checkpoints: Checkpoints, source: Path, family: str, tmp_path: Path) -> None:
    training = {"images": 4, "questions": 2, "validation": 1, "epochs": 20, "batch": 4}
    selector = {"name": "relevance", "training": training}
    cut = {"kind": "prune_in_decoder", "layer": 1, "keep": 0.5, "selector": selector}
    vtc.compress(checkpoints.path(family), recipe(cut), out=tmp_path / "c", data=source)
    with (tmp_path / "c" / "relevance_log.csv").open() as file:
        log = [float(row["kl"]) for row in csv.DictReader(file)]
    assert log[-1] < 0.99 * log[0]
    model, _, _ = load_compressed(tmp_path / "c")
    runs = len(QUESTIONS) * model.plan.spans
    _, kept = model.kept(*questions_of(model.adapter))
    assert [len(set(row)) for row in kept.tolist()] == [model.plan.per_span(model.plan.stages[0].tokens_out)] * runs


def test_interrupted_explanations_of_several_runs_of_tokens_go_on(
    checkpoints: Checkpoints, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RelevanceTraining(images=4, questions=2, validation=1, epochs=1)
    monkeypatch.setattr(explanations, "BATCH", 1)
    with examples_of(checkpoints, Case("smolvlm"), source, "eager") as (adapter, data):
        subject = RelevanceSubject(adapter, "abc", 1, 0)

        def explained(name: str) -> Explained:
            torch.manual_seed(0)
            explainer = Explainer(subject, data.beginning, config, "run", silent)
            return explainer(data.train, tmp_path / f"{name}.safetensors", "")

        whole, one, calls = explained("whole"), explanations.explain, []

        def interrupted(*arguments: Any) -> Explained:
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return one(*arguments)

        monkeypatch.setattr(explanations, "explain", interrupted)
        with pytest.raises(KeyboardInterrupt):
            explained("parts")
        parts = explained("parts")
        assert len(calls) == 1 + len(whole) // adapter.facts.layout.spans
        assert torch.equal(parts.rows, whole.rows)
        assert torch.equal(parts.labels, whole.labels)


@pytest.mark.slow
@every_family("qwen3_vl")
def test_bundle_of_a_trained_pruner_answers_as_the_model(
    compressed_of: CompressedOf, family: str, tmp_path: Path
) -> None:
    model, _, _ = load_compressed(compressed_of(family))
    vtc.export(compressed_of(family), out=tmp_path / "b", samples=2)
    bundle = vtc.load(tmp_path / "b")
    for images, prompt in zip(*questions_of(model.adapter), strict=True):
        (expected,) = model.generate([images], [prompt], 6)
        assert list(bundle.generate([images], [prompt], 6)[0].token_ids) == expected.token_ids


def flops_are_planned(adapter: VLMAdapter) -> None:
    """The exact count of the pruner and what it leaves is what PyTorch counts."""
    stage = {"kind": "prune", "keep": 0.5, "selector": {"name": "learned", "diversity": 0}}
    alone = untrained(adapter, stage)
    ids, mask, pixels = alone.inputs([[image(0, adapter.facts.image_size[::-1])]], [adapter.chat("what is it ?")])
    text = int((ids != adapter.image_token_id).sum())
    # PyTorch counts attention, and experts, only where they are plain matrix products.
    if adapter.facts.decoder.experts > 1:
        adapter.model.set_experts_implementation({"text_config": "batched_mm"})
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        alone.prefill(ids, mask, pixels)
    adapter.set_decoder_attention("sdpa")
    assert plan(recipe(stage), adapter.facts, text_tokens=text).flops["exact"] == counter.get_total_flops()
