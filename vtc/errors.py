"""What can go wrong, one exception per kind of fault, each with the exit code the shell sees.

Raise where the cause is known, with a message that says what is wrong, where, and what to do; the command line prints
it as one line (``vtc --debug`` adds the traceback).
"""

from __future__ import annotations

from collections.abc import Iterable


class VtcError(Exception):
    """A fault that vtc understands; its message is one line for the user."""

    exit_code = 1


class InputError(VtcError):
    """Something the user gave cannot be used: an option, an image, a data file."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe is wrong. The message holds every problem found, one a line, as ``file:line: what, what to do``."""


class ModelError(InputError):
    """A checkpoint is missing, truncated, or of a family that vtc does not know."""


class CheckpointError(ModelError):
    """A checkpoint's parts are missing or do not agree. The message holds every fault found, one a line."""


class BundleError(InputError):
    """A bundle is incomplete, changed since it was written, or made for another runtime."""


class MissingDependency(InputError):
    """An optional package is needed for this command; the message names the extra that installs it."""


class OutOfResources(InputError):
    """The machine lacks memory, file handles, space or a permission; nothing is wrong with the file itself."""


class GateFailed(VtcError):
    """Accuracy did not hold."""

    exit_code = 3


class ParityError(VtcError):
    """An exported graph does not compute what the PyTorch model computes."""

    exit_code = 4


class NumericError(VtcError):
    """What a model computes is not a number (NaN or infinity): nothing follows from it, and it equals nothing."""

    exit_code = 2


class GateInconclusive(VtcError):
    """The data cannot tell whether accuracy held; more samples are needed."""

    exit_code = 5


def all_faults(faults: Iterable[str]) -> str:
    """A message of several faults, a line each; what two causes say alike is said once."""
    return "\n".join(dict.fromkeys(faults))


def one_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
