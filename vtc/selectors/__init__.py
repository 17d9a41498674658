"""How visual tokens are chosen before the decoder, one method a file: recipe entry to module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vtc.facts.model import ModelFacts
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
from vtc.tables import line

ENCODER_MODULES: dict[type[entries.EncoderSelectorEntry], type[Selector[Any]]] = {
    entries.RandomEntry: Random,
    entries.UniformEntry: Uniform,
    entries.PoolingEntry: Pooling,
    entries.ClsAttentionEntry: CLSAttention,
    entries.LearnedEntry: Learned,
    entries.HiPruneEntry: HiPrune,
    entries.FoPruEntry: FoPru,
    entries.VisPrunerEntry: VisPruner,
    entries.VScanEntry: VScan,
    entries.DivPruneEntry: DivPrune,
    entries.CDPrunerEntry: CDPruner,
    entries.ToDREEntry: ToDRE,
    entries.MMTokEntry: MMTok,
    entries.VisionZipEntry: VisionZip,
    entries.PruMergeEntry: PruMerge,
    entries.ToMeEntry: ToMe,
    entries.TurboEntry: Turbo,
    entries.ClusteringEntry: Clustering,
    entries.HiREDEntry: HiRED,
    entries.GlobalCom2Entry: GlobalCom2,
    entries.EVSEntry: EVS,
}


def build_selector(entry: entries.EncoderSelectorEntry, facts: ModelFacts, running: Sequence[int]) -> Selector[Any]:
    """Make the selector that a recipe entry describes; trained parameters are empty.

    Parameters
    ----------
    entry : EncoderSelectorEntry
    facts : ModelFacts
        Sizes of the model.
    running : sequence of int
        Encoder layers that run, ascending.
    """
    return line(ENCODER_MODULES, entry, "ENCODER_MODULES of vtc.selectors").build(entry, facts, running)
