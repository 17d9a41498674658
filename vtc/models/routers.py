"""What the routers of a mixture of experts decide while a decoder runs, and how much of each modality tokens carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import InputError
from vtc.experts.modality import modality_labels, propagate_scores
from vtc.models.base import VLMAdapter


@dataclass(frozen=True)
class Routed:
    """What a decoder layer's router decided for B sequences of S tokens.

    Attributes
    ----------
    layer : int
        As the model numbers them.
    hidden : Tensor of shape (B, S, D)
        What the router and the experts see.
    logits : Tensor of shape (B, S, E)
    chosen : Tensor of shape (B, S, k), int64
    weights : Tensor of shape (B, S, k)
        Of the chosen experts' outputs.
    scores : Tensor of shape (B, S, 2)
        Soft modality scores by attention, text and visual.
    experts : module
        With `gate_up_proj` (E, 2F, D) and `down_proj` (E, D, F).
    """

    layer: int
    hidden: Tensor
    logits: Tensor
    chosen: Tensor
    weights: Tensor
    scores: Tensor
    experts: nn.Module


@dataclass
class Tokens:
    """The tokens that run through the decoder; whoever runs it says which they are.

    Attributes
    ----------
    position_ids : Tensor of shape (B, S) or (3, B, S), int64
    scores : Tensor of shape (B, S, 2)
        Soft modality scores before the next layer, text and visual.
    """

    position_ids: Tensor
    scores: Tensor

    @classmethod
    def of(cls, visual: Tensor, position_ids: Tensor) -> Tokens:
        """Tokens before the first layer: each is all text, or all visual where `visual` (B, S) says so."""
        return cls(position_ids, modality_labels(visual))


def router_and_experts(layer: nn.Module) -> tuple[Any, Any] | None:
    """The router and the experts of a decoder layer; None where it has none."""
    block: Any = getattr(layer, "mlp", None)
    router, experts = getattr(block, "gate", None), getattr(block, "experts", None)
    return None if router is None or not hasattr(experts, "gate_up_proj") else (router, experts)


def chosen_outputs(experts: Any, hidden: Tensor, chosen: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Outputs of each expert that some token chose.

    Parameters
    ----------
    experts : module
    hidden : Tensor of shape (T, D)
    chosen : Tensor of shape (T, k), int64

    Yields
    ------
    int
        Number of an expert.
    Tensor of shape (tokens, D)
        Its outputs for the tokens that chose it, in their order, before the router's weights.
    """
    for expert in torch.unique(chosen).tolist():
        inputs = hidden[(chosen == expert).any(dim=1)]
        gate, up = nn.functional.linear(inputs, experts.gate_up_proj[expert]).chunk(2, dim=-1)
        yield expert, nn.functional.linear(experts.act_fn(gate) * up, experts.down_proj[expert])


def check_mixture(adapter: VLMAdapter) -> None:
    """Make sure that a model is a mixture of experts that all tokens share.

    Raises
    ------
    InputError
        If it is dense, or visual tokens have experts of their own.
    """
    if adapter.facts.decoder.experts == 1:
        raise InputError(
            f"{adapter.path}: is dense, it has no experts; give a model whose decoder is a mixture of them"
        )
    if adapter.facts.decoder.visual_experts:
        raise InputError(
            f"{adapter.path}: visual tokens have experts of their own here, and experts are watched that all tokens "
            "share; measure without the stage visual_experts"
        )


@contextmanager
def watching_routers(adapter: VLMAdapter, report: Callable[[Routed], None]) -> Iterator[Callable[[Tokens], None]]:
    """While open, report what each router decides.

    The soft scores follow the attention from layer to layer (see :func:`vtc.experts.modality.propagate_scores`), which
    needs whole prompts: nothing may be cached.

    Parameters
    ----------
    adapter : VLMAdapter
        A mixture of experts.
    report : callable
        Called with what a layer's router decided, before the experts run.

    Yields
    ------
    callable
        To be told the tokens before they run.
    """
    handles: list[Any] = []
    tokens: list[Tokens] = []
    for number, layer in enumerate(adapter.decoder_layers):
        found = router_and_experts(layer)
        if found is not None:
            handles += _Watch(adapter, number, tokens, report).hooks(layer, *found)
    try:
        yield lambda given: tokens.__setitem__(slice(None), [given])
    finally:
        for handle in handles:
            handle.remove()


class _Watch:
    """The hooks of one decoder layer."""

    def __init__(
        self, adapter: VLMAdapter, number: int, tokens: list[Tokens], report: Callable[[Routed], None]
    ) -> None:
        self.adapter, self.number, self.tokens, self.report = adapter, number, tokens, report
        self.attention = self.entering = self.logits = torch.empty(0)

    def hooks(self, layer: Any, router: nn.Module, experts: nn.Module) -> list[Any]:
        return [
            layer.register_forward_pre_hook(self.enter, with_kwargs=True),
            layer.self_attn.register_forward_hook(self.attended),
            router.register_forward_hook(self.routed),
            experts.register_forward_pre_hook(self.chosen),
        ]

    @torch.no_grad()
    def enter(self, _: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        hidden, bias = inputs[0], named["attention_mask"]
        everyone = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[0], -1)
        seen = (bias if bias.dtype == torch.bool else bias >= 0)[:, 0]
        positions = self.tokens[0].position_ids
        self.attention = self.adapter.attention_rows(self.number, hidden, everyone, seen, positions)
        self.entering = hidden

    @torch.no_grad()
    def attended(self, _: nn.Module, inputs: Any, output: tuple[Tensor, ...]) -> None:
        tokens = self.tokens[0]
        tokens.scores = propagate_scores(self.attention, output[0], self.entering, tokens.scores)

    def routed(self, _: nn.Module, inputs: Any, output: Any) -> None:
        self.logits = output[0] if isinstance(output, tuple) else output

    def chosen(self, experts: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        scores = self.tokens[0].scores
        of_tokens = (*scores.shape[:2], -1)
        self.report(
            Routed(
                layer=self.number,
                hidden=inputs[0].reshape(of_tokens),
                logits=self.logits.reshape(of_tokens),
                chosen=inputs[1].reshape(of_tokens),
                weights=inputs[2].reshape(of_tokens),
                scores=scores,
                experts=experts,
            )
        )
