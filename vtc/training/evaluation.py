"""Exact-answer accuracy of a selector on held-out images, with the inference rule itself: kept tokens are gathered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtc.models.base import VLMAdapter
from vtc.selectors.base import Selector
from vtc.training.examples import EncodedExamples
from vtc.training.forward import answer_states
from vtc.training.packing import Packed


@torch.no_grad()
def right_answers(
    adapter: VLMAdapter, data: EncodedExamples, numbers: Sequence[int], selector: Selector[Any] | None, keep: int
) -> Tensor:
    """Whether greedy decoding gives each question's exact answer, (questions,), bool.

    Parameters
    ----------
    adapter : VLMAdapter
    data : EncodedExamples
    numbers : sequence of int
        Images to ask about.
    selector : Selector or None
        None: all visual tokens.
    keep : int
        Visual tokens of each run to keep, at their original positions.
    """
    tokens = data.tokens(numbers)
    if selector is None:
        visual, places, *_ = data.encoder.compress(tokens)
    else:
        kept = tokens.keep(selector.select(tokens, keep))
        visual, places = data.encoder.in_decoder_space(kept), kept.indices
    packed = data.pack(numbers, places)
    return exact(adapter.head(answer_states(adapter, packed, visual)), packed)


def exact(logits: Tensor, packed: Packed) -> Tensor:
    """Whether each question's answer (questions,) is the argmax at every one of its tokens, the end token included.

    With the answer fed in, that is so exactly if greedy decoding produces it.
    """
    wrong = (logits.argmax(-1) != packed.targets).long()
    count = int(packed.question[-1]) + 1
    return torch.zeros(count, dtype=torch.long, device=wrong.device).index_add_(0, packed.question, wrong) == 0


def accuracy(adapter: VLMAdapter, data: EncodedExamples, selector: Selector[Any] | None, keep: int) -> float:
    """Share of the questions about all images that are answered exactly; see :func:`right_answers`."""
    return float(torch.cat([right_answers(adapter, data, n, selector, keep) for n in data.batches()]).float().mean())
