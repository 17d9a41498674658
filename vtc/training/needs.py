"""What the training of a part takes: memory, and time by what this machine was measured to do.

The model is frozen: of what a layer computes, backpropagation keeps what the gradient of its input needs, and no
gradient of a weight. Of questions and answers nothing is known yet: one question an image, and short answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from vtc.amounts import duration, gigabytes
from vtc.compressed.needs import costs_of
from vtc.data.datasets import count_items
from vtc.facts.placement import Device, Dtype, Placement
from vtc.models.base import VLMAdapter
from vtc.needs import Need
from vtc.plan import TokenPlan, plan
from vtc.plan.costs import HOLES, Costs, lengths
from vtc.plan.flops import decoder_flops
from vtc.recipe import NONE, Recipe
from vtc.recipe.lora import linear_layers
from vtc.recipe.selectors.decoder.relevance import RelevanceTraining
from vtc.recipe.selectors.learned import PrunerTraining
from vtc.recipe.training import DistillationTraining
from vtc.training import distillation, examples, explanations, pruner

ANSWER = 4
"""Tokens of an answer, its end included."""
STATES = 4
"""Copies of a trained parameter, float32: itself, its gradient, and two moments of Adam's."""


@dataclass(frozen=True)
class Training:
    """A training and the model that it goes through.

    Attributes
    ----------
    costs : Costs
    plan, baseline : TokenPlan
        With the recipe, and without any.
    stage : int
    items : int or None
        Questions that there are; None is any number.
    """

    costs: Costs
    plan: TokenPlan
    baseline: TokenPlan
    stage: int
    items: int | None = None

    def drawn(self, count: int) -> int:
        """How many of the images or questions that a training asks for it gets."""
        return count if self.items is None else min(count, self.items)

    def saved(self, seen: Sequence[int]) -> int:
        """Bytes that backpropagation keeps of one sequence, of which each layer sees so many tokens.

        Of a token and layer: three times the feed-forward (gate, its activation, what it is multiplied by), queries,
        keys and values, the attention weights in float32 and in the model's type, and the input of two norms in
        float32.
        """
        decoder, value = self.costs.facts.decoder, self.costs.value
        inner = (3 if decoder.gated_ffn else 2) * decoder.ffn * decoder.active_experts
        projected = (decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
        token = value * (inner + projected) + 2 * 4 * decoder.width
        if self.costs.lora is not None:  # the input of each layer that is updated, in float32
            token += 4 * sum(given for given, _ in linear_layers(decoder))
        return sum(n * (token + (4 + value) * decoder.heads * n) for n in seen)

    def step(self, prompts: int, seen: Sequence[int]) -> int:
        """Bytes of a forward pass that gradients are to go back through."""
        return int(HOLES * prompts * self.saved(seen)) + self.logits(prompts)

    def forward(self, prompts: int, tokens: int) -> int:
        """Bytes of a layer's values without gradients: attention as products, whose scores are there three times."""
        facts, value = self.costs.facts, self.costs.value
        scores = (4 + 3 * value) * facts.decoder.heads * tokens**2
        return prompts * max(self.costs.encoded(), self.costs.layer(tokens) + scores)

    def logits(self, prompts: int) -> int:
        """Bytes of what is said of answers: logits, their logarithms, what is wanted, and a gradient, in float32."""
        return STATES * 4 * prompts * ANSWER * self.costs.facts.decoder.vocab

    def optimised(self) -> int:
        """Bytes of the part that is trained, updates of the decoder included."""
        lora = self.costs.lora
        updates = 0 if lora is None else lora.parameters(self.costs.facts.decoder)
        return STATES * 4 * (self.plan.stages[self.stage].parameters + updates)

    def seconds(self, operations: float, decoded: float = 0.0) -> float | None:
        """Seconds of so many operations, and so many tokens one after another."""
        one = self.costs.decode(decoded)
        return None if self.costs.speed is None or one is None else operations / self.costs.speed.flops + one


def training_need(
    recipe: Recipe, stage: int, plan: TokenPlan, baseline: TokenPlan, costs: Costs, items: int | None = None
) -> Need:
    """What training the part of a stage takes, the model loaded for it included; its time is that of all its steps.

    Of a kind of training that nobody has looked at yet it is the model alone, without a time.
    """
    entry: Any = next(entry for number, _, entry in recipe.trained() if number == stage)
    training = Training(costs, plan, baseline, stage, items)
    match entry.training:
        case PrunerTraining() as config:
            return _pruner(training, config)
        case RelevanceTraining() as config:
            return _relevance(training, config)
        case DistillationTraining() as config:
            return _distillation(training, config)
    return costs.more(costs.loaded(), seconds=None)


def announcement(adapter: VLMAdapter, recipe: Recipe, stage: int, source: str) -> str:
    """What is said of a training before it starts: its steps, and about how much memory and time they take here."""
    dtype = str(adapter.model.dtype).removeprefix("torch.")
    placement = Placement(cast(Device, adapter.model.device.type), cast(Dtype, dtype))
    plans = plan(recipe, adapter.facts), plan(NONE, adapter.facts)
    need = training_need(recipe, stage, *plans, costs_of(adapter, placement, True, recipe), count_items(source))
    entry: Any = next(entry for number, _, entry in recipe.trained() if number == stage)
    unit = "epochs" if isinstance(entry.training, RelevanceTraining) else "steps"
    count = f"{getattr(entry.training, unit)} {unit}, " if hasattr(entry.training, unit) else ""
    memory = f"{gigabytes(need.ram)} of memory" + (f" and {gigabytes(need.gpu)} of the GPU's" if need.gpu else "")
    time = "" if need.seconds is None else f" and {duration(need.seconds)}"
    return f"training the {entry.stem} of stages.{stage}: {count}about {memory}{time}"


def _pruner(training: Training, config: PrunerTraining) -> Need:
    """Images are encoded once, as memory allows; a step goes through the whole decoder with the tokens it drew."""
    costs, plan, whole = training.costs, training.plan, max(lengths(training.baseline))
    facts = costs.facts
    spans, tokens = facts.layout.spans, facts.layout.selectable
    at = min(tokens, round(plan.per_span(plan.stages[training.stage].tokens_out) * config.budgets[1]) + config.dropped)
    seen = [spans * at + plan.text_tokens] * facts.decoder.layers
    image = 2 * (spans * tokens * facts.encoder.token_width + ANSWER * facts.decoder.width)
    images, validation = training.drawn(config.images), training.drawn(config.validation)
    kept = sum(min(int(config.memory_gb * 2**30), count * image) for count in (images, validation))
    step = training.step(config.batch, seen)
    encoding = training.forward(min(examples.BATCH, images), whole)
    peak = kept + max(encoding, training.optimised() + step)
    rounds = min(pruner.LOGGED, config.steps) + 2  # with and without the part before its first step
    checked = rounds * validation * decoder_flops(facts.decoder, lengths(plan))
    encoded = (images + validation) * training.baseline.flops["exact"]
    steps = 2 * config.steps * config.batch * decoder_flops(facts.decoder, seen)
    return costs.more(costs.loaded(), peak, training.seconds(encoded + steps + checked))


def _distillation(training: Training, config: DistillationTraining) -> Need:
    """The original says each answer once, as memory allows; a step goes through the compressed model and back."""
    costs, plan, baseline = training.costs, training.plan, training.baseline
    facts, memory = costs.facts, int(config.memory_gb * 2**30)
    questions, validation = training.drawn(config.questions), training.drawn(config.validation)
    asked = training.drawn(questions + validation)
    image = costs.value * facts.layout.spans * facts.layout.selectable * facts.encoder.token_width
    said = 4 * ANSWER * facts.decoder.vocab
    kept = min(memory // 2, asked * image) + min(memory // 4, asked * said)
    step = training.step(config.batch, lengths(plan))
    original = training.forward(config.batch, max(lengths(baseline)))
    peak = kept + training.optimised() + max(step, original)
    answered = min(asked, config.steps * config.batch + validation)
    rounds = min(distillation.LOGGED, config.steps) + 1
    ours = decoder_flops(facts.decoder, lengths(plan)) + plan.flops_parts["projector"]
    work = answered * baseline.flops["exact"] + (2 * config.steps * config.batch + rounds * validation) * ours
    return costs.more(costs.loaded(), peak, training.seconds(work))


def _relevance(training: Training, config: RelevanceTraining) -> Need:
    """Each question is answered, then explained by gradients of all attention maps; the network itself is small."""
    costs, seen = training.costs, lengths(training.baseline)
    facts = costs.facts
    batch = explanations.batch_size(facts)
    maps = costs.value * facts.decoder.heads * sum(n * n for n in seen)
    said = 3 * 8 * ANSWER * facts.decoder.vocab
    explained = training.step(batch, seen) + batch * (maps + said)
    peak = max(explained, costs.asked(training.baseline, batch))
    asked = training.drawn(config.images * config.questions) + training.drawn(config.validation)
    exact, decoder = training.baseline.flops["exact"], training.baseline.flops_parts["decoder"]
    return costs.more(costs.loaded(), peak, training.seconds(asked * (2 * exact + decoder), asked * ANSWER / batch))
