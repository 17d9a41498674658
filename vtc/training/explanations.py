"""What mattered to a model's answer: labels for a relevance network.

What mattered is the generic attention explainability of Chefer et al. 2021 (arXiv 2103.15679): in each decoder layer,
attention times its gradient, where positive, mean over heads; layers are chained by R <- R + A R, and the rows where
the answer is predicted say how much each visual token had to do with it. The lower half is masked, the rest is a
distribution that the network's softmax is drawn to by KL divergence.

Known of Lei et al. 2025 (arXiv 2506.01097), who explain a model to itself in this way: labels by gradient-weighted
rollout over the generated tokens, bottom half masked, renormalised; KL divergence, Adam, batches of 128, some 100
epochs. Assumed, for want of their code: gradients are those of the summed log-probability of the original's own greedy
answer, its end token included; rows are summed over the places that predict a token of it, unweighted; the rate follows
a cosine after a short warm-up; a question that nothing visual had to do with teaches nothing. The attention that the
network reads is that of the original, which has lost no tokens before the cut.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vtc.compressed.build import apply_recipe
from vtc.compressed.vision_encoder import VisionEncoder
from vtc.data.samples import ANSWER_TOKENS
from vtc.facts.model import ModelFacts
from vtc.models.base import VLMAdapter
from vtc.progress import Report
from vtc.recipe import NONE
from vtc.recipe.selectors.decoder.relevance import RelevanceEntry, RelevanceTraining
from vtc.selectors.base import top_k
from vtc.selectors.decoder.base import DecoderTokens
from vtc.selectors.decoder.relevance import Relevance
from vtc.training.examples import Example
from vtc.training.forward import answer_states
from vtc.training.packing import Packed, PromptLayout, QuestionTokens, pack

BATCH = 16
MAPS = 2**30
"""Questions explained at once, at most: so many, and so many bytes of attention maps of all layers."""
SAVED = 20
"""Times that what is explained so far is written down."""


@dataclass(frozen=True)
class RelevanceSubject:
    """What a relevance network is trained for: the decoder layers `after` and `before` a cut of a model."""

    adapter: VLMAdapter
    model_digest: str
    after: int
    before: int

    def network(self) -> Relevance:
        """A new one."""
        return Relevance(RelevanceEntry(), self.adapter, self.after, self.before)


@dataclass(frozen=True)
class Explained:
    """M runs of visual tokens, each with a question: what the network reads of each, and what it is to say.

    Attributes
    ----------
    rows : Tensor of shape (M, N), float32
        Attention of the question to the visual tokens of a run of placeholders.
    labels : Tensor of shape (M, N), float32
        Relevance of the visual tokens to the answer.
    """

    rows: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.rows)


def rollout(attention: Sequence[Tensor], gradients: Sequence[Tensor], start: Tensor) -> Tensor:
    """Rows of gradient-weighted attention rollout, summed with weights.

    With R = (I + A_n) ... (I + A_1), it is ``start R``, from the last layer down, so that R is never computed.

    Based on Chefer et al. 2021, arXiv 2103.15679, equations 5 and 6.

    Parameters
    ----------
    attention, gradients : sequences over layers of Tensor of shape (B, H, L, L)
    start : Tensor of shape (B, L)
        Weight of each row.

    Returns
    -------
    Tensor of shape (B, L), float64
        Small gradients, of answers that are certain, stay apart in it.
    """
    relevance = start.double()
    for values, slopes in zip(reversed(attention), reversed(gradients), strict=True):
        layer = (values * slopes).clamp(min=0).mean(dim=1).double()
        relevance = relevance + torch.matmul(relevance.unsqueeze(1), layer).squeeze(1)
    return relevance


def label(relevance: Tensor) -> Tensor:
    """Relevance (B, N) without its lower half, as distributions, float32; of equal ones the first stay.

    Where nothing is relevant, all is 0.
    """
    upper = top_k(relevance, relevance.shape[1] - relevance.shape[1] // 2)
    masked = torch.zeros_like(relevance).scatter(1, upper, relevance.gather(1, upper))
    total = masked.sum(dim=1, keepdim=True)
    return (masked / torch.where(total > 0, total, 1.0)).float()


def explain(
    network: Relevance, questions: Sequence[QuestionTokens], beginning: Sequence[int], visual: Tensor
) -> Explained:
    """What the model attends to when it reads questions, and what their answers turn out to depend on.

    Parameters
    ----------
    network : Relevance
        Says which layer's attention it reads.
    questions : sequence of B QuestionTokens
        With the answers to explain.
    beginning : sequence of int
        As :func:`vtc.training.packing.tokenize` gives it.
    visual : Tensor of shape (B * S, N, E')
        All visual tokens of the image that each is about as they enter the decoder, separators included.
    """
    adapter = network.adapter
    runs, tokens, _ = visual.shape
    places = torch.arange(tokens, device=visual.device).expand(runs, -1)
    packed = pack(PromptLayout.of(adapter, beginning), [[question] for question in questions], places)
    with torch.enable_grad(), _watching(adapter, network.layer) as seen:
        states = answer_states(adapter, packed, visual.detach().requires_grad_())
        # In double precision the gradient of a certain answer does not round to nothing.
        likely = adapter.head(states).double().log_softmax(dim=-1).gather(1, packed.targets.unsqueeze(1)).sum()
        gradients = torch.autograd.grad(likely, seen.attention)
    start = torch.zeros(packed.block.shape, device=visual.device)
    start[packed.rows, packed.columns] = 1.0
    with torch.no_grad():
        relevance = rollout(seen.attention, gradients, start)
        of_image = relevance[:, packed.visual].reshape(runs, tokens)
        return Explained(network.row(_as_cut(packed, questions, seen.entering[0], runs)), label(of_image))


@dataclass
class _Seen:
    """Attention maps (B, H, L, L) of all layers, and the hidden states (B, L, E) that enter one of them."""

    attention: list[Tensor] = field(default_factory=list)
    entering: list[Tensor] = field(default_factory=list)


@contextmanager
def _watching(adapter: VLMAdapter, layer: int) -> Iterator[_Seen]:
    """While open, note what a forward pass with ``eager`` attention computes on the way."""
    seen = _Seen()

    def attended(_: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> None:
        seen.attention.append(output[1])

    def entered(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.entering.append(inputs[0].detach())

    decoder: Any = adapter.decoder_layers
    handles = [block.self_attn.register_forward_hook(attended) for block in decoder]
    handles.append(decoder[layer].register_forward_pre_hook(entered))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _as_cut(packed: Packed, questions: Sequence[QuestionTokens], hidden: Tensor, runs: int) -> DecoderTokens:
    """What a cut would see of packed questions, one in a row: their answers are not there yet."""
    count, device = len(questions), hidden.device
    query_tokens = torch.tensor([len(question.question) for question in questions], device=device)
    places = torch.arange(int(query_tokens.max()), device=device).expand(count, -1)
    columns = torch.arange(hidden.shape[1], device=device)
    rows = torch.arange(count, device=device).repeat_interleave(runs // count)
    return DecoderTokens(
        hidden=hidden[rows],
        before=hidden[rows],
        attention_mask=(columns < packed.first + query_tokens.unsqueeze(1)).long()[rows],
        position_ids=packed.position_ids.index_select(-2, rows),
        visual=packed.visual.expand(count, -1).reshape(runs, -1),
        queries=(packed.first + places)[rows],
        query_mask=(places < query_tokens.unsqueeze(1)).long()[rows],
    )


class Explainer:
    """Explains the questions about examples, so many of each image's, and keeps what is done in a file."""

    def __init__(
        self,
        subject: RelevanceSubject,
        beginning: Sequence[int],
        config: RelevanceTraining,
        fingerprint: str,
        report: Report,
    ) -> None:
        self.adapter, self.network = subject.adapter, subject.network().to(subject.adapter.model.device)
        self.beginning, self.config, self.fingerprint, self.report = beginning, config, fingerprint, report
        self.spans = self.adapter.facts.layout.spans
        self.encoder = VisionEncoder(self.adapter, range(self.adapter.facts.encoder.feature_layer + 1))
        self.original = apply_recipe(self.adapter, NONE)

    def __call__(self, examples: Sequence[Example], file: Path, what: str) -> Explained:
        chosen = self._chosen(examples)
        done = _load_explained(file, self.fingerprint)
        rows, labels = ([done.rows], [done.labels]) if done else ([], [])
        at = len(done) // self.spans if done else 0
        size = batch_size(self.adapter.facts)
        every = size * -(-len(chosen) // (SAVED * size))
        while at < len(chosen):
            self.report(f"explaining answers, {what}", at, len(chosen))
            found = self._explained(chosen[at : at + size])
            rows.append(found.rows.cpu())
            labels.append(found.labels.cpu())
            at = min(at + size, len(chosen))
            if at % every == 0 or at == len(chosen):
                _save_explained(file, Explained(torch.cat(rows), torch.cat(labels)), self.fingerprint)
        self.report(f"explaining answers, {what}", len(chosen), len(chosen))
        return Explained(torch.cat(rows), torch.cat(labels))

    def _chosen(self, examples: Sequence[Example]) -> list[tuple[Example, int]]:
        """Examples with the numbers of the questions that are asked about them."""
        rng = np.random.default_rng(self.config.seed)
        chosen = []
        for example in examples:
            order = rng.permutation(len(example.questions))[: self.config.questions]
            chosen += [(example, int(number)) for number in sorted(order)]
        return chosen

    def _explained(self, chosen: Sequence[tuple[Example, int]]) -> Explained:
        images = {id(example): example.items[0].load() for example, _ in chosen}
        with torch.no_grad():
            pixels = self.adapter.preprocess(list(images.values())).to(self.adapter.model.device)
            visual, *_ = self.encoder(pixels)
            of_image = dict(zip(images, torch.split(visual, self.spans), strict=True))
        prompts = [self.adapter.chat(example.items[number].question) for example, number in chosen]
        answers = self.original.generate([[images[id(one)]] for one, _ in chosen], prompts, ANSWER_TOKENS)
        end = self.adapter.eos_token_ids[:1]
        questions = [
            replace(example.questions[number], answer=ids if len(ids) == ANSWER_TOKENS else ids + end)
            for (example, number), ids in zip(chosen, (answer.token_ids for answer in answers), strict=True)
        ]
        return explain(self.network, questions, self.beginning, torch.cat([of_image[id(one)] for one, _ in chosen]))


def batch_size(facts: ModelFacts) -> int:
    """Questions of a model to explain at once."""
    tokens = facts.layout.spans * facts.visual_tokens
    maps = 4 * facts.decoder.layers * facts.decoder.heads * tokens**2
    return max(1, min(BATCH, MAPS // maps))


def _save_explained(file: Path, explained: Explained, fingerprint: str) -> None:
    draft = file.with_suffix(".tmp")
    save_file({"rows": explained.rows, "labels": explained.labels}, draft, metadata={"fingerprint": fingerprint})
    os.replace(draft, file)


def _load_explained(file: Path, fingerprint: str) -> Explained | None:
    try:
        with safe_open(file, framework="pt") as stored:
            if (stored.metadata() or {}).get("fingerprint") != fingerprint:
                return None
            return Explained(stored.get_tensor("rows"), stored.get_tensor("labels"))
    except (OSError, SafetensorError):
        return None
