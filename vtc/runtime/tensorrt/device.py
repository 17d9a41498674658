"""Tensors in a GPU's memory, and the memory that they come from: taken once, then used again and again."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np

from vtc.runtime.interface import DTYPES, Array, Tensor
from vtc.runtime.tensorrt.cuda import Cuda, OutOfMemory

ALIGNMENT = 512
"""Bytes; TensorRT asks for 256."""
STEPS = 8
"""Sizes of blocks between a power of two and the next: at most an eighth of a block is wasted."""

NAMES: dict[type[np.generic], str] = {dtype: name for name, dtype in DTYPES.items()}
BYTES = {name: 2 if dtype is np.void else np.dtype(dtype).itemsize for name, dtype in DTYPES.items()}


class MemoryBlock:
    """Memory on the GPU that goes back to its pool when nobody holds it any more.

    Attributes
    ----------
    address, size : int
    """

    def __init__(self, pool: Pool, address: int, size: int) -> None:
        self._pool = pool
        self.address, self.size = address, size

    def __del__(self) -> None:
        self._pool.put_back(self.address, self.size)


class Pool:
    """Memory of one GPU.

    Parameters
    ----------
    cuda : Cuda

    Attributes
    ----------
    relieve : list of callables
        Let go of what can be made again; called when memory runs out.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.relieve: list[Callable[[], None]] = []
        self._free: dict[int, list[int]] = {}
        self._script: Iterator[MemoryBlock] | None = None
        self._record: list[MemoryBlock] | None = None
        self._closed = False

    def __del__(self) -> None:
        self._closed = True
        self._give_up()

    def take(self, size: int) -> MemoryBlock:
        """A block of at least so many bytes, its content unknown."""
        if self._script is not None:
            block = next(self._script)
            if block.size != block_size(size):
                raise AssertionError("repeated work asks for the memory that it asked for before")
            return block
        block = self.reserve(size)
        if self._record is not None:
            self._record.append(block)
        return block

    def reserve(self, size: int) -> MemoryBlock:
        """A block that is no part of what is noted or repeated."""
        size = block_size(size)
        free = self._free.get(size)
        return MemoryBlock(self, free.pop() if free else self._allocate(size), size)

    def put_back(self, address: int, size: int) -> None:
        """A block is no longer needed."""
        if self._closed:
            self.cuda.free(address)
            return
        self._free.setdefault(size, []).append(address)

    @contextmanager
    def noting(self, blocks: list[MemoryBlock]) -> Iterator[None]:
        """Blocks taken meanwhile are noted, and so stay taken as long as the list is held."""
        self._record = blocks
        try:
            yield
        finally:
            self._record = None

    @contextmanager
    def repeating(self, blocks: Sequence[MemoryBlock]) -> Iterator[None]:
        """What is taken meanwhile is what was noted, in that order: for work that asks for the same each time."""
        self._script = iter(blocks)
        try:
            yield
        finally:
            self._script = None

    def _allocate(self, size: int) -> int:
        try:
            return self.cuda.allocate(size)
        except OutOfMemory:
            for relieve in self.relieve:
                relieve()
            gc.collect()  # models that nobody uses any more may not have been taken apart yet
            self._give_up()
        try:
            return self.cuda.allocate(size)
        except OutOfMemory:
            raise OutOfMemory(
                f"the GPU has no {math.ceil(size / 2**20)} MiB left; ask for shorter prompts and answers or smaller "
                "batches, or run vtc build with smaller limits"
            ) from None

    def _give_up(self) -> None:
        """Return unused blocks to the GPU."""
        unused, self._free = self._free, {}  # other threads may put back more meanwhile
        for addresses in unused.values():
            for address in addresses:
                self.cuda.free(address)


def block_size(size: int) -> int:
    """Bytes of the block that so many are taken from."""
    step = max(ALIGNMENT, 1 << max((size - 1).bit_length() - STEPS.bit_length(), 0))
    return max(1, math.ceil(size / step)) * step


