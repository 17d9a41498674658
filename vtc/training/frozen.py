"""A base model that training must leave as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from vtc.errors import InputError
from vtc.models.base import VLMAdapter
from vtc.models.placing import offloaded


@contextmanager
def frozen(adapter: VLMAdapter, attention: Literal["grouped", "eager"], device: torch.device) -> Iterator[None]:
    """While open, the model is on a device with a kind of decoder attention; it must come out as it went in.

    Of a model in fewer bits than float32, matrices are multiplied in its type, and the rest is computed in float32:
    parts that are trained stay float32 (automatic mixed precision).

    Raises
    ------
    InputError
        If gradients cannot go through it: it is not all in memory, or in float16.
    """
    if offloaded(adapter.model):
        raise InputError(
            "a part is trained through the whole model, and there is not memory for all of it at once; give "
            "--dtype bfloat16, or a larger machine"
        )
    if adapter.model.dtype == torch.float16:
        raise InputError("--dtype float16 has not the range that gradients need; train in bfloat16 or float32")
    home, dtype = adapter.model.device, adapter.model.dtype
    adapter.set_decoder_attention(attention)
    adapter.model.to(device)
    before = tensors_digest(adapter.model)
    try:
        # A cache would go on with the casts of weights that a step has changed since.
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=False):
            yield
    finally:
        adapter.model.to(home)
        adapter.set_decoder_attention("sdpa")
    if tensors_digest(adapter.model) != before:
        raise AssertionError("training has changed the base model")


def tensors_digest(model: nn.Module) -> str:
    """SHA-256 over the names and contents of a model's tensors."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
