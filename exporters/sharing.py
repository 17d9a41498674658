"""Weights that several graphs hold alike, stored once: those of the vision graphs of a recipe with several budgets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from exporters.writing import EXTERNAL_TENSOR_BYTES, external_data

ALIGNED = 2**16
"""Weights begin at multiples of this, so that every system can map them into memory."""

Place = tuple[int, int]
"""Where values lie in a file: offset and length in bytes."""


def share_weights(graphs: Sequence[Path]) -> None:
    """Keep equal weights of graphs in one file beside the first, which goes on where that file ends.

    Nothing that refers to the file as it was is disturbed; files of the others that are not needed any more are left.

    Parameters
    ----------
    graphs : sequence of Path
        In one directory, and not mapped into memory by anything that goes on.
    """
    data = external_data(graphs[0])
    places: dict[str, Place] = {}
    with data.open("ab") as file:
        for path in graphs:
            model = ir.load(path)
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor is not None and tensor.nbytes >= EXTERNAL_TENSOR_BYTES:
                    value.const_value = _in_file(tensor, data, file, places)
            ir.save(model, path)
    data.chmod(graphs[0].stat().st_mode)


def _in_file(tensor: ir.TensorProtocol, data: Path, file: BinaryIO, places: dict[str, Place]) -> ir.ExternalTensor:
    """The same tensor kept in `data`, where `places` says by digest what is there already."""
    values = tensor.tobytes()
    digest = hashlib.sha256(values).hexdigest()
    if digest not in places:
        places[digest] = _own_place(tensor, data) or _appended(values, file)
    offset, length = places[digest]
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor(
        data.name, offset, length, tensor.dtype, shape=shape, name=tensor.name or "", base_dir=data.parent
    )


def _own_place(tensor: ir.TensorProtocol, data: Path) -> Place | None:
    if isinstance(tensor, ir.ExternalTensor) and tensor.location == data.name:
        return tensor.offset or 0, tensor.nbytes if tensor.length is None else tensor.length
    return None


def _appended(values: bytes, file: BinaryIO) -> Place:
    file.write(bytes(-file.tell() % ALIGNED))
    offset = file.tell()
    file.write(values)
    file.flush()
    return offset, len(values)
