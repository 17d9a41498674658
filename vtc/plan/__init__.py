"""What a recipe comes to for one model: plain integers, no tensors, no torch."""

from __future__ import annotations

from vtc.plan.resolve import check, plan, plans
from vtc.plan.token_plan import SegmentPlan, StagePlan, TokenPlan

__all__ = ["SegmentPlan", "StagePlan", "TokenPlan", "check", "plan", "plans"]
