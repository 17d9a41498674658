"""Visual token compression: vision-language models on fewer visual tokens, exported as bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from pathlib import Path

    from vtc.runtime.vlm import VLM

    __version__: str


def load(path: str | Path, **options: Any) -> VLM:
    """Load a bundle.

    Parameters
    ----------
    path : str or Path
    options
        As for :meth:`vtc.runtime.vlm.VLM.load`.
    """
    # Late, so that importing vtc loads no runtime.
    from vtc.runtime.vlm import VLM

    return VLM.load(path, **options)


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("vtc")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
