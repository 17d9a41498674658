"""Where things are kept that can be made again."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_dir() -> Path:
    """Vtc's folder in the user's cache directory; it need not exist."""
    home = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None)
    return (Path(home) if home else Path.home() / ".cache") / "vtc"
