"""A mixture of experts with fewer of them: some dropped, groups of them merged, or fewer for visual tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vtc.errors import InputError
from vtc.models.base import VLMAdapter
from vtc.models.parts.split_mixture import SplitMixture
from vtc.models.placing import check_in_memory
from vtc.models.routers import router_and_experts
from vtc.models.twin import twin

Adapter = TypeVar("Adapter", bound=VLMAdapter)
Groups = Sequence[Sequence[tuple[int, float]]]
"""Experts that become one each, every expert with its share of the merged weights; shares of a group sum to 1."""


class MergedRouter(nn.Module):
    """The router of a layer whose experts were merged: it still tells all of them apart, and sends on to the groups.

    Parameters
    ----------
    router : module
    groups : Tensor of shape (E,), int64
        Group of each expert.
    """

    groups: Tensor

    def __init__(self, router: nn.Module, groups: Tensor) -> None:
        super().__init__()
        self.router = router
        self.register_buffer("groups", groups, persistent=False)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of all experts, the weights of the chosen ones, and their groups, which may be the same."""
        logits, weights, chosen = self.router(hidden)
        return logits, weights, self.groups[chosen]


def keep_experts(adapter: Adapter, kept: Sequence[Sequence[int]]) -> Adapter:
    """The same model with some experts of each layer; its router chooses among those.

    What the router has for each expert, a correction bias too, goes with it.

    Parameters
    ----------
    adapter : VLMAdapter
        A mixture of experts.
    kept : for each layer, numbers of experts
        Ascending, equally many in each layer and in each group of experts that the router chooses by.

    Raises
    ------
    InputError
        If not all weights are in memory, or groups would lose unequal numbers.
    """
    fewer, count = _twin(adapter), len(kept[0])
    for number, (layer, numbers) in enumerate(zip(fewer.decoder_layers, kept, strict=True)):
        _, experts = _parts(layer)
        block: Any = layer.mlp
        total = adapter.facts.decoder.experts
        _check_groups(block, total, numbers, number)
        _keep(block, total, torch.tensor(numbers, device=experts.gate_up_proj.device), count)
    return _with_experts(fewer, count, merged=False)


def merge_experts(adapter: Adapter, groups: Sequence[Groups]) -> Adapter:
    """The same model with one expert in the place of each group, the mean of its members' weights.

    The router stays as it is.

    Parameters
    ----------
    adapter : VLMAdapter
        A mixture of experts.
    groups : for each layer, its groups
        Equally many in each layer.

    Raises
    ------
    InputError
        If not all weights are in memory.

    Notes
    -----
    Based on HC-SMoE (arXiv 2410.08589).
    """
    fewer, count = _twin(adapter), len(groups[0])
    for layer, own in zip(fewer.decoder_layers, groups, strict=True):
        router, experts = _parts(layer)
        block: Any = layer.mlp
        total = adapter.facts.decoder.experts
        shares, of_expert = torch.zeros(count, total), torch.zeros(total, dtype=torch.int64)
        for group, members in enumerate(own):
            for expert, share in members:
                shares[group, expert], of_expert[expert] = share, group
        for name, weight in list(experts.named_parameters(recurse=False)):
            merged = (shares.to(weight.device) @ weight.detach().float().flatten(1)).reshape(count, *weight.shape[1:])
            setattr(experts, name, nn.Parameter(merged.to(weight.dtype), requires_grad=False))
        _count(experts, total, count)
        block.gate = MergedRouter(router, of_expert.to(experts.gate_up_proj.device))
    return _with_experts(fewer, count, merged=True)


def split_experts(adapter: Adapter, visual: Sequence[Sequence[int]]) -> Adapter:
    """The same model whose visual tokens choose among some experts of each layer alone; text chooses among all.

    What the router has for each expert, a correction bias too, goes with it. Where the router knows no groups, a
    layer's experts are put in another order, those of visual tokens first: both mixtures then share their weights.

    Parameters
    ----------
    adapter : VLMAdapter
        A mixture of experts.
    visual : for each layer, numbers of experts
        As for :func:`keep_experts`.

    Raises
    ------
    InputError
        As for :func:`keep_experts`.
    """
    split, total, count = _twin(adapter), adapter.facts.decoder.experts, len(visual[0])
    for number, (layer, numbers) in enumerate(zip(split.decoder_layers, visual, strict=True)):
        _, experts = _parts(layer)
        text: Any = layer.mlp
        _check_groups(text, total, numbers, number)
        order = [*numbers, *(one for one in range(total) if one not in numbers)]
        index, grouped = torch.tensor(order, device=experts.gate_up_proj.device), _groups(text) > 1
        if not grouped:
            _keep(text, total, index, total)
        own = twin(text)
        for module, like in zip(own.modules(), text.modules(), strict=True):
            if hasattr(like, "config"):  # by which forms of experts are chosen, for both at once
                module.config = like.config
        _keep(own, total, index[:count] if grouped else slice(count), count)
        layer.mlp = SplitMixture(text, own)
    decoder = replace(adapter.facts.decoder, visual_experts=count)
    split.facts = replace(adapter.facts, decoder=decoder)
    return split


def _twin(adapter: Adapter) -> Adapter:
    check_in_memory(adapter.model, "experts are dropped and merged")
    fewer = copy.copy(adapter)
    fewer.model = twin(adapter.model)
    return fewer


def _with_experts(adapter: Adapter, count: int, *, merged: bool) -> Adapter:
    adapter.facts = replace(adapter.facts, decoder=adapter.facts.decoder.with_experts(count, merged=merged))
    return adapter


def _parts(layer: nn.Module) -> tuple[Any, Any]:
    found = router_and_experts(layer)
    if found is None:
        raise AssertionError("only mixtures of experts in all layers are served")
    return found


def _keep(block: Any, total: int, index: Tensor | slice, count: int) -> None:
    """Leave a mixture `count` of its experts, those that `index` names; a slice of them goes on sharing weights."""
    for module in (block.gate, block.experts):
        _select(module, total, index)
    for module in (block, block.gate, block.experts):
        _count(module, total, count)


def _select(module: nn.Module, total: int, index: Tensor | slice) -> None:
    """Keep of each parameter and buffer, whose first axis counts experts, what `index` names."""
    for name, weight in list(module.named_parameters(recurse=False)):
        if weight.shape[0] == total:
            setattr(module, name, nn.Parameter(weight.detach()[index], requires_grad=False))
    for name, values in list(module.named_buffers(recurse=False)):
        if values.dim() and values.shape[0] == total:
            setattr(module, name, values[index])


def _count(module: Any, total: int, count: int) -> None:
    """Tell a module how many experts there are, under the names by which it knows it."""
    for name in ("num_experts", "n_routed_experts"):
        if getattr(module, name, None) == total:
            setattr(module, name, count)
    if getattr(module, "top_k", 0) > count:
        module.top_k = count


def _groups(block: Any) -> int:
    """Groups of experts that a mixture's router chooses by; 1 where it knows none."""
    return max(getattr(one, name, 1) for one in (block.gate, block) for name in ("n_group", "num_group"))


def _check_groups(block: Any, total: int, kept: Sequence[int], layer: int) -> None:
    groups = _groups(block)
    held = [sum(expert * groups // total == group for expert in kept) for group in range(groups)]
    if len(set(held)) > 1:
        raise InputError(
            f"layer {layer}: the router chooses by groups of {total // groups} experts, and {min(held)} to {max(held)} "
            "of each would be kept; keep equally many of each group"
        )
