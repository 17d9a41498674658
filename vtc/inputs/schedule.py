"""Where text and visual tokens stand in a prompt. numpy only: the PyTorch model and the torch-free runtime share it.

Visual tokens are found by the placeholder's token id, never by constant offsets, so an image may stand anywhere in the
prompt and a prompt may hold several.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vtc.inputs.positions import IntArray


def attention_blocks(
    input_ids: IntArray, attention_mask: IntArray, image_token_id: int, tokens: int, kind: str
) -> IntArray:
    """Numbers of the groups of tokens that attend to each other in both directions, (B, S); -1 is in none.

    Parameters
    ----------
    input_ids, attention_mask : arrays of shape (B, S)
        Left-padded prompts in which each image takes `tokens` placeholders.
    image_token_id, tokens : int
    kind : {"image", "prompt"}
        Each image is a group of its own, or each whole prompt.
    """
    real = attention_mask.astype(bool)
    if kind == "prompt":
        return np.where(real, 0, -1)
    visual = (input_ids == image_token_id) & real
    return np.where(visual, (np.cumsum(visual, axis=1) - 1) // max(tokens, 1), -1)


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
    indices, mask = _left_padded(text)
    length = input_ids.shape[1]
    rank = np.cumsum(text, axis=1) - 1 + (mask == 0).sum(axis=1)[:, None]
    back = np.where(text, length + rank, np.arange(length)[None, :])
    return TextTokens(indices, mask, back.astype(np.int64))


@dataclass(frozen=True)
class QueryTokens:
    """Where the images of a batch stand, I of them with K tokens each, and the text that asks about each.

    Attributes
    ----------
    image_rows : array of shape (I,)
        Row of the batch that an image stands in.
    image_columns : array of shape (I, K)
        Where its tokens stand in that row, ascending.
    query_columns, query_mask : arrays of shape (I, Q)
        Text tokens of that row that ask about it; 0 in the mask is padding.
    """

    image_rows: IntArray
    image_columns: IntArray
    query_columns: IntArray
    query_mask: IntArray


def query_tokens(
    input_ids: IntArray, attention_mask: IntArray, image_token_id: int, tokens: int, queries: str, spans: int = 1
) -> QueryTokens:
    """Find the images of left-padded prompts, `tokens` placeholders each, and the text that asks about them.

    Parameters
    ----------
    input_ids, attention_mask : arrays of shape (B, S)
    image_token_id, tokens : int
    queries : {"text_after_image", "all_text", "last_token"}
    spans : int
        Runs of placeholders that make up one image; the text between them asks nothing.
    """
    real = attention_mask.astype(bool)
    visual = (input_ids == image_token_id) & real
    rows, columns = (places.reshape(-1, tokens) for places in np.nonzero(visual))
    image_rows = rows[:, 0]
    place = np.arange(input_ids.shape[1])[None, :]
    begins = np.repeat(columns[::spans, 0], spans)[:, None]
    ends = np.repeat(columns[spans - 1 :: spans, -1], spans)[:, None]
    asks = (real & ~visual)[image_rows]
    if queries == "last_token":
        asks = asks & (place == input_ids.shape[1] - 1)
    elif queries == "all_text":
        asks &= (place < begins) | (place > ends)
    else:
        asks &= place > ends
    return QueryTokens(image_rows, columns, *_left_padded(asks))


@dataclass(frozen=True)
class Cut:
    """What pruning visual tokens inside the decoder needs to know of a batch, and what the batch is afterwards.

    I images, K tokens of each before the cut and k behind it; S and S' tokens a row.

    Attributes
    ----------
    query_tokens : QueryTokens
    layout : array of shape (B, S')
        Where each token behind the cut comes from: below S the place of a token that stays in any case, from S on an
        index into the I * k kept tokens. 0 on padding.
    input_ids, attention_mask : arrays of shape (B, S')
        The shorter, left-padded rows.
    """

    query_tokens: QueryTokens
    layout: IntArray
    input_ids: IntArray
    attention_mask: IntArray

    @property
    def graph_inputs(self) -> tuple[IntArray, ...]:
        """What the graph that cuts takes behind hidden states, mask and positions, in that order."""
        where = self.query_tokens
        return where.image_rows, where.image_columns, where.query_columns, where.query_mask, self.layout


def cut(
    input_ids: IntArray,
    attention_mask: IntArray,
    image_token_id: int,
    tokens: int,
    keep: int,
    queries: str,
    spans: int = 1,
) -> Cut:
    """Lay out a batch in which each image goes from `tokens` visual tokens to `keep`.

    Parameters
    ----------
    input_ids, attention_mask : arrays of shape (B, S)
        Left-padded, with at least one image, each followed by text.
    image_token_id, tokens, keep : int
    queries : {"text_after_image", "all_text", "last_token"}
        Which text tokens ask.
    spans : int
        As for :func:`query_tokens`.
    """
    real = attention_mask.astype(bool)
    visual = (input_ids == image_token_id) & real
    place = np.arange(input_ids.shape[1])[None, :]
    before = np.cumsum(visual).reshape(visual.shape) - visual  # over the whole batch, row after row
    stays = real & ~(visual & (before % tokens >= keep))
    source = np.where(visual, input_ids.shape[1] + before // tokens * keep + before % tokens, place)
    kept, mask = _left_padded(stays)
    layout = np.where(mask == 1, np.take_along_axis(source, kept, axis=1), 0)
    ids = np.take_along_axis(input_ids, kept, axis=1)
    return Cut(query_tokens(input_ids, attention_mask, image_token_id, tokens, queries, spans), layout, ids, mask)


def _left_padded(chosen: NDArray[np.bool_]) -> tuple[IntArray, IntArray]:
    """Columns of the chosen places of each row, ascending, left-padded with 0; and a mask, 0 where that is padding."""
    counts = chosen.sum(axis=1)
    longest = int(counts.max(initial=0))
    mask = (np.arange(longest)[None, :] >= longest - counts[:, None]).astype(np.int64)
    columns = np.zeros((len(chosen), longest), dtype=np.int64)
    columns[mask.astype(bool)] = np.nonzero(chosen)[1]
    return columns, mask
