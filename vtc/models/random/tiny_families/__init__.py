"""Tiny random checkpoints of every family of vision-language models, in the layout of real ones."""

from __future__ import annotations

from vtc.models.random.tiny_families.rows import TINY_FAMILIES
from vtc.models.random.tiny_families.write import write_family, write_tiny

__all__ = ["TINY_FAMILIES", "write_family", "write_tiny"]
