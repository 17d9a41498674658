"""``vtc.load``: a bundle, ready to be asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.runtime.options import RuntimeOptions

if TYPE_CHECKING:
    from vtc.runtime.vlm import VLM


def load(path: str | Path, options: RuntimeOptions = RuntimeOptions(), **changes: Any) -> VLM:
    """Load a bundle; neither torch nor transformers is needed.

    Parameters
    ----------
    path : str or Path
    options : RuntimeOptions
        How it is run.
    changes
        Fields of `options` by name, such as ``provider="cuda"``.

    Returns
    -------
    VLM

    Raises
    ------
    BundleError
        If the bundle is incomplete, changed, or made by a newer vtc.
    InputError
        If what is to run it is not to be had here.

    Examples
    --------
    >>> import vtc
    >>> from PIL import Image
    >>> model = vtc.load("out/bundle", provider="cpu")
    >>> isinstance(model.ask(Image.new("RGB", (224, 224)), "what digit is shown?"), str)
    True
    """
    from vtc.runtime.vlm import VLM

    return VLM.load(path, replace(options, **changes))
