"""What a recipe comes to for one model: plain integers, no tensors, no torch."""

from __future__ import annotations

from vtc.plan.resolve import SegmentPlan, StagePlan, TokenPlan, check, plan

__all__ = ["SegmentPlan", "StagePlan", "TokenPlan", "check", "plan"]
