"""Where a checkpoint's weights are put, and as numbers of which type. Words only: nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Device = Literal["cpu", "cuda", "auto"]
Dtype = Literal["float32", "bfloat16", "float16", "auto"]
DEVICES: tuple[Device, ...] = ("cpu", "cuda", "auto")
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16", "auto")


@dataclass(frozen=True)
class Placement:
    """Where a model runs in PyTorch.

    Attributes
    ----------
    device : {"cpu", "cuda", "auto"}
        All weights in the processor's memory, or in the GPU's. ``auto`` takes the GPU where there is one and puts the
        decoder layers that it has no room for into the processor's memory, and those that this has no room for stay on
        the disk: each is fetched when it runs.
    dtype : {"float32", "bfloat16", "float16", "auto"}
        ``auto`` is the type that most of the checkpoint's weights are stored in.
    """

    device: Device = "cpu"
    dtype: Dtype = "float32"


ON_CPU = Placement()
"""What an export is compared with, and what is measured on where nobody says otherwise."""
