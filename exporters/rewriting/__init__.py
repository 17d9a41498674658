"""Exported graphs rewritten for one runtime: fewer nodes, the same results."""

from exporters.rewriting.report import Form, Rewritten
from exporters.rewriting.rewrite import rewrite

__all__ = ["Form", "Rewritten", "rewrite"]
