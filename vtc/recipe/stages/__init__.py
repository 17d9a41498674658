"""What a user may write about a stage: one file a kind, and the table of them.

Here are only the rules that hold for every model ("a fraction lies between 0 and 1"). What depends on a model
("layer 40 of 32") is said by `vtc.plan`. A new kind is a file here and its class in `AnyStage`.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from vtc.recipe.stages.base import LayerRemoval, Place, StageEntry
from vtc.recipe.stages.drop_layers import DropLayersEntry
from vtc.recipe.stages.frequency_filter import FrequencyFilterEntry
from vtc.recipe.stages.merge_experts import MergeExpertsEntry
from vtc.recipe.stages.project import ProjectEntry
from vtc.recipe.stages.prune import PruneEntry
from vtc.recipe.stages.prune_experts import PruneExpertsEntry
from vtc.recipe.stages.prune_in_decoder import PruneInDecoderEntry
from vtc.recipe.stages.visual_exit import VisualExitEntry
from vtc.recipe.stages.visual_experts import VisualExpertsEntry

__all__ = [
    "STAGES",
    "AnyStage",
    "DropLayersEntry",
    "FrequencyFilterEntry",
    "LayerRemoval",
    "MergeExpertsEntry",
    "Place",
    "ProjectEntry",
    "PruneEntry",
    "PruneExpertsEntry",
    "PruneInDecoderEntry",
    "Stage",
    "StageEntry",
    "VisualExitEntry",
    "VisualExpertsEntry",
]

AnyStage = (
    FrequencyFilterEntry  # in the order in which messages name them
    | PruneEntry
    | ProjectEntry
    | PruneInDecoderEntry
    | VisualExitEntry
    | DropLayersEntry
    | PruneExpertsEntry
    | MergeExpertsEntry
    | VisualExpertsEntry
)
STAGES: dict[str, type[StageEntry]] = {model.model_fields["kind"].default: model for model in get_args(AnyStage)}
Stage = Annotated[AnyStage, Field(discriminator="kind")]
