"""Tokens one after the other, from what a model in PyTorch made of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtc.inputs.generation import RuledLogits
from vtc.runtime.sampling import Sampler

if TYPE_CHECKING:
    from vtc.compressed.model import CompressedModel, DecoderState

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes
    ----------
    token_ids : list of int
        Without the end token.
    text : str
    budgets : tuple of int
        As of :class:`vtc.runtime.generation.Generation`.
    """

    token_ids: list[int]
    text: str
    budgets: tuple[int, ...] = ()


def answers(
    model: CompressedModel,
    prefilled: tuple[Tensor, DecoderState],
    prompts: tuple[Ints, Ints],
    max_new_tokens: int,
    sampler: Sampler | None = None,
) -> list[Generation]:
    """Answer prompts.

    Parameters
    ----------
    model : CompressedModel
    prefilled : logits and state
        What :meth:`CompressedModel.prefill` gave for the prompts.
    prompts : token ids and mask, arrays of shape (B, S)
    max_new_tokens : int
    sampler : Sampler or None
        None is greedy.

    Returns
    -------
    list of Generation
    """
    (logits, state), sampler = prefilled, sampler or Sampler()
    ends = model.adapter.eos_token_ids
    ruled = RuledLogits(model.adapter.rules, ends, *prompts, max_new_tokens)
    eos = torch.tensor(ends, device=logits.device)
    token = _chosen(logits, ruled, sampler)
    generated = [token]
    done = torch.isin(token, eos)
    while len(generated) < max_new_tokens and not bool(done.all()):
        token = _chosen(model.decode(token, state), ruled, sampler)
        generated.append(token)
        done |= torch.isin(token, eos)
    rows = [_until_end(row, ends) for row in torch.cat(generated, dim=1).tolist()]
    return [Generation(row, model.adapter.tokenizer.decode(row, skip_special_tokens=True).strip()) for row in rows]


def _chosen(logits: Tensor, ruled: RuledLogits, sampler: Sampler) -> Tensor:
    """The next token of each row (B, 1) by the last of its logits (B, S, vocabulary) and the rules."""
    token = sampler(ruled(logits[:, -1].float().cpu().numpy()))
    ruled.took(token)
    return torch.from_numpy(token[:, None]).to(logits.device)


def _until_end(row: list[int], ends: Sequence[int]) -> list[int]:
    places = [place for place, token in enumerate(row) if token in ends]
    return row[: places[0]] if places else row
