"""What an exception means to the user: a line, and an exit code."""

from __future__ import annotations

import traceback

from vtc.errors import CheckpointError, RecipeError, VtcError
from vtc.machine import machine_fault, path_fault
from vtc.shown import line

EXTRAS = {
    "torch": "compress",
    "transformers": "compress",
    "onnx": "compress",
    "onnxscript": "compress",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
    "matplotlib": "report",
}
"""Import name of an optional package → the extra of vtc that installs it."""

READERS = {
    "json.decoder": "JSON",
    "json.scanner": "JSON",
    "yaml": "YAML",
    "safetensors": "safetensors",
    "safetensors_rust": "safetensors",
    "jinja2": "a chat template",
    "<template>": "a chat template",
    "google.protobuf": "ONNX",
    "onnx": "ONNX",
    "onnxruntime": "a graph that ONNX Runtime runs",
    "PIL": "an image",
}
"""Module of a library that reads files → what it reads. What they raise is the fault of a file, not of vtc."""

FAULTS = 40
"""Of a recipe or a checkpoint that are told at a time."""


def describe(error: BaseException) -> tuple[str, int]:
    """Say in a line what an exception means to the user.

    Returns
    -------
    str, int
        The message (the faults of a recipe or a checkpoint stay one a line), and the exit code.
    """
    if isinstance(error, RecipeError):
        faults = str(error).splitlines()
        more = [f"and {len(faults) - FAULTS} more faults"] if len(faults) > FAULTS else []
        return "\n".join([line(fault) for fault in faults[:FAULTS]] + more), error.exit_code
    if isinstance(error, CheckpointError):
        return "\n".join(_error(fault) for fault in str(error).splitlines()[:FAULTS]), error.exit_code
    if isinstance(error, VtcError):
        return _error(str(error)), error.exit_code
    if isinstance(error, ModuleNotFoundError) and (package := (error.name or "").partition(".")[0]) in EXTRAS:
        return f"error: this needs {package}: pip install 'vtc[{EXTRAS[package]}]'", 2
    if fault := machine_fault(error):
        return _error(str(fault)), fault.exit_code
    if isinstance(error, OSError) and (wrong := path_fault(error)):
        return _error(wrong), 2
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # of pathlib before Python 3.13
        return _error(f"{_joined(str(error))}; give a path that leads somewhere"), 2
    if damaged := _damaged(error):
        return _error(f"{damaged} (vtc --debug shows where it is read)"), 2
    return line(f"unexpected {type(error).__name__}: {_joined(str(error))} (vtc --debug shows the traceback)"), 1


def _error(message: str) -> str:
    return line(f"error: {_joined(message)}")


def _joined(text: str) -> str:
    return " ".join(text.split())


def _damaged(error: BaseException) -> str:
    """Say what a file should be and is not, where a library that reads it raised the error; else nothing."""
    if isinstance(error, UnicodeDecodeError):
        return f"a file is not {error.encoding.upper()} text"
    places = [type(error).__module__]
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1:]
    places += [frame.f_globals.get("__name__") or frame.f_code.co_filename for frame in frames]
    for module, kind in READERS.items():
        if any(place == module or place.startswith(f"{module}.") for place in places):
            what = "it is nested too deeply" if isinstance(error, RecursionError) else _joined(str(error))
            return f"a file is not {kind} ({what or type(error).__name__})"
    return ""
