"""What a model takes to be loaded and asked: memory by arithmetic, time by what this machine was measured to do.

Every figure is a sum of named terms: weights, the KV cache, and the largest values that are alive at once in a layer.
Selectors, positions and the like are small beside those and left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from vtc.facts.model import DecoderFacts, ModelFacts
from vtc.needs import Need
from vtc.plan import flops
from vtc.plan.token_plan import TokenPlan
from vtc.recipe.lora import Lora, linear_layers

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Of one number."""
LIBRARIES = 280 * 2**20
"""Memory of the interpreter, PyTorch and transformers: measured, 277 to 280 MiB on x86-64, PyTorch for CPUs."""
START = 6.0
"""Seconds until they are loaded and a checkpoint's files are checked; measured, 5 to 7 on one core."""
LOADING = 5
"""Times that weights go through memory when they are loaded: read, written in another type into memory that the system
has cleared, and looked at for NaN. Measured; in place they are looked at alone."""
HOLES = 1.3
"""What memory that is freed and filled again grows to, left in pieces as it is: measured, 1.2 to 1.5 times as much."""
HIDDEN = 6
"""Values as wide as a token that are alive at once in a layer: the residual, its norm in float32, queries, output."""


@dataclass(frozen=True)
class Weights:
    """A checkpoint's weights.

    Attributes
    ----------
    numbers : int
        Of the model in memory, where a head that is the embedding's transpose counts once.
    largest : int
        Numbers of the largest tensor.
    stored : str
        The type that most are stored in.
    bytes : int
        Of its files.
    """

    numbers: int
    largest: int
    stored: str
    bytes: int


@dataclass(frozen=True)
class Speed:
    """What this machine does in a second, measured.

    Attributes
    ----------
    flops : float
        Operations of matrix products in the type that the model runs in.
    moved : float
        Bytes of memory read or written.
    hashed : float
        Bytes that SHA-256 goes over.
    """

    flops: float
    moved: float
    hashed: float


@dataclass(frozen=True)
class Costs:
    """What one checkpoint takes in PyTorch.

    Attributes
    ----------
    facts : ModelFacts
    weights : Weights
    dtype : str
        What it runs in: ``float32``, ``bfloat16`` or ``float16``.
    on_gpu : bool
    speed : Speed or None
        None tells no times.
    lora : Lora or None
        Updates of the decoder, whose matrices a recipe then has copies of its own of.
    """

    facts: ModelFacts
    weights: Weights
    dtype: str = "float32"
    on_gpu: bool = False
    speed: Speed | None = None
    lora: Lora | None = None

    @property
    def value(self) -> int:
        """Bytes of one number."""
        return BYTES[self.dtype]

    def loaded(self) -> Need:
        """The model, ready to be asked; its files are hashed before.

        Weights that are stored in the type they are wanted in are not copied: the files themselves are the memory.
        """
        size = self.value * self.weights.numbers
        in_place = self.dtype == self.weights.stored and not self.on_gpu
        seconds = None
        if self.speed is not None:
            passes = 1 if in_place else LOADING
            seconds = START + self.weights.bytes / self.speed.hashed + passes * size / self.speed.moved
        need = Need(
            LIBRARIES,
            work=0 if in_place or self.on_gpu else size,
            mapped=size if in_place else 0,
            gpu=size if self.on_gpu else 0,
            seconds=seconds,
        )
        return self.more(need, self.value * self.tuned)

    @property
    def tuned(self) -> int:
        """Numbers of the matrices that LoRA updates."""
        layers = linear_layers(self.facts.decoder) if self.lora else []
        return self.facts.decoder.layers * sum(given * made for given, made in layers)

    def more(self, need: Need, computed: int = 0, seconds: float | None = 0.0, disk: int = 0) -> Need:
        """A need and what is computed with the model, where it is, in so much time."""
        known = None if need.seconds is None or seconds is None else need.seconds + seconds
        return replace(
            need,
            work=need.work + (0 if self.on_gpu else computed),
            gpu=need.gpu + (computed if self.on_gpu else 0),
            disk=need.disk + disk,
            seconds=known,
        )

    def asked(self, plan: TokenPlan, prompts: int = 1, scored: int = 1, *, every_expert: bool = False) -> int:
        """Bytes of what is computed while prompts of one image are answered.

        Parameters
        ----------
        plan : TokenPlan
        prompts : int
            At a time.
        scored : int
            Tokens of each whose logits are kept, in float32.
        every_expert : bool
            Whether a mixture computes all experts that tokens may choose, as graphs of standard operators do.
        """
        cache = prompts * flops.kv_bytes(self.facts.decoder, lengths(plan), self.value)
        logits = 4 * prompts * scored * self.facts.decoder.vocab
        passed = None
        if every_expert:
            decoder, visual = plan.decoder(self.facts.decoder), max(plan.decoder_visual_tokens)
            passed = plan.text_tokens * decoder.experts + visual * (decoder.visual_experts or decoder.experts)
        decoded = cache + max(prompts * self.layer(max(lengths(plan)), passed), logits)
        return int(HOLES * max(prompts * self.encoded(), decoded))

    def encoded(self) -> int:
        """Bytes of an encoder layer's values for one image: its tokens, and two (or three) times its feed-forward."""
        encoder = self.facts.encoder
        patches = prod(self.facts.layout.view_grid) * encoder.merge**2 + encoder.has_cls
        inner = (3 if encoder.gated_ffn else 2) * encoder.ffn
        return self.facts.layout.views * patches * (inner + HIDDEN * encoder.width) * self.value

    def layer(self, tokens: int, passed: int | None = None) -> int:
        """Bytes of a decoder layer's values for one prompt: its tokens, its feed-forward, and who sees whom.

        They pass so many experts of a mixture, all together; None are those that they are sent to.
        """
        decoder = self.facts.decoder
        inner = (3 if decoder.gated_ffn else 2) * decoder.ffn * (passed or tokens * decoder.active_experts)
        return (inner + tokens * (HIDDEN * decoder.width + tokens)) * self.value

    def prefill(self, plan: TokenPlan, prompts: float = 1, *, every_expert: bool = False) -> float | None:
        """Seconds until the first token, prompts one after another."""
        work = plan.executed if every_expert else plan.flops["exact"]
        return None if self.speed is None else prompts * work / self.speed.flops

    def decode(self, tokens: float) -> float | None:
        """Seconds for so many tokens after the first, one after another: each reads the decoder, of experts its own."""
        if self.speed is None:
            return None
        one = self.facts.decoder
        each = flops.decoder_flops(one, [1] * one.layers) // 2 + one.width * one.vocab
        return tokens * each * self.value / self.speed.moved


