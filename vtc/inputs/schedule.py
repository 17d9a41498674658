"""What each decoder segment reads of a batch of prompts, worked out before the decoder runs.

Token ids and mask decide all of it; hidden states, and which visual tokens a selector keeps, decide nothing. numpy
only: the PyTorch model and the torch-free runtime follow the same schedule.

Visual tokens are found by the placeholder's token id, never by constant offsets, so an image may stand anywhere in the
prompt and a prompt may hold several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtc.errors import InputError
from vtc.inputs.positions import IntArray

Enters = Literal["same", "gather", "merge", "prune"]


@dataclass(frozen=True)
class SegmentRule:
    """How tokens come to a decoder segment, whatever the prompts.

    Attributes
    ----------
    enters : {"same", "gather", "merge", "prune"}
        ``same`` takes the tokens of the segment before; ``gather`` their text alone; ``merge`` all tokens that there
        were before the last ``gather``; ``prune`` the text and the visual tokens that a selector keeps.
    keep : int
        With ``prune``, visual tokens that stay of each span.
    queries : str
        With ``prune``, the text that ranks them, as for :func:`query_tokens`.
    """

    enters: Enters
    keep: int = 0
    queries: str = ""


@dataclass(frozen=True)
class SegmentSchedule:
    """What a decoder segment reads of a batch of B prompts, T tokens a row.

    Attributes
    ----------
    enters : {"same", "gather", "merge", "prune"}
        As in :class:`SegmentRule`, but ``same`` where there is no image to prune.
    handoff_inputs : tuple of array
        What hands tokens over reads besides the tokens, in this order. S is the length of rows before.

        - ``same``: nothing.
        - ``gather``: indices (B, T), places of the text tokens among the S of their row, ascending; 0 on padding.
        - ``merge``: indices (B, T), where each token is found once the T tokens from before the gathering and the S
          text tokens are laid end to end: text tokens in the second part, all others in the first.
        - ``prune``: the arrays of :class:`QueryTokens` for spans of K tokens, and layout (B, T), where each token
          comes from: below S the place of a token that stays in any case, from S on an index into the kept tokens of
          all spans. 0 on padding.
    attention_mask : array of shape (B, T)
        1 for a token, 0 for padding on the left.
    block_ids : array of shape (B, T) or None
        Groups of tokens that attend to each other in both directions (see :func:`attention_blocks`), for decoders that
        have such.
    rows : TokenRows or None
        Which tokens are text and which are visual, where that is asked for; None also where visual tokens sit out.
    """

    enters: Enters
    handoff_inputs: tuple[IntArray, ...]
    attention_mask: IntArray
    block_ids: IntArray | None
    rows: TokenRows | None = None


def schedule(
    input_ids: IntArray,
    attention_mask: IntArray,
    image_token_id: int,
    tokens: int,
    rules: Sequence[SegmentRule],
    spans: int = 1,
    bidirectional: str = "none",
    answered: IntArray | None = None,
    *,
    by_modality: bool = False,
) -> list[SegmentSchedule]:
    """Work out what every decoder segment reads.

    Parameters
    ----------
    input_ids, attention_mask : arrays of shape (B, S)
        Left-padded prompts in which each span of an image takes `tokens` placeholders.
    image_token_id, tokens : int
    rules : sequence of SegmentRule
        One for each segment.
    spans : int
        As for :func:`query_tokens`.
    bidirectional : {"none", "image", "prompt"}
    answered : array of shape (B,) or None
        As for :func:`attention_blocks`.
    by_modality : bool
        Whether visual tokens have experts of their own.

    Returns
    -------
    list of SegmentSchedule
        One for each segment.

    Raises
    ------
    InputError
        If a prompt ends in an image, and not every segment takes the same tokens: nothing would be left to go on from.
    """
    if any(rule.enters != "same" for rule in rules) and bool((input_ids[:, -1] == image_token_id).any()):
        raise InputError(
            "a prompt must end in text where visual tokens leave the decoder; put the image before the question"
        )
    has_images = bool(_find(input_ids, attention_mask, image_token_id)[1].any())
    ids, mask = whole = input_ids, attention_mask
    sits_out = False
    scheduled = []
    for rule in rules:
        enters = rule.enters if has_images or rule.enters != "prune" else "same"
        handoff_inputs: tuple[IntArray, ...] = ()
        sits_out = enters == "gather" or (sits_out and enters == "same")
        if enters == "gather":
            whole = ids, mask
            text, _ = _find(ids, mask, image_token_id)
            indices, mask = _left_padded(text)
            ids, handoff_inputs = np.take_along_axis(ids, indices, axis=1), (indices,)
        elif enters == "merge":
            ids, mask = whole
            handoff_inputs = (_merge_indices(ids, mask, image_token_id),)
        elif enters == "prune":
            queries = query_tokens(ids, mask, image_token_id, tokens, rule.queries, spans)
            layout, ids, mask = _prune(ids, mask, image_token_id, tokens, rule.keep)
            tokens, handoff_inputs = rule.keep, (*queries, layout)
        blocks = None
        if bidirectional != "none":
            blocks = attention_blocks(ids, mask, image_token_id, tokens, bidirectional, answered)
        rows = None
        if by_modality and not sits_out:
            rows = token_rows(_find(ids, mask, image_token_id)[1])
        scheduled.append(SegmentSchedule(enters, handoff_inputs, mask, blocks, rows))
    return scheduled


class TokenRows(NamedTuple):
    """Where tokens of each modality stand among B sequences of S tokens, laid end to end.

    Attributes
    ----------
    text, visual : arrays of shape (T,), (V,)
        Numbers of tokens, ascending; padding counts as text.
    order : array of shape (B, S)
        Where each token is found once the text tokens and the visual ones are laid end to end.
    """

    text: IntArray
    visual: IntArray
    order: IntArray


def token_rows(visual: NDArray[np.bool_]) -> TokenRows:
    """Tell tokens apart, of which `visual` (B, S) says which are visual."""
    parts = np.flatnonzero(~visual), np.flatnonzero(visual)
    return TokenRows(*parts, np.argsort(np.concatenate(parts)).reshape(visual.shape))


def attention_blocks(
    input_ids: IntArray,
    attention_mask: IntArray,
    image_token_id: int,
    tokens: int,
    kind: str,
    answered: IntArray | None = None,
) -> IntArray:
    """Number the groups of tokens that attend to each other in both directions, (B, S); -1 is in none.

    Parameters
    ----------
    input_ids, attention_mask : arrays of shape (B, S)
        Left-padded prompts in which each span of an image takes `tokens` placeholders.
    image_token_id, tokens : int
    kind : {"image", "prompt"}
        Each span is a group of its own, or each whole prompt.
    answered : array of shape (B,) or None
        Tokens at the end of each row that are the beginning of its answer, and in no group; None is none.
    """
    if kind == "prompt":
        ends = np.full(len(input_ids), input_ids.shape[1]) - (0 if answered is None else answered)
        return np.where((attention_mask == 1) & (np.arange(input_ids.shape[1]) < ends[:, None]), 0, -1)
    _, visual = _find(input_ids, attention_mask, image_token_id)
    return np.where(visual, (np.cumsum(visual, axis=1) - 1) // max(tokens, 1), -1)


class QueryTokens(NamedTuple):
    """Where the spans of a batch stand, I of them with K visual tokens each, and the text that asks about each.

    Attributes
    ----------
    image_rows : array of shape (I,)
        Row of the batch that a span stands in.
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
    """Find the images of prompts, at least one, and the text that asks about them.

    Parameters
    ----------
    input_ids, attention_mask : arrays of shape (B, S)
        Left-padded prompts in which each span of an image takes `tokens` placeholders.
    image_token_id, tokens : int
    queries : {"text_after_image", "all_text", "last_token"}
    spans : int
        Runs of placeholders that make up one image; the text between them asks nothing.

    Raises
    ------
    InputError
        If the text after an image is to ask about it, and there is none.
    """
    text, visual = _find(input_ids, attention_mask, image_token_id)
    rows, columns = (places.reshape(-1, tokens) for places in np.nonzero(visual))
    image_rows = rows[:, 0]
    place = np.arange(input_ids.shape[1])[None, :]
    begins = np.repeat(columns[::spans, 0], spans)[:, None]
    ends = np.repeat(columns[spans - 1 :: spans, -1], spans)[:, None]
    asks = text[image_rows]
    if queries == "last_token":
        asks = asks & (place == input_ids.shape[1] - 1)
    elif queries == "all_text":
        asks &= (place < begins) | (place > ends)
    else:
        asks &= place > ends
        if not asks.any(axis=1).all():
            raise InputError(
                "a prompt has no text after an image, where the selector reads the question; put the image before it"
            )
    return QueryTokens(image_rows, columns, *_left_padded(asks))


