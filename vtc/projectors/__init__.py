"""What may stand in the place of a model's projector, one method a file: recipe entry to module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from vtc.facts.layout import Grid
from vtc.models.base import VLMAdapter
from vtc.projectors.base import Projector, TrainedProjector
from vtc.projectors.c_abstractor import CAbstractor
from vtc.projectors.deco import Deco
from vtc.projectors.ldpv2 import LdpV2
from vtc.projectors.llava_sp import LlavaSp
from vtc.projectors.m3 import M3
from vtc.projectors.mqt import Mqt
from vtc.projectors.pixel_shuffle import PixelShuffle
from vtc.projectors.qmop import Qmop
from vtc.projectors.quecc import QueCC
from vtc.projectors.start import begin_as, begin_as_means
from vtc.projectors.tokenflex import TokenFlex
from vtc.projectors.tokenpacker import TokenPacker
from vtc.recipe import projectors as entries
from vtc.recipe.projectors.base import heads_of, side_of
from vtc.tables import line


@dataclass(frozen=True)
class Site:
    """Where a projector stands.

    Attributes
    ----------
    adapter : VLMAdapter
    grid : (int, int)
        Rows and columns of the tokens that come in.
    keep : int
        Tokens that go out.
    """

    adapter: VLMAdapter
    grid: Grid
    keep: int

    @property
    def width(self) -> int:
        """Values of a token that comes in."""
        return self.adapter.facts.token_width

    @property
    def out(self) -> int:
        """Values of a token that goes out."""
        return self.adapter.facts.decoder.width

    @property
    def side(self) -> int:
        """Of the squares that tokens stand for."""
        return side_of(self.keep, self.grid)

    def layers(self, entry: entries.ProjectorEntry) -> tuple[int, ...]:
        """Encoder layers that a projector reads."""
        return tuple(reading.layer for reading in entry.readings(self.adapter.facts))


def _deco(entry: entries.DecoEntry, at: Site) -> Deco:
    made = Deco(at.grid, entry.grid_of(at.keep, at.grid), at.width, at.out)
    begin_as(made.mlp_projector, at.adapter.projector)
    return made


def _pixel_shuffle(entry: entries.PixelShuffleEntry, at: Site) -> PixelShuffle:
    made = PixelShuffle(at.grid, at.side, at.width, at.out)
    begin_as_means(made.mlp, at.adapter.projector, prod(at.grid) // at.keep)
    return made


def _ldpv2(entry: entries.LdpV2Entry, at: Site) -> LdpV2:
    made = LdpV2(at.grid, entry.grid_of(at.keep, at.grid), at.width, at.out)
    begin_as(made.mlp.mlp, at.adapter.projector)
    return made


def _c_abstractor(entry: entries.CAbstractorEntry, at: Site) -> CAbstractor:
    keep_grid = entry.grid_of(at.keep, at.grid)
    return CAbstractor(at.grid, keep_grid, at.width, entry.hidden, at.out, depth=entry.depth)


def _tokenpacker(entry: entries.TokenPackerEntry, at: Site) -> TokenPacker:
    heads = heads_of(at.width, 128)  # the authors' size of a head
    made = TokenPacker(at.grid, at.side, at.width, heads, at.out, at.layers(entry))
    begin_as(made.mlp, at.adapter.projector)
    return made


def _tokenflex(entry: entries.TokenFlexEntry, at: Site) -> TokenFlex:
    return TokenFlex(at.grid, entry.grid_of(at.keep, at.grid)[0], at.width, at.out)


def _mqt(entry: entries.MqtEntry, at: Site) -> Mqt:
    return Mqt(at.grid, at.keep, at.width, heads_of(at.width, 64), at.out)


def _m3(entry: entries.M3Entry, at: Site) -> M3:
    return M3(at.grid, at.side)


def _qmop(entry: entries.QmopEntry, at: Site) -> Qmop:
    (cls,) = at.layers(entry) or (None,)
    keep_grid, heads, image = entry.grid_of(at.keep, at.grid), heads_of(at.width, 64), entry.image(at.adapter.facts)
    sizes = at.width, heads, at.out, image, entry.question * at.out, entry.router
    linear = entry.projection == "linear"
    made = Qmop(at.grid, keep_grid, *sizes, entry.mixture, cls, entry.branches, linear)
    for layers in made.projections.values():
        begin_as(layers, at.adapter.projector)
    return made


def _quecc(entry: entries.QueCCEntry, at: Site) -> QueCC:
    return QueCC(at.grid, at.side, at.width, heads_of(at.width, 128), at.out, at.layers(entry))


def _llava_sp(entry: entries.LlavaSpEntry, at: Site) -> LlavaSp:
    return LlavaSp(at.grid, at.width, entry.inner, at.out)


BUILDERS: dict[type[entries.ProjectorEntry], Callable[[Any, Site], Projector]] = {
    entries.DecoEntry: _deco,
    entries.PixelShuffleEntry: _pixel_shuffle,
    entries.LdpV2Entry: _ldpv2,
    entries.CAbstractorEntry: _c_abstractor,
    entries.TokenPackerEntry: _tokenpacker,
    entries.TokenFlexEntry: _tokenflex,
    entries.MqtEntry: _mqt,
    entries.M3Entry: _m3,
    entries.QmopEntry: _qmop,
    entries.QueCCEntry: _quecc,
    entries.LlavaSpEntry: _llava_sp,
}


def build_projector(
    entry: entries.ProjectorEntry, adapter: VLMAdapter, grid: Grid, keep: int, running: Sequence[int]
) -> Projector:
    """Make the projector that a recipe entry describes; parameters are what training begins with.

    Parameters
    ----------
    entry : ProjectorEntry
    adapter : VLMAdapter
        The model, with whose own projector some begin.
    grid : (int, int)
        Rows and columns of the tokens that come in.
    keep : int
        Tokens that go out.
    running : sequence of int
        Encoder layers that run.
    """
    made = line(BUILDERS, entry, "BUILDERS of vtc.projectors")(entry, Site(adapter, grid, keep))
    if isinstance(made, TrainedProjector):
        made.method, made.encoder_layers = entry.name, tuple(running)
    return made
