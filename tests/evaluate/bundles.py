"""Toy bundles that carry a plan, as exported ones do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.runtime.toy import Toy, write_toy_bundle
from vtc.artifact import MANIFEST, staging_dir
from vtc.bundle.manifest import write_bundle


def plan(keep: int, tokens: int = 16, stages: int = 1) -> dict[str, Any]:
    """The parts of a token plan that evaluation reads."""
    return {
        "stages": [{"kind": "prune"}] * stages,
        "keep": keep,
        "visual_tokens_in": tokens,
        "layer_average": float(keep),
        "text_tokens": 32,
        "flops": {"exact": 1000 * keep, "fastv": 0, "pyramiddrop": 0},
    }


def bundle_with_plan(toy: Toy, out: Path, **parts: Any) -> Path:
    """Write a toy as a bundle with a plan."""
    raw = write_toy_bundle(toy, out.with_name(f"{out.name}-raw"))
    work = staging_dir(out)
    shutil.copytree(raw, work)
    manifest = json.loads((work / MANIFEST).read_text())
    (work / MANIFEST).unlink()
    stages = 0 if toy.keep == toy.tokens else 1
    own = {
        "plan": plan(toy.keep, toy.tokens, stages),
        "recipe": {"version": 1, "stages": [{"kind": "prune"}] * stages},
    }
    return write_bundle(work, out, manifest | own | parts)
