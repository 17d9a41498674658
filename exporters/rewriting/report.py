"""What a rewriting came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Form = Literal["ort", "opset23"]


@dataclass(frozen=True)
class Rewritten:
    """A graph that was rewritten.

    Attributes
    ----------
    form : {"ort", "opset23"}
    graph : str
        Its name in the bundle, without the precision's suffix.
    fused : dict of str to int
        How often each operator was put in; none that was not.
    nodes_before, nodes_after : int
    in_place : bool
        Whether the cache may be one buffer that past and present share.
    left : list of str
        What stayed as it was, and why, a sentence each.
    """

    form: Form
    graph: str
    fused: dict[str, int]
    nodes_before: int
    nodes_after: int
    in_place: bool = False
    left: list[str] = field(default_factory=list)
