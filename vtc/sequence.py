"""Where text and visual tokens stand in a prompt. numpy only: the PyTorch model and the torch-free runtime share it.

Visual tokens are found by the placeholder's token id, never by constant offsets, so an image may stand anywhere in the
prompt and a prompt may hold several.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Positions:
    """Rotary positions of a batch of prompts.

    Attributes
    ----------
    ids : array of shape (B, S)
        Position of every token; 0 on padding.
    following : array of shape (B,)
        Position of the first generated token of each row.
    """

    ids: IntArray
    following: IntArray


def positions(
    input_ids: IntArray,
    attention_mask: IntArray,
    image_token_id: int,
    keep_indices: IntArray,
    original_tokens: int | None,
) -> Positions:
    """Positions of text and visual tokens.

    Parameters
    ----------
    input_ids, attention_mask : arrays of shape (B, S)
        Left-padded prompts in which each image takes K placeholders.
    image_token_id : int
    keep_indices : array of shape (images, K)
        Ascending places of the kept tokens on the encoder's grid, images in prompt order over the whole batch.
    original_tokens : int or None
        N, the tokens an image had before pruning: kept tokens then keep their original positions, and the text behind
        an image goes on N later. None: everything is numbered contiguously.

    Returns
    -------
    Positions
    """
    keep = keep_indices.shape[1] if keep_indices.size else 1
    span = keep if original_tokens is None else original_tokens
    offsets = np.broadcast_to(np.arange(keep), keep_indices.shape) if original_tokens is None else keep_indices
    real = attention_mask.astype(bool)
    visual = (input_ids == image_token_id) & real
    text = real & ~visual
    visual_before = np.cumsum(visual, axis=1) - visual
    ids = np.cumsum(text, axis=1) - text + span * (visual_before // keep)
    ids[visual] += offsets.reshape(-1)
    ids[~real] = 0
    following = text.sum(axis=1) + span * (visual.sum(axis=1) // keep)
    return Positions(ids.astype(np.int64), following.astype(np.int64))


@dataclass(frozen=True)
class TextTokens:
    """The text tokens of a batch of prompts: what remains where visual tokens are left out.

    Attributes
    ----------
    indices : array of shape (B, T)
        Where they are among the S tokens of their row, ascending; left-padded with 0. T is the longest row's count.
    mask : array of shape (B, T)
        1 for a text token, 0 for padding.
    back : array of shape (B, S)
        Where each token is found once all S tokens and the T text tokens are laid end to end: text tokens in the second
        part, all others in the first.
    """

    indices: IntArray
    mask: IntArray
    back: IntArray


def text_tokens(input_ids: IntArray, attention_mask: IntArray, image_token_id: int) -> TextTokens:
    """Find the text tokens of left-padded prompts.

    Parameters
    ----------
    input_ids, attention_mask : arrays of shape (B, S)
    image_token_id : int
    """
    text = (input_ids != image_token_id) & attention_mask.astype(bool)
    counts = text.sum(axis=1)
    longest = int(counts.max(initial=0))
    mask = (np.arange(longest)[None, :] >= longest - counts[:, None]).astype(np.int64)
    indices = np.zeros((input_ids.shape[0], longest), dtype=np.int64)
    indices[mask.astype(bool)] = np.nonzero(text)[1]
    length = input_ids.shape[1]
    rank = np.cumsum(text, axis=1) - 1 + (longest - counts)[:, None]
    back = np.where(text, length + rank, np.arange(length)[None, :])
    return TextTokens(indices, mask, back.astype(np.int64))