@dataclass(frozen=True)
class Use:
    """How a verb asks a model that it has loaded.

    Attributes
    ----------
    verb : str
        As the user types it.
    prompts : int
        At a time.
    scored : int
        Tokens of each whose logits are alive at once, all copies.
    original : bool
        Whether the model is also asked as it is without a recipe.
    """

    verb: str
    prompts: int = 1
    scored: int = 1
    original: bool = True

    def need(self, costs: Costs, plan: TokenPlan, baseline: TokenPlan) -> Need:
        """What a model takes that is loaded once, and asked by the plan of a recipe and by that of none; no time."""
        plans = (plan, baseline) if self.original else (plan,)
        asked = max(costs.asked(one, self.prompts, self.scored) for one in plans)
        return costs.more(costs.loaded(), asked, None)


def lengths(plan: TokenPlan) -> Sequence[int]:
    """Tokens, visual and text, that each decoder layer sees."""
    return [plan.text_tokens + visual for visual in plan.decoder_visual_tokens]


def weight_count(plan: TokenPlan, facts: ModelFacts) -> int:
    """Entries of all matrices that a plan's graphs hold."""
    tower, decoder = facts.encoder, plan.decoder(facts.decoder)
    layer = 4 * tower.width**2 + (3 if tower.gated_ffn else 2) * tower.width * tower.ffn
    patches = prod(facts.layout.view_grid) * tower.merge**2
    places = patches + tower.has_cls + 3 * tower.frames * tower.patch_size**2
    encoder = tower.width * places + len(plan.encoder_layers) * layer
    # A token's multiplications in a decoder layer, all experts active, are the layer's weights: half of the operations
    # of one token, less its attention to itself, which has 2 * width of them.
    whole = replace(decoder, active_experts=decoder.experts)
    one = flops.decoder_flops(whole, [1]) // 2 - 2 * decoder.heads * decoder.head_dim
    return (
        encoder
        + facts.projector_params
        + len(plan.decoder_layers) * (one + decoder.visual_experts * decoder.width)  # with their router
        + 2 * decoder.vocab * decoder.width  # embedding and head
    )


def expert_count(plan: TokenPlan, sizes: DecoderFacts) -> int:
    """Entries of the experts' matrices among those, which are stacked."""
    decoder = plan.decoder(sizes)
    if decoder.experts == 1:
        return 0
    return len(plan.decoder_layers) * decoder.experts * (3 if decoder.gated_ffn else 2) * decoder.ffn * decoder.width
