"""Prompts with a model's own answers, and what it says after each of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from exporters.precision.calibration import on_last_layer
from vtc.compressed.model import CompressedModel
from vtc.data.samples import ANSWER_TOKENS, Sample

POSITIONS = 256
"""Tokens of a prompt whose next-token distributions are looked at, at most; drawn anew each time."""
BFLOAT16 = ("avx512_bf16", "amx_bf16")
"""What processors have on which gradients come several times faster in bfloat16."""


class Prompt(NamedTuple):
    """A prompt with the model's own answer.

    Attributes
    ----------
    model : CompressedModel
    input_ids, attention_mask : Tensors of shape (1, S)
    pixel_values : Tensor or None
    """

    model: CompressedModel
    input_ids: Tensor
    attention_mask: Tensor
    pixel_values: Tensor | None

    def states(self) -> Tensor:
        """What comes out of the decoder's last layer, (1, S', E), of the tokens that are left there."""
        found: list[Tensor] = []
        hook = on_last_layer(self.model.segments[-1], found.append)
        try:
            self.model.prefill(self.input_ids, self.attention_mask, self.pixel_values)
        finally:
            hook.remove()
        return found[-1]

    def scores(self, states: Tensor) -> Tensor:
        """Log probabilities (S', vocabulary) of what follows states (1, S', E)."""
        last: Any = self.model.segments[-1]
        found: Tensor = last.head(last.norm(states))[0]
        return F.log_softmax(found.float(), dim=-1)


def answered(models: Sequence[CompressedModel], samples: Sequence[Sample]) -> list[Prompt]:
    """Each sample with the answer of each model, in a random order that is always the same."""
    prompts = [_answered(model, sample) for model in models for sample in samples]
    return [prompts[number] for number in np.random.default_rng(0).permutation(len(prompts))]


def _answered(model: CompressedModel, sample: Sample) -> Prompt:
    ids, mask, pixels = model.inputs([sample.images], [sample.prompt])
    answer = model.answer(ids, mask, pixels, ANSWER_TOKENS)[0].token_ids
    ids = torch.cat([ids, ids.new_tensor([answer])], dim=1)
    return Prompt(model, ids, torch.ones_like(ids), pixels)


def some_places(states: Tensor, rng: np.random.Generator) -> Tensor:
    """Some of the tokens of states (1, S', E)."""
    return torch.from_numpy(rng.permutation(states.shape[1])[:POSITIONS])


def narrow() -> AbstractContextManager[Any]:
    """Meanwhile, products are in bfloat16 where that is faster."""
    has = torch.cpu.get_capabilities()
    return torch.autocast("cpu", torch.bfloat16, enabled=any(has.get(name) for name in BFLOAT16))
