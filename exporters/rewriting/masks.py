"""Whether a decoder's mask is what ONNX Runtime's attention takes for granted: each token sees those before it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.rewriting.evaluate import evaluate, sample_feeds, sources

REASONS = {
    "block_ids": "tokens of an image or a prompt see each other in both directions",
    "key_position_ids": "it looks through a sliding window of positions, which have gaps after pruning",
}
"""Inputs of a graph, and what a mask that reads them is for."""

SAMPLES = (
    (3, 4, ((0, 0, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1, 1), (0, 0, 0, 0, 0, 1, 1))),
    (0, 5, ((0, 0, 0, 1, 1), (1, 1, 1, 1, 1))),
    (6, 1, ((0, 0, 1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1, 1))),
)
"""Cached and new tokens, and masks of rows padded on the left."""


def not_causal(graph: ir.Graph, mask: ir.Value) -> str:
    """Why a mask (B, 1, S, T) is not that of causal attention over left-padded rows; empty if it is.

    The mask is computed on samples of all kinds: prefill, several tokens and one token after cached ones.
    """
    inputs = sources(mask)
    for name, reason in REASONS.items():
        if name in inputs:
            return reason
    for past, new, rows in SAMPLES:
        (bias,) = evaluate(graph, [mask], sample_feeds(graph, past, new, rows))
        total = past + new
        causal = np.arange(total)[None, :] <= np.arange(past, total)[:, None]
        allowed = causal[None, None] & np.array(rows, dtype=bool)[:, None, None]
        if bias.shape != allowed.shape or not np.array_equal(bias == 0, allowed) or not (bias[~allowed] < -1e4).all():
            return "its mask is not that of causal attention"
    return ""
