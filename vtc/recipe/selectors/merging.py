"""Matrix products that several merging selectors are made of."""

from __future__ import annotations

from collections.abc import Iterable

from vtc.recipe.selectors.base import Choice, Product


def contextual_products(choice: Choice, share: float) -> Iterable[Product]:
    """Merge what the dominant tokens leave into contextual ones, which get `share` of the budget."""
    encoder, keep = choice.facts.encoder, choice.keep
    contextual = min(round(keep * share), keep - 1)
    left = choice.tokens - keep + contextual
    return (left, encoder.width // encoder.heads, contextual), (contextual, left, choice.facts.token_width)


def matching_products(choice: Choice, extra: int = 1) -> Iterable[Product]:
    """Merge pairs step by step, at most a quarter of the tokens in each; `extra` numbers a token go along."""
    head = choice.facts.encoder.width // choice.facts.encoder.heads
    tokens = choice.tokens
    while tokens > choice.keep:
        step = min(tokens - choice.keep, max(1, tokens // 4))
        yield tokens - tokens // 2, head, tokens // 2
        yield tokens // 2, step, choice.facts.token_width + head + extra
        tokens -= step
