"""``vtc.load``: a bundle, or a compressed model, ready to be asked."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.api.arguments import as_placement
from vtc.artifact import artifact_kind
from vtc.errors import InputError
from vtc.facts.placement import ON_CPU, Device, Dtype
from vtc.runtime.options import RuntimeOptions

if TYPE_CHECKING:
    from vtc.compressed.elastic import ElasticModel
    from vtc.runtime.vlm import VLM


def load(
    path: str | Path,
    options: RuntimeOptions = RuntimeOptions(),
    *,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    **changes: Any,
) -> VLM | ElasticModel:
    """Load a bundle, for which neither torch nor transformers is needed, or a compressed model, which PyTorch runs.

    Both are asked alike: `ask`, `generate`, `score`, `kept`, and `keep=` where there are several budgets of visual
    tokens. `stream`, `start` and timings are the bundle's alone.

    Parameters
    ----------
    path : str or Path
        What `vtc export` or `vtc compress` has written.
    options : RuntimeOptions
        How a bundle is run.
    device, dtype
        Where a compressed model runs, as for :func:`compress`.
    changes
        Fields of `options` by name, such as ``provider="cuda"``.

    Returns
    -------
    VLM or ElasticModel
        The latter of a compressed model.

    Raises
    ------
    BundleError
        If it is incomplete, changed, or made by a newer vtc.
    InputError
        If what is to run it is not to be had here, or options of one are given with the other.

    Examples
    --------
    >>> import vtc
    >>> from PIL import Image
    >>> model = vtc.load("out/bundle", provider="cpu")
    >>> isinstance(model.ask(Image.new("RGB", (224, 224)), "what digit is shown?"), str)
    True
    """
    options = replace(options, **changes)
    placement = as_placement(device, dtype)
    kind = None
    with suppress(OSError):  # which the bundle's loader tells of
        kind = artifact_kind(Path(path))
    if kind != "compressed":
        from vtc.runtime.vlm import VLM

        if placement != ON_CPU:
            raise InputError(
                f"{path}: device and dtype are a compressed model's; a bundle takes provider and precision"
            )
        return VLM.load(path, options)
    from vtc.compressed.elastic import ElasticModel

    if options != RuntimeOptions():
        raise InputError(f"{path}: PyTorch runs a compressed model; give device and dtype, no options of a bundle")
    return ElasticModel.load(path, placement)
