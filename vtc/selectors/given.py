"""What a selector said it needs, as it is given."""

from __future__ import annotations

from torch import Tensor

from vtc.visual_tokens import TextEmbeddings, VisualTokens


def projected(tokens: VisualTokens) -> Tensor:
    """The tokens in the decoder's space, for a selector whose needs name them."""
    if tokens.projected is None:
        raise AssertionError("a selector that needs the tokens in the decoder's space is given them")
    return tokens.projected


def text(tokens: VisualTokens) -> TextEmbeddings:
    """The question, for a selector whose needs name it."""
    if tokens.text is None:
        raise AssertionError("a selector that needs the question is given it")
    return tokens.text
