"""What selectors and stages may ask to be given beyond the tokens themselves; one list for both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

ReadingKind = Literal[
    "cls_attention",
    "cls_logits",
    "received_attention",
    "patch_attention",
    "one_head_cls_attention",
    "keys",
    "full_keys",
    "hidden_states",
    "cls_state",
]


class Reading(NamedTuple):
    """A value that the encoder computes in one of its layers (0-based); by kind, for N tokens:

    - ``cls_attention`` (B, N): attention of the CLS token to each patch, mean over heads.
    - ``cls_logits`` (B, N): the same before the softmax.
    - ``received_attention`` (B, N): attention to each patch, mean over heads and over all queries, CLS token included.
    - ``patch_attention`` (B, N, N): attention of each patch to each, mean over heads; softmax over all keys.
    - ``one_head_cls_attention`` (B, N): attention of the CLS token with queries and keys taken as one head of full
      width, scores divided by sqrt(D).
    - ``keys`` (B, N, Dh): keys of the patches, mean over heads.
    - ``full_keys`` (B, N, D): keys of the patches, all heads side by side.
    - ``hidden_states`` (B, N, D): the tokens that enter the layer; several layers can be concatenated.
    - ``cls_state`` (B, D): the CLS token that enters the layer. It belongs to the image and not to a token.

    The layer right after the last one that runs may be read too: its input is what that last one gives out.
    """

    kind: ReadingKind
    layer: int


@dataclass(frozen=True)
class Needs:
    """What a selector or a stage looks at beyond the features and the grid. Nothing else is computed.

    Attributes
    ----------
    readings : frozenset of Reading
        Values of encoder layers.
    projected : bool
        The tokens in the decoder's space.
    text : bool
        The question in the decoder's space, token by token and as one vector.
    """

    readings: frozenset[Reading] = frozenset()
    projected: bool = False
    text: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.readings | other.readings, self.projected or other.projected, self.text or other.text)


NOTHING = Needs()
