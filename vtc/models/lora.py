"""Low-rank updates of a decoder's matrices (LoRA, Hu et al. 2022, arXiv 2106.09685), through `peft`.

A tuned model has modules of its own around weights that it shares with the checkpoint's: both run side by side. Once
merged, the matrices that were tuned are its own too, and nothing else tells it from any other model.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from vtc.errors import InputError, MissingDependency
from vtc.models.placing import offloaded
from vtc.models.twin import twin

if TYPE_CHECKING:
    from vtc.models.base import VLMAdapter

NAME = "vtc"
"""What `peft` calls the one update that there is."""
Adapter = TypeVar("Adapter", bound="VLMAdapter")


@dataclass(frozen=True)
class _Original:
    """The model that was tuned: no part of what it is written down in, and one for all copies of that."""

    model: nn.Module

    def __deepcopy__(self, memo: Any) -> _Original:
        return self


class LoraFactors(nn.Module):
    """The factors of each linear layer of a decoder, which training makes.

    Parameters
    ----------
    base : module
        The model as it was.
    rank : int
        Of an update.
    alpha : int
        An update is ``alpha / rank`` times the product of its factors.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: int) -> None:
        super().__init__()
        self.original, self.rank, self.alpha = _Original(base), rank, alpha

    def __str__(self) -> str:
        return f"rank {self.rank}, alpha {self.alpha}"


def with_lora(adapter: Adapter, rank: int, alpha: int) -> Adapter:
    """The same model, each linear layer of its decoder layers with an update, which is 0 until it is trained.

    Parameters
    ----------
    adapter : VLMAdapter
    rank : int
    alpha : int

    Returns
    -------
    VLMAdapter
        Its `lora` holds the factors.

    Raises
    ------
    MissingDependency
        If `peft` is not installed.
    InputError
        If not all weights are in memory.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise MissingDependency(f"lora needs {error.name}: pip install 'vtc[compress]'") from None
    if offloaded(adapter.model):
        raise InputError(
            "lora is added to the decoder's weights, and there is not memory for all of them at once; give "
            "--dtype bfloat16, or a larger machine"
        )
    base, tuned = adapter.model, copy.copy(adapter)
    tuned.model = twin(base)
    tuned.lora = factors = LoraFactors(base, rank, alpha)
    for number, layer in enumerate(tuned.decoder_layers):
        names = [name for name, module in layer.named_modules() if type(module) is nn.Linear]
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names)
        inject_adapter_in_model(config, layer, NAME)
        for name in names:
            updated: Any = layer.get_submodule(name)
            pair = {"A": updated.lora_A[NAME], "B": updated.lora_B[NAME]}
            factors.add_module(f"{number}_{name.replace('.', '_')}", nn.ModuleDict(pair).float())
    return tuned


def merge_lora(adapter: VLMAdapter) -> None:
    """Add the updates to the matrices, which become the tuned model's own; nothing to do where there are none."""
    if adapter.lora is None:
        return
    for layer in adapter.decoder_layers:
        for name, module in list(layer.named_modules()):
            if not hasattr(module, "lora_A"):
                continue
            linear = module.get_base_layer()
            linear.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
            module.merge()
            layer.set_submodule(name, linear)


def without_lora(adapter: Adapter) -> Adapter:
    """The model as it was before; itself where nothing was added."""
    if adapter.lora is None:
        return adapter
    untuned = copy.copy(adapter)
    untuned.model, untuned.lora = adapter.lora.original.model, None
    return untuned
