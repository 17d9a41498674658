"""Exported graphs rewritten for one runtime: fewer nodes, the same results."""

from exporters.rewriting.forms import rewrite
from exporters.rewriting.report import Form, Rewritten

__all__ = ["Form", "Rewritten", "rewrite"]
