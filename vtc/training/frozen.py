"""A base model that training must leave as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from vtc.models.base import VLMAdapter


@contextmanager
def frozen(adapter: VLMAdapter, attention: Literal["grouped", "eager"], device: torch.device) -> Iterator[None]:
    """While open, the model is on a device with a kind of decoder attention; it must come out as it went in."""
    adapter.set_decoder_attention(attention)
    adapter.model.to(device)
    before = tensors_digest(adapter.model)
    try:
        yield
    finally:
        adapter.model.to("cpu")
        adapter.set_decoder_attention("sdpa")
    if tensors_digest(adapter.model) != before:
        raise AssertionError("training has changed the base model")


def tensors_digest(model: nn.Module) -> str:
    """SHA-256 over the names and contents of a model's tensors."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