def _prune(
    ids: IntArray, mask: IntArray, image_token_id: int, tokens: int, keep: int
) -> tuple[IntArray, IntArray, IntArray]:
    """Layout, ids and mask (B, T) of rows (B, S) in which each span goes from `tokens` visual tokens to `keep`."""
    text, visual = _find(ids, mask, image_token_id)
    length = ids.shape[1]
    before: IntArray = np.cumsum(visual).reshape(visual.shape) - visual  # over the whole batch, row after row
    source = np.where(visual, length + before // tokens * keep + before % tokens, np.arange(length))
    columns, shorter = _left_padded(text | (visual & (before % tokens < keep)))
    layout = np.where(shorter == 1, np.take_along_axis(source, columns, axis=1), 0)
    return layout, np.take_along_axis(ids, columns, axis=1), shorter


def _merge_indices(ids: IntArray, mask: IntArray, image_token_id: int) -> IntArray:
    """Where each token of rows (B, S) is found once they and their text, gathered, are laid end to end, (B, S)."""
    text, _ = _find(ids, mask, image_token_id)
    length = ids.shape[1]
    counts = text.sum(axis=1, keepdims=True)
    padding = counts.max() - counts
    return np.where(text, length + padding + np.cumsum(text, axis=1) - 1, np.arange(length))


def _find(ids: IntArray, mask: IntArray, image_token_id: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which tokens (B, S) are text, and which are visual; padding is neither."""
    real, placeholder = mask == 1, ids == image_token_id
    return real & ~placeholder, real & placeholder


def _left_padded(chosen: NDArray[np.bool_]) -> tuple[IntArray, IntArray]:
    """Columns of the chosen places of each row, ascending, left-padded with 0; and a mask, 0 where that is padding."""
    counts = chosen.sum(axis=1)
    longest = int(counts.max(initial=0))
    mask = (np.arange(longest)[None, :] >= longest - counts[:, None]).astype(np.int64)
    columns = np.zeros((len(chosen), longest), dtype=np.int64)
    columns[mask.astype(bool)] = np.nonzero(chosen)[1]
    return columns, mask
