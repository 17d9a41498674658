"""Which operators the forms use, where they run, and what they ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exporters.rewriting.report import Form

Provider = Literal["cpu", "cuda", "rtx"]
