"""A mixture of experts of which visual tokens have a set of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding


class ModalityRows(NamedTuple):
    """Where tokens of each modality stand among B sequences of S tokens, laid end to end.

    Attributes
    ----------
    text, visual : Tensors of shape (T,), (V,), int64
        Numbers of tokens, ascending; padding counts as text.
    order : Tensor of shape (B, S), int64
        Where each token is found once the text tokens and the visual ones are laid end to end.
    """

    text: Tensor
    visual: Tensor
    order: Tensor

    @classmethod
    def of_text(cls, tokens: Tensor) -> ModalityRows:
        """Rows of tokens (B, S) that are all text."""
        order = torch.arange(tokens.numel(), device=tokens.device)
        return cls(order, order[:0], order.reshape(tokens.shape))


class SplitMixture(nn.Module):
    """A decoder layer's mixture of experts, and a smaller one for visual tokens.

    Parameters
    ----------
    text, visual : modules
        Both take and give (B, S, D).

    Attributes
    ----------
    rows : ModalityRows or None
        The tokens that come in next, as :func:`tell_rows` says; None are all text.
    """

    def __init__(self, text: nn.Module, visual: nn.Module) -> None:
        super().__init__()
        self.text, self.visual = text, visual
        self.rows: ModalityRows | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Send each token (B, S, D) through the mixture of its modality."""
        rows = self.rows
        if rows is None or rows.visual.shape[0] == 0:
            outputs: Tensor = self.text(hidden)
            return outputs
        flat = hidden.flatten(0, 1)
        parts = [
            mixture(embedding(own, flat).unsqueeze(0)).squeeze(0)
            for mixture, own in ((self.text, rows.text), (self.visual, rows.visual))
        ]
        return embedding(rows.order, torch.cat(parts))


@contextmanager
def tell_rows(layers: Iterable[nn.Module], rows: ModalityRows | None) -> Iterator[None]:
    """While open, tell the mixtures of decoder layers which tokens are visual; None is that none are."""
    blocks = [getattr(layer, "mlp", None) for layer in layers]
    split = [block for block in blocks if isinstance(block, SplitMixture)]
    try:
        for mixture in split:
            mixture.rows = rows
        yield
    finally:
        for mixture in split:
            mixture.rows = None
