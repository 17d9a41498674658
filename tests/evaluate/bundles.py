"""Toy bundles that carry a plan, as exported ones do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.runtime.toy import Toy, write_toy_bundle
from vtc.artifact import MANIFEST, staging_dir
from vtc.bundle.manifest import write_bundle
from vtc.plan.token_plan import FLOPS_PARTS, SegmentPlan, StagePlan, TokenPlan


def plan(keep: int, tokens: int = 16, stages: int = 1) -> TokenPlan:
    """A plan of a decoder of one layer whose encoder gives `tokens` visual tokens, `keep` of which enter it."""
    stage = StagePlan("prune", "toy", (), (), tokens, keep)
    return TokenPlan(
        stages=(stage,) * stages,
        visual_tokens_in=tokens,
        keep=keep,
        has_places=True,
        spans=1,
        positions="renumber",
        position_span=keep,
        position_grids=(),
        encoder_layers=(0,),
        decoder_layers=(0,),
        decoder_visual_tokens=(keep,),
        segments=(SegmentPlan((0,), "all", keep),),
        layer_average=float(keep),
        text_tokens=32,
        flops={"exact": 1000 * keep, "fastv": 0, "pyramiddrop": 0},
        flops_parts=dict.fromkeys(FLOPS_PARTS, 0),
        kv_bytes=0,
        provisional=(),
    )


def bundle_with_plan(toy: Toy, out: Path, **parts: Any) -> Path:
    """Write a toy as a bundle with a plan."""
    raw = write_toy_bundle(toy, out.with_name(f"{out.name}-raw"))
    work = staging_dir(out)
    shutil.copytree(raw, work)
    manifest = json.loads((work / MANIFEST).read_text())
    (work / MANIFEST).unlink()
    stages = 0 if toy.keep == toy.tokens else 1
    own = {
        "plan": plan(toy.keep, toy.tokens, stages).to_dict(),
        "baseline_plan": plan(toy.tokens, toy.tokens, 0).to_dict(),
        "recipe": {"version": 1, "name": "toy", "stages": [{"kind": "prune"}] * stages},
    }
    return write_bundle(work, out, manifest | own | parts)
