"""What a user may write about a projector: one file a method, and the table of them.

A new projector is a file here, one in `vtc.projectors`, and a line in the table of each.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field

from vtc.recipe.projectors.base import ProjectorEntry
from vtc.recipe.projectors.c_abstractor import CAbstractorEntry
from vtc.recipe.projectors.deco import DecoEntry
from vtc.recipe.projectors.ldpv2 import LdpV2Entry
from vtc.recipe.projectors.llava_sp import LlavaSpEntry
from vtc.recipe.projectors.m3 import M3Entry
from vtc.recipe.projectors.mqt import MqtEntry
from vtc.recipe.projectors.pixel_shuffle import PixelShuffleEntry
from vtc.recipe.projectors.qmop import QmopEntry
from vtc.recipe.projectors.quecc import QueCCEntry
from vtc.recipe.projectors.tokenflex import TokenFlexEntry
from vtc.recipe.projectors.tokenpacker import TokenPackerEntry

__all__ = [
    "PROJECTORS",
    "AnyProjector",
    "CAbstractorEntry",
    "DecoEntry",
    "LdpV2Entry",
    "LlavaSpEntry",
    "M3Entry",
    "MqtEntry",
    "PixelShuffleEntry",
    "Projector",
    "ProjectorEntry",
    "QmopEntry",
    "QueCCEntry",
    "TokenFlexEntry",
    "TokenPackerEntry",
]

AnyProjector = (
    DecoEntry
    | PixelShuffleEntry
    | LdpV2Entry
    | CAbstractorEntry
    | TokenPackerEntry
    | TokenFlexEntry
    | MqtEntry
    | M3Entry
    | QmopEntry
    | QueCCEntry
    | LlavaSpEntry
)
PROJECTORS: dict[str, type[ProjectorEntry]] = {
    model.model_fields["name"].default: model for model in get_args(AnyProjector)
}


def _expand_shorthand(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Projector = Annotated[AnyProjector, Field(discriminator="name"), BeforeValidator(_expand_shorthand)]
