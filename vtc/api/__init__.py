"""What the verbs of ``vtc`` do, as functions: a checkpoint and a recipe in, a bundle and proof out.

Nothing of it needs a terminal; the command line calls these functions and adds words. PyTorch is imported where it is
needed, so that a bundle is run, timed and judged without.
"""

from __future__ import annotations

from vtc.api.benchmarking import bench
from vtc.api.compression import CompressResult, compress
from vtc.api.experts import PlacedExperts, expert_skipping, expert_statistics, place_experts
from vtc.api.exporting import ExportResult, export
from vtc.api.inspection import inspect
from vtc.api.loading import load
from vtc.api.optimizing import optimize
from vtc.api.validation import validate

__all__ = [
    "CompressResult",
    "ExportResult",
    "PlacedExperts",
    "bench",
    "compress",
    "expert_skipping",
    "expert_statistics",
    "export",
    "inspect",
    "load",
    "optimize",
    "place_experts",
    "validate",
]
