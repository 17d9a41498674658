"""A mixture of experts with fewer of them: some dropped, or groups of them merged."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vtc.errors import InputError
from vtc.models.base import VLMAdapter
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
        router, experts = _parts(layer)
        block: Any = layer.mlp
        total = adapter.facts.decoder.experts
        _check_groups(block, router, total, numbers, number)
        index = torch.tensor(numbers, device=experts.gate_up_proj.device)
        for module in (router, experts):
            _select(module, total, index)
        for module in (block, router, experts):
            _count(module, total, count)
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


def _select(module: nn.Module, total: int, index: Tensor) -> None:
    """Keep of each parameter and buffer, whose first axis counts experts, what `index` names."""
    for name, weight in list(module.named_parameters(recurse=False)):
        if weight.shape[0] == total:
            setattr(module, name, nn.Parameter(weight.detach()[index].clone(), requires_grad=False))
    for name, values in list(module.named_buffers(recurse=False)):
        if values.dim() and values.shape[0] == total:
            setattr(module, name, values[index].clone())


def _count(module: Any, total: int, count: int) -> None:
    """Tell a module how many experts there are, under the names by which it knows it."""
    for name in ("num_experts", "n_routed_experts"):
        if getattr(module, name, None) == total:
            setattr(module, name, count)
    if getattr(module, "top_k", 0) > count:
        module.top_k = count


def _check_groups(block: Any, router: Any, total: int, kept: Sequence[int], layer: int) -> None:
    groups = max(getattr(one, name, 1) for one in (router, block) for name in ("n_group", "num_group"))
    held = [sum(expert * groups // total == group for expert in kept) for group in range(groups)]
    if len(set(held)) > 1:
        raise InputError(
            f"layer {layer}: the router chooses by groups of {total // groups} experts, and {min(held)} to {max(held)} "
            "of each would be kept; keep equally many of each group"
        )
