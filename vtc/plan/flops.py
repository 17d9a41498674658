"""Floating-point operations of a prefill, counted three ways that must not be mixed.

*exact* counts two operations for each multiplication of every matrix product that really runs, encoder
included. The papers' formulas see the decoder alone and count a multiplication once; they are here so that
published figures can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vtc.facts.layout import Grid
from vtc.facts.model import DecoderFacts, EncoderFacts


def encoder_flops(encoder: EncoderFacts, grid: Grid, layers: Sequence[int], readings: Iterable[str] = ()) -> int:
    """Count the vision encoder on one view and what selectors read of it.

    Parameters
    ----------
    encoder
        Its sizes.
    grid
        Rows and columns of tokens in the view, each of `encoder.merge` ** 2 patches.
    layers
        Layers that run: those after the feature layer do not.
    readings
        Kinds of what selectors read, one entry for each layer. A CLS row costs one query, the keys, and one row of
        scores, never an N × N map.

    Returns
    -------
    int
        Operations for one view: patch embedding, projections, scores and values, feed-forward.
    """
    d = encoder.width
    rows, columns = grid[0] * encoder.merge, grid[1] * encoder.merge
    n = rows * columns + encoder.has_cls
    embedding = rows * columns * d * 3 * encoder.frames * encoder.patch_size**2
    layer = n * d * (4 * d + (3 if encoder.gated_ffn else 2) * encoder.ffn)
    pairs = sum(_pairs(encoder, layer_number, n, (rows, columns)) for layer_number in layers)
    readings_products = sum(_reading_products(kind, n, d) for kind in readings)
    return 2 * (embedding + len(layers) * layer + 2 * pairs * d + readings_products)


def _pairs(encoder: EncoderFacts, layer: int, tokens: int, patches: Grid) -> int:
    """Queries times keys of a layer; windows at the edges are filled up."""
    if not encoder.window or layer in encoder.whole_layers:
        return tokens**2
    side = encoder.window
    return -(-patches[0] // side) * -(-patches[1] // side) * side**4


def _reading_products(kind: str, tokens: int, width: int) -> int:
    if kind in ("hidden_states", "cls_state"):
        return 0
    keys = tokens * width * width
    if kind in ("keys", "full_keys"):
        return keys
    asking = tokens if kind in ("received_attention", "patch_attention") else 1
    return keys + asking * width * width + asking * tokens * width


def reading_width(encoder: EncoderFacts, kind: str) -> int:
    """Values of a reading for each token that is laid out as the tokens are; 0 for maps and for what an image has."""
    widths = {
        "keys": encoder.width // encoder.heads,
        "full_keys": encoder.width,
        "patch_attention": 0,
        "hidden_states": encoder.token_width,
        "cls_state": 0,
    }
    return widths.get(kind, 1)


def product_flops(products: Iterable[tuple[int, int, int]]) -> int:
    """Count matrix products, each given by its rows, inner size and columns."""
    return sum(2 * rows * inner * columns for rows, inner, columns in products)


def filter_flops(width: int, grid_in: tuple[int, int], grid_out: tuple[int, int]) -> int:
    """Count a frequency filter, or bilinear resampling, on tokens of `width` values: a matrix product for rows, one for
    columns.
    """
    (rows_in, columns_in), (rows, columns) = grid_in, grid_out
    return 2 * width * (rows * rows_in * columns_in + rows * columns * columns_in)


def decoder_flops(decoder: DecoderFacts, lengths: Sequence[int], visual: Sequence[int] = ()) -> int:
    """Count the decoder's layers in a prefill.

    Parameters
    ----------
    decoder
        Its sizes.
    lengths
        Tokens that each layer sees, visual and text.
    visual
        The visual ones among them, where those have experts of their own; none are all text.

    Returns
    -------
    int
        Operations: grouped projections, scores and values over the full n × n, feed-forward, of a mixture of experts
        the ones that a token passes and the choice of them. Without the head.
    """
    query, key_value = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    projections = 2 * decoder.width * query + 2 * decoder.width * key_value
    expert = (3 if decoder.gated_ffn else 2) * decoder.width * decoder.ffn
    of_text = expert * decoder.active_experts
    if decoder.experts > 1:
        of_text += decoder.width * (decoder.merged_from or decoder.experts)
    own = decoder.visual_experts
    of_visual = expert * min(decoder.active_experts, own) + decoder.width * own if own else of_text
    return 2 * sum(
        n * (projections + of_text) + 2 * n * n * query + v * (of_visual - of_text)
        for n, v in zip(lengths, visual or [0] * len(lengths), strict=True)
    )


def text_attention_flops(decoder: DecoderFacts, asking: int, tokens: int) -> int:
    """Count what ranking visual tokens by text costs: queries of `asking` tokens, keys and scores of `tokens`."""
    query, key = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    return 2 * (asking * decoder.width * query + tokens * decoder.width * key + asking * tokens * query)


def head_flops(decoder: DecoderFacts) -> int:
    """Count the output head for one position, the only one that a prefill needs."""
    return 2 * decoder.width * decoder.vocab


def fastv_flops(decoder: DecoderFacts, lengths: Sequence[int]) -> int:
    """Σ over layers of 4nd² + 2n²d + 2ndm, n tokens in a layer, width d, feed-forward size m.

    Based on FastV (arXiv 2403.06764), section 3.3.
    """
    d, m = decoder.width, decoder.ffn
    return sum(4 * n * d * d + 2 * n * n * d + 2 * n * d * m for n in lengths)


def pyramiddrop_flops(decoder: DecoderFacts, lengths: Sequence[int]) -> int:
    """Σ over layers of 4nd² + 2n²d + 3ndm: as FastV, with the third matrix of a gated feed-forward.

    Based on PyramidDrop (arXiv 2410.17247).
    """
    d, m = decoder.width, decoder.ffn
    return sum(4 * n * d * d + 2 * n * n * d + 3 * n * d * m for n in lengths)


def kv_bytes(decoder: DecoderFacts, lengths: Sequence[int], bytes_per_value: int) -> int:
    """Bytes of the keys and values that a prefill leaves, over layers that see `lengths` tokens."""
    return sum(2 * decoder.kv_heads * decoder.head_dim * n * bytes_per_value for n in lengths)
