"""Which operators the forms use, where they run, and what they ask for."""

from __future__ import annotations

from typing import Literal

Provider = Literal["cpu", "cuda", "rtx"]