class DeviceTensor:
    """A tensor on the GPU; what an `OrtValue` can be asked, it can be asked, too.

    Parameters
    ----------
    pool : Pool
    shape : tuple of int
    type_name : str
        One of :data:`~vtc.runtime.interface.DTYPES`.
    block : MemoryBlock or None
        Memory that it is in; None takes some.
    offset : int
        Where in the block it begins.
    """

    def __init__(
        self, pool: Pool, shape: Sequence[int], type_name: str, block: MemoryBlock | None = None, offset: int = 0
    ) -> None:
        self.pool = pool
        self._shape = tuple(shape)
        self._type = type_name
        self._bytes = math.prod(self._shape) * BYTES[type_name]
        self._block = block or pool.take(self._bytes)
        self.address = self._block.address + offset

    @classmethod
    def of(cls, pool: Pool, values: Array, dtype: type[np.generic]) -> DeviceTensor:
        """A copy of an array."""
        values = np.ascontiguousarray(values, dtype=dtype)
        tensor = cls(pool, values.shape, NAMES[dtype])
        if values.nbytes:
            pool.cuda.upload(tensor.address, values)
        return tensor

    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self._shape

    def data_type(self) -> str:
        """One of :data:`~vtc.runtime.interface.DTYPES`."""
        return self._type

    def tensor_size_in_bytes(self) -> int:
        """Bytes of its values."""
        return self._bytes

    def numpy(self) -> Array:
        """A copy of its values; of bfloat16, which numpy does not have, in float32."""
        dtype: Any = DTYPES[self._type]
        values = np.empty(self._shape, dtype=np.uint16 if dtype is np.void else dtype)
        if values.nbytes:
            self.pool.cuda.download(values, self.address)
        return (values.astype(np.uint32) << 16).view(np.float32) if dtype is np.void else values


class DeviceStore:
    """Caches with room, kept for the next generation: recorded work reads and writes them where they are.

    Parameters
    ----------
    pool : Pool
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._unused: dict[tuple[tuple[str, tuple[int, ...]], ...], list[Sequence[DeviceTensor]]] = {}

    def clear(self) -> None:
        """Let go of caches that no generation uses."""
        self._unused.clear()

    def take(self, like: Sequence[Tensor], length: int) -> Sequence[Tensor]:
        """See :class:`~vtc.runtime.past.Store`."""
        sizes = [(tensor.data_type(), _resized(tensor.shape(), length)) for tensor in like]
        unused = self._unused.get(tuple(sizes))
        taken = unused.pop() if unused else [DeviceTensor(self._pool, shape, name) for name, shape in sizes]
        for tensor in taken:
            # What is masked out is multiplied by 0, which takes care of any number but infinity and NaN.
            self._pool.cuda.clear(tensor.address, tensor.tensor_size_in_bytes())
        return taken

    def give_back(self, tensors: Sequence[Tensor]) -> None:
        """See :class:`~vtc.runtime.past.Store`."""
        taken = cast(Sequence[DeviceTensor], tensors)
        key = tuple((tensor.data_type(), tensor.shape()) for tensor in taken)
        self._unused.setdefault(key, []).append(taken)

    def copy(self, source: Tensor, begin: int, count: int, target: Tensor, at: int) -> None:
        """See :class:`~vtc.runtime.past.Store`."""
        here, there = cast(DeviceTensor, source), cast(DeviceTensor, target)
        rows, heads, places, width = here.shape()
        size = width * BYTES[here.data_type()]
        room = there.shape()[2]
        if count:
            self._pool.cuda.copy_rows(
                *(there.address + at * size, room * size, here.address + begin * size, places * size),
                *(count * size, rows * heads),
            )


def _resized(shape: Sequence[int], length: int) -> tuple[int, ...]:
    rows, heads, _, width = shape
    return rows, heads, length, width
