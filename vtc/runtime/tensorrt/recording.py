"""Work on the GPU that is the same every time, recorded once and replayed: a CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Generic

import numpy as np

from vtc.errors import VtcError
from vtc.runtime.interface import Array, Result, Tensor
from vtc.runtime.tensorrt.cuda import Recorded
from vtc.runtime.tensorrt.device import ALIGNMENT, NAMES, DeviceTensor, MemoryBlock
from vtc.runtime.tensorrt.engine import Lane, Machine

Program = Callable[[Mapping[str, Array | Tensor]], Result]


class Recording(Generic[Result]):
    """Engines run one after the other, with other values of some arrays each time.

    They are run once, in contexts of their own, so that TensorRT settles what it does for these shapes; then the same
    is recorded, with the same memory. A TensorRT that captures graphs itself, or engines that cannot be captured (which
    a warning tells of), are instead run again each time, at the same addresses.

    Parameters
    ----------
    machine : Machine
    arrays : mapping of str to array
    program : callable
        Is given copies of `arrays` on the device.

    Attributes
    ----------
    result : Result
        What the program returned; its tensors are filled anew each time.
    """

    def __init__(self, machine: Machine, arrays: Mapping[str, Array], program: Program[Result]) -> None:
        self._machine = machine
        self._lane = Lane(repeats=True)
        self._blocks: list[MemoryBlock] = []
        self._inputs = Staged(machine, arrays)
        self._graph: Recorded | None = None
        self._inputs.upload(arrays)
        with machine.using(self._lane), machine.pool.noting(self._blocks):
            self.result = program(self._inputs.tensors)
        if not machine.captures_itself:
            try:
                self._graph = machine.cuda.record(lambda: self._run(program))
            except VtcError as error:
                warnings.warn(f"decoding goes on without CUDA graphs, which is slower: {error}", stacklevel=2)

    def again(self, arrays: Mapping[str, Array], program: Program[Result]) -> Result:
        """Do it with other values.

        Parameters
        ----------
        arrays : mapping of str to array
            Of the same names, shapes and types.
        program : callable
            Does the same as the first.
        """
        self._inputs.upload(arrays)
        if self._graph is None:
            return self._run(program)
        self._graph.launch()
        return self.result

    def _run(self, program: Program[Result]) -> Result:
        with self._machine.using(self._lane), self._machine.pool.repeating(self._blocks):
            return program(self._inputs.tensors)


class Staged:
    """Arrays that go to the GPU in one copy.

    Parameters
    ----------
    machine : Machine
    arrays : mapping of str to array

    Attributes
    ----------
    tensors : dict of str to DeviceTensor
    """

    def __init__(self, machine: Machine, arrays: Mapping[str, Array]) -> None:
        pool, self._cuda = machine.pool, machine.cuda
        begins, size = {}, 0
        for name, values in arrays.items():
            begins[name] = size
            size += -(-values.nbytes // ALIGNMENT) * ALIGNMENT
        self._block = pool.reserve(size)
        self._host = np.zeros(size, dtype=np.uint8)
        self.tensors: dict[str, DeviceTensor] = {}
        self._views: dict[str, Array] = {}
        for name, values in arrays.items():
            begin = begins[name]
            view = self._host[begin : begin + values.nbytes].view(values.dtype).reshape(values.shape)
            self._views[name] = view
            type_name = NAMES[values.dtype.type]
            self.tensors[name] = DeviceTensor(pool, values.shape, type_name, self._block, begin)

    def upload(self, arrays: Mapping[str, Array]) -> None:
        """Queue a copy of arrays of the same names, shapes and types."""
        for name, view in self._views.items():
            view[...] = arrays[name]
        self._cuda.upload(self._block.address, self._host)
