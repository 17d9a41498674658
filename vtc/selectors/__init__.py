"""How visual tokens are chosen, one method per file; :func:`build_selector` is the table of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.facts.model import ModelFacts
from vtc.facts.views import views_of
from vtc.recipe import selectors as entries
from vtc.selectors.base import Selector
from vtc.selectors.cdpruner import CDPruner
from vtc.selectors.cls_attention import CLSAttention
from vtc.selectors.clustering import Clustering
from vtc.selectors.divprune import DivPrune
from vtc.selectors.evs import EVS
from vtc.selectors.fopru import FoPru
from vtc.selectors.globalcom2 import GlobalCom2
from vtc.selectors.hiprune import HiPrune
from vtc.selectors.hired import HiRED
from vtc.selectors.learned import Learned
from vtc.selectors.mmtok import MMTok
from vtc.selectors.pooling import Pooling
from vtc.selectors.prumerge import PruMerge
from vtc.selectors.random import Random
from vtc.selectors.todre import ToDRE
from vtc.selectors.tome import ToMe
from vtc.selectors.turbo import Turbo
from vtc.selectors.uniform import Uniform
from vtc.selectors.visionzip import VisionZip
from vtc.selectors.vispruner import VisPruner
from vtc.selectors.vscan import VScan


@dataclass(frozen=True)
class BuildContext:
    """What building a selector may ask for.

    Attributes
    ----------
    facts : ModelFacts
        Sizes of the model.
    layers : tuple of int
        Encoder layers that the plan reads for this selector.
    model_digest : str
        SHA-256 of the checkpoint, which a trained part must have been trained on.
    checkpoint : Path or None
        File of the trained part; None when its tensors come later, with a compressed model's state.
    encoder_layers : tuple of int
        Encoder layers that run at all, which a trained part must have been trained on.
    """

    facts: ModelFacts
    layers: tuple[int, ...] = ()
    model_digest: str = ""
    checkpoint: Path | None = None
    encoder_layers: tuple[int, ...] = ()


def _learned(spec: entries.LearnedEntry, context: BuildContext) -> Selector:
    if context.checkpoint is None:
        return Learned(context.facts.token_width, spec.diversity)
    return Learned.from_checkpoint(
        context.checkpoint,
        width=context.facts.token_width,
        model_digest=context.model_digest,
        layers=context.encoder_layers,
        diversity=spec.diversity,
    )


_BUILDERS: dict[type, Callable[[Any, BuildContext], Selector]] = {
    entries.RandomEntry: lambda spec, _: Random(spec.seed),
    entries.UniformEntry: lambda _, __: Uniform(),
    entries.PoolingEntry: lambda _, __: Pooling(),
    entries.ClsAttentionEntry: lambda _, context: CLSAttention(context.layers),
    entries.LearnedEntry: _learned,
    entries.HiPruneEntry: lambda spec, context: HiPrune(
        context.layers[0], context.layers[1], spec.alpha, spec.as_published
    ),
    entries.FoPruEntry: lambda spec, context: FoPru(context.layers[0], spec.strategy),
    entries.VisPrunerEntry: lambda spec, context: VisPruner(context.layers[0], spec.important),
    entries.VScanEntry: lambda spec, context: VScan(context.layers[0], context.layers[1], spec.windows),
    entries.DivPruneEntry: lambda _, __: DivPrune(),
    entries.CDPrunerEntry: lambda spec, _: CDPruner(spec.relevance, spec.as_published),
    entries.ToDREEntry: lambda _, context: ToDRE(context.layers[0] if context.layers else None),
    entries.MMTokEntry: lambda spec, _: MMTok(spec.text_temperature, spec.vision_temperature, spec.alpha),
    entries.VisionZipEntry: lambda spec, context: VisionZip(
        context.layers[0], spec.contextual, context.facts.encoder.has_cls, spec.as_published
    ),
    entries.PruMergeEntry: lambda spec, context: PruMerge(
        context.layers[0], spec.spatial, spec.as_published, spec.important
    ),
    entries.ToMeEntry: lambda _, context: ToMe(context.layers[0]),
    entries.TurboEntry: lambda spec, context: Turbo(context.layers[0], spec.alpha),
    entries.ClusteringEntry: lambda spec, _: Clustering(spec.neighbours),
    entries.HiREDEntry: lambda spec, context: HiRED(
        context.layers[0],
        context.layers[-1],
        views_of(context.facts.layout),
        spec.share,
        spec.as_published,
    ),
    entries.EVSEntry: lambda _, context: EVS(len(context.facts.layout.grids)),
    entries.GlobalCom2Entry: lambda spec, context: GlobalCom2(
        context.layers[0], views_of(context.facts.layout), spec.temperature, spec.as_published
    ),
}


def build_selector(spec: Any, context: BuildContext) -> Selector:
    """The selector that a recipe entry describes."""
    return _BUILDERS[type(spec)](spec, context)
