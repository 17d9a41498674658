"""What the runtime asks of whatever runs a bundle's graphs: ONNX Runtime, OpenVINO, TensorRT, or the next one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vtc.bundle.engines import Limits

Array = NDArray[Any]
IntArray = NDArray[np.int64]
Result = TypeVar("Result")

DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bfloat16)": np.void,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
"""ONNX Runtime's names of element types. numpy has no bfloat16: `void` stands for it, and it stays on the device."""


class Tensor(Protocol):
    """A tensor where the backend computes; the methods are those of an `onnxruntime.OrtValue`."""

    def shape(self) -> Sequence[int]:
        """Its shape."""

    def data_type(self) -> str:
        """One of :data:`DTYPES`."""

    def tensor_size_in_bytes(self) -> int:
        """Bytes of its values."""

    def numpy(self) -> Array:
        """Its values on the host."""


class LoadedGraph(Protocol):
    """A graph, loaded."""

    @property
    def inputs(self) -> Mapping[str, type[np.generic]]:
        """Names and dtypes, in order."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names, in order."""

    @property
    def run_ms(self) -> float:
        """What the last run of this thread took where it computes; 0 before the first."""

    @property
    def most_past(self) -> int | None:
        """Cached tokens that it takes at most; None sets no limit."""

    def run(self, feeds: Mapping[str, Array | Tensor], host: Collection[str] = ()) -> list[Tensor]:
        """Run the graph.

        Parameters
        ----------
        feeds : mapping of input name to array or tensor
        host : collection of str
            Outputs wanted on the host; the others stay on the device.

        Returns
        -------
        list of Tensor
            In the order of `outputs`; ``.numpy()`` gives those on the host.
        """

    def empty(self, *shape: int, dtype: type[np.generic]) -> Tensor:
        """A tensor without elements, which is how a cache begins."""


class Past(Protocol):
    """The KV cache of one segment in a running generation; empty until :meth:`begin`."""

    @property
    def tensors(self) -> Sequence[Tensor]:
        """Where it lives: keys and values of each layer, (B, Hkv, T, Dh), T at least `length`.

        None where the backend keeps them to itself.
        """

    @property
    def length(self) -> int:
        """Tokens in it."""

    @property
    def bytes(self) -> int:
        """Size of the keys and values of the tokens in it."""

    def mask(self) -> IntArray:
        """1 for a token and 0 for padding or room, (B, T + 1); last the token that comes next."""

    def positions(self, here: IntArray) -> IntArray | None:
        """Positions of the tokens, (B, T + 1), last those of the next, `here` (B, 1); None where nobody asks."""

    def run(
        self, feeds: Mapping[str, Array | Tensor], host: Collection[str] = ()
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Run the segment's graph on tokens that come after those in the cache.

        Parameters
        ----------
        feeds : mapping of input name to array or tensor
            All that the graph takes but the cache.
        host : collection of str
            As for :meth:`LoadedGraph.run`.

        Returns
        -------
        dict of output name to Tensor
        list of Tensor
            What became of the cache, for :meth:`begin` or :meth:`append`.
        """

    def begin(self, present: Sequence[Tensor], mask: IntArray, positions: IntArray | None) -> None:
        """Take in a prompt.

        Parameters
        ----------
        present : sequence of Tensor
            What :meth:`run` made of the empty cache: keys and values of each layer, (B, Hkv, P, Dh), where it lives in
            tensors.
        mask : array of shape (B, P)
            1 for a token and 0 for padding.
        positions : array of shape (B, P), or None
            Of its tokens, where the graph asks for those of the cached ones.
        """

    def append(self, present: Sequence[Tensor], here: IntArray) -> None:
        """Take in the next token: what :meth:`run` made of the cache, (B, Hkv, T + 1, Dh), and its positions (B, 1)."""


class Backend(Protocol):
    """Opens the graphs of one bundle in one precision, and does between them what graphs do not."""

    @property
    def precision(self) -> str:
        """Of the graphs, or what they are computed in where that is another; for reports."""

    @property
    def exported(self) -> str:
        """The precision that the graphs were exported in."""

    @property
    def variant(self) -> str:
        """Which of the bundle's variants they are."""

    @property
    def provider(self) -> str:
        """What computes, for reports: an execution provider of ONNX Runtime, a device of OpenVINO, or a TensorRT."""

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Held by whoever prefills a batch or takes a step, from the first graph to values on the host.

        It keeps nobody out where graphs can run at once. It can be held twice by one thread.
        """

    def open(self, graph: str) -> LoadedGraph:
        """Load a graph of the bundle.

        Raises
        ------
        BundleError
            If it cannot be loaded.
        """

    def admit(self, needed: Limits) -> None:
        """Make sure that a batch fits what the graphs were made for.

        Raises
        ------
        InputError
            If it does not; the message names the limit.
        """

    def place(self, embeds: Tensor, features: Tensor, where: NDArray[np.bool_]) -> Tensor | Array:
        """Embeddings (B, S, E) with features (N, K, E) in the N x K places that `where` (B, S) names, in order."""

    def past(self, graph: LoadedGraph, shape: tuple[int, int, int], most: int) -> Past:
        """An empty cache for a segment.

        Parameters
        ----------
        graph : LoadedGraph
            The segment's.
        shape : (int, int, int)
            Rows, heads and values of a head.
        most : int
            Tokens that are expected in it at most: the prompt's, and those of the answer.
        """

    def repeat(
        self,
        fixed: Sequence[Tensor],
        arrays: Mapping[str, Array],
        program: Callable[[Mapping[str, Array | Tensor]], Result],
    ) -> Result:
        """Run a program of graphs that will be run again and again.

        Parameters
        ----------
        fixed : sequence of Tensor
            What it reads beside `arrays`. A later call with the very same tensors, and arrays of the same shapes,
            may replay what this one did.
        arrays : mapping of str to array
            What is different each time.
        program : callable
            Only runs graphs, and looks at no value; is given `arrays` or their copies on the device.

        Returns
        -------
        Result
            What the program returned; its tensors hold until the next call.
        """
