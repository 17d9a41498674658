"""What is done to the files of a case: a small language of changes, each a JSON object with ``do`` and ``file``.

A change that finds nothing to change does nothing, so that any part of a list of changes can be tried alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.fuzz.case import Change

Do = Callable[[Path, Change], None]
SEAL = re.compile(rb'(?<=\n  "digest": ")[0-9a-f]{64}(?=")')
MOST_BYTES = 2**26
"""Of a file that is read to be changed, or to be given a new hash."""
WIDTHS = {"F32": ("<f4", 0), "F16": ("<f2", 0), "F64": ("<f8", 0), "BF16": ("<u2", 16)}
"""Type of a safetensors file → numpy's, and by how many bits a float32 is shortened to it."""


def apply(changes: Sequence[Change], place: Path) -> None:
    """Do changes in a directory, one after the other."""
    for change in changes:
        DO[change["do"]](place / change.get("file", ""), change)


def put(path: Path, content: bytes) -> None:
    """Put a new file in a place, which leaves what was linked there as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path)
    path.write_bytes(content)


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _held(path: Path) -> bytes | None:
    """What a file holds, if there is one that is not too large."""
    return path.read_bytes() if path.is_file() and path.stat().st_size <= MOST_BYTES else None


def _text(path: Path) -> str:
    """What a file holds as text; nothing if there is none, or one that is too large."""
    return (_held(path) or b"").decode("utf-8", errors="surrogateescape")


def _put_text(path: Path, text: str) -> None:
    put(path, text.encode("utf-8", "surrogatepass"))


# Whole files ------------------------------------------------------------------------------------------------


def _write(path: Path, change: Change) -> None:
    if "hex" in change:
        put(path, bytes.fromhex(change["hex"]) * change.get("times", 1))
    else:
        _put_text(path, change["text"] * change.get("times", 1))


def _remove(path: Path, change: Change) -> None:
    _clear(path)


def _link(path: Path, change: Change) -> None:
    _clear(path)
    path.symlink_to(change["to"])


def _fifo(path: Path, change: Change) -> None:
    _clear(path)
    os.mkfifo(path)


def _directory(path: Path, change: Change) -> None:
    _clear(path)
    path.mkdir()


def _copy(path: Path, change: Change) -> None:
    if (data := _held(path)) is not None:
        put(path.parent / change["to"], data)


def _swap(path: Path, change: Change) -> None:
    other = path.parent / change["with"]
    here, there = _held(path), _held(other)
    if here is not None and there is not None:
        put(path, there)
        put(other, here)


# Bytes ------------------------------------------------------------------------------------------------------


def _flip(path: Path, change: Change) -> None:
    """Change bits of one byte."""
    if data := bytearray(_held(path) or b""):
        data[change["at"] % len(data)] ^= change["bits"]
        put(path, bytes(data))


def _patch(path: Path, change: Change) -> None:
    """Write bytes over others."""
    if (held := _held(path)) is None:
        return
    data = bytearray(held)
    new = bytes.fromhex(change["hex"])
    data[change["at"] : change["at"] + len(new)] = new
    put(path, bytes(data))


def _cut(path: Path, change: Change) -> None:
    """Keep a share of a file."""
    if (data := _held(path)) is not None:
        put(path, data[: int(len(data) * change["share"])])


def _extend(path: Path, change: Change) -> None:
    """Make a file longer, without bytes on the disk."""
    if (data := _held(path)) is not None:
        put(path, data)
        os.truncate(path, path.stat().st_size + change["bytes"])


# Lines ------------------------------------------------------------------------------------------------------


def _insert(path: Path, change: Change) -> None:
    lines = _text(path).split("\n")
    lines.insert(change["at"] % (len(lines) + 1), change["text"] * change.get("times", 1))
    _put_text(path, "\n".join(lines))


def _delete(path: Path, change: Change) -> None:
    lines = _text(path).split("\n")
    del lines[change["at"] % len(lines)]
    _put_text(path, "\n".join(lines))


def _replace(path: Path, change: Change) -> None:
    _put_text(path, _text(path).replace(change["old"], change["new"]))


# Data -------------------------------------------------------------------------------------------------------


def _edit(data: Any, path: Sequence[str | int], change: Change) -> bool:
    """Set or drop a value; tell whether its place was found."""
    for step in path[:-1]:
        if not _has(data, step):
            return False
        data = data[step]
    last = path[-1]
    if change["do"].startswith("drop"):
        if not _has(data, last):
            return False
        del data[last]
        return True
    if isinstance(data, list) and isinstance(last, int):
        if last >= len(data):
            data.append(change["value"])
        else:
            data[last] = change["value"]
        return True
    if isinstance(data, dict) and isinstance(last, str):
        data[last] = change["value"]
        return True
    return False


def _has(data: Any, step: str | int) -> bool:
    if isinstance(data, dict):
        return step in data
    return isinstance(data, list) and isinstance(step, int) and -len(data) <= step < len(data)


def _json(path: Path, change: Change) -> None:
    try:
        data = json.loads(_text(path))
    except (ValueError, RecursionError):
        return
    if _edit(data, change["path"], change):
        _put_text(path, json.dumps(data, indent=2, ensure_ascii=change.get("ascii", True)) + "\n")


def _flow(data: Any) -> str:
    """YAML of values that PyYAML cannot write: nested too deep, or integers of too many digits for decimals."""
    if isinstance(data, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {_flow(value)}" for key, value in data.items()) + "}"
    if isinstance(data, list):
        return "[" + ", ".join(map(_flow, data)) + "]"
    if isinstance(data, int) and not isinstance(data, bool):
        return hex(data) if data > 0 else f"-{hex(-data)}"
    return json.dumps(data, default=str)


def _yaml(path: Path, change: Change) -> None:
    try:
        data = yaml.safe_load(_text(path))
        if not _edit(data, change["path"], change):
            return
    except (yaml.YAMLError, ValueError, RecursionError, LookupError):  # PyYAML stumbles over some texts itself
        return
    try:
        written = yaml.safe_dump(data, sort_keys=False)
    except (yaml.YAMLError, ValueError, RecursionError):
        try:
            written = _flow(data)
        except RecursionError:  # an alias of what it is part of
            return
    _put_text(path, written)


def _row(path: Path, change: Change) -> None:
    """Change a line of JSON."""
    lines = _text(path).split("\n")
    try:
        data = json.loads(lines[change["line"]])
    except (ValueError, RecursionError, IndexError):
        return
    if _edit(data, change["path"], change):
        lines[change["line"]] = json.dumps(data, ensure_ascii=change.get("ascii", True))
        _put_text(path, "\n".join(lines))


# Weights ----------------------------------------------------------------------------------------------------


def _tensor(path: Path, change: Change) -> None:
    """Put a number into a tensor of a safetensors file."""
    if not (held := _held(path)):
        return
    data = bytearray(held)
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    names = sorted(name for name, entry in header.items() if name != "__metadata__" and entry["dtype"] in WIDTHS)
    entry = header[names[change["tensor"] % len(names)]]
    kind, shift = WIDTHS[entry["dtype"]]
    begin, end = (8 + length + offset for offset in entry["data_offsets"])
    values = np.frombuffer(bytes(data[begin:end]), kind).copy()
    value = np.array(float(change["value"]), "<f4")
    values[change["at"] % len(values)] = value.view("<u4") >> shift if shift else value
    data[begin:end] = values.tobytes()
    put(path, bytes(data))


def _graph(path: Path, change: Change) -> None:
    """Put a number into the weights of an ONNX graph, or move them into a file beside it."""
    import onnx
    from onnx import numpy_helper

    if (held := _held(path)) is None:
        return
    model = onnx.load_model_from_string(held)
    floats = [
        tensor  # a lone infinity is no fault: it may bound a mask
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) > 1
    ]
    if not floats:
        return
    tensor = floats[change["tensor"] % len(floats)]
    values = numpy_helper.to_array(tensor).copy()
    if "value" in change:
        values.reshape(-1)[change["at"] % values.size] = float(change["value"])
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    else:
        put(path.parent / change["beside"], values.tobytes())
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=change["beside"])
    put(path, model.SerializeToString())


def _seal(path: Path, change: Change) -> None:
    """Give a manifest that was changed, or whose files were, the hashes that it would have been written with."""
    file = path / "manifest.json"
    if (whole := _held(file)) is None:
        return
    try:
        manifest = json.loads(whole)
    except (ValueError, RecursionError):
        manifest = None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    for name, entry in (files if isinstance(files, dict) else {}).items():
        if isinstance(entry, dict) and "\0" not in name and (data := _held(path / name)) is not None:
            entry.update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    written = json.dumps(manifest, indent=2, ensure_ascii=False).encode(errors="surrogatepass") + b"\n"
    data = whole if manifest is None else written
    blank = SEAL.sub(b"0" * 64, data)
    put(file, SEAL.sub(hashlib.sha256(blank).hexdigest().encode(), blank))


DO: dict[str, Do] = {
    "write": _write,
    "remove": _remove,
    "link": _link,
    "fifo": _fifo,
    "directory": _directory,
    "copy": _copy,
    "swap": _swap,
    "flip": _flip,
    "patch": _patch,
    "cut": _cut,
    "extend": _extend,
    "insert": _insert,
    "delete": _delete,
    "replace": _replace,
    "set": _json,
    "drop": _json,
    "set yaml": _yaml,
    "drop yaml": _yaml,
    "set row": _row,
    "drop row": _row,
    "tensor": _tensor,
    "graph": _graph,
    "seal": _seal,
}
"""Name of a change → what does it."""
