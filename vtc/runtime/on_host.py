"""What backends share whose graphs take inputs of any size, and that do on the host what stands between graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtc.bundle.engines import Limits
from vtc.runtime.interface import Array, Result, Tensor


class OnHost:
    """A part of a :class:`~vtc.runtime.interface.Backend`, which says what its methods do."""

    def __init__(self) -> None:
        self.lock: AbstractContextManager[Any] = nullcontext()

    def admit(self, needed: Limits) -> None:
        """Graphs take any number of prompts, images and tokens."""

    def place(self, embeds: Tensor, features: Tensor, where: NDArray[np.bool_]) -> Array:
        """On the host."""
        values, visual = embeds.numpy(), features.numpy()
        values[where] = visual.reshape(-1, visual.shape[-1])
        return values

    def repeat(
        self,
        fixed: Sequence[Tensor],
        arrays: Mapping[str, Array],
        program: Callable[[Mapping[str, Array | Tensor]], Result],
    ) -> Result:
        return program(arrays)
