"""CDPruner in a recipe: its options, what it reads and what it multiplies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from vtc.recipe.selectors.base import Choice, EncoderSelectorEntry, Product


class CDPrunerEntry(EncoderSelectorEntry):
    """Tokens that are relevant to the question and unlike one another: greedy MAP of a determinantal point process.

    Based on CDPruner (arXiv 2506.10967); checkpoints carry no CLIP text encoder, so relevance is that of the decoder's
    own space.
    """

    summary = "relevance to the question times diversity (DPP)"
    paper = "CDPruner (arXiv 2506.10967)"
    reads = "projected tokens and the question"
    projects = True
    after_projector = True
    text_aware = True
    name: Literal["cdpruner"] = "cdpruner"
    relevance: Literal["cosine", "negative_cosine"] = "cosine"
    """Whether a token is relevant where its ``cosine`` to the question is high, or where it is low
    (``negative_cosine``), as the authors find for CLIP's embeddings."""
    as_published: bool = False
    """Whether it computes as the authors' code does: relevance is scaled over the whole batch and not image by
    image."""

    def products(self, choice: Choice) -> Iterable[Product]:
        return (
            (choice.tokens, choice.facts.decoder.width, choice.tokens),
            (1, choice.text, choice.facts.decoder.width),
            (choice.tokens, choice.facts.decoder.width, 1),
            (1, choice.keep * (choice.keep - 1) // 2, choice.tokens),
        )
