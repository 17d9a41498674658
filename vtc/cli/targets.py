"""Where a bundle can run, and whether it can here."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from vtc.errors import VtcError


@dataclass(frozen=True)
class Target:
    """A runtime with the hardware under it.

    Attributes
    ----------
    name, summary
        What the user calls it, and what it is.
    provider
        ``--provider`` of `vtc run` that asks for it.
    install
        How to get it where it is missing.
    """

    name: str
    summary: str
    provider: str
    install: str


TARGETS = (
    Target("onnxruntime-cpu", "ONNX Runtime on the processor", "cpu", "pip install onnxruntime"),
    Target(
        "onnxruntime-cuda",
        "ONNX Runtime on an NVIDIA GPU",
        "cuda",
        "NVIDIA driver, onnxruntime-gpu, and the CUDA and cuDNN it was built for",
    ),
)

_PROBE = bytes.fromhex(
    "080812003a350a0e0a01780a017812017922034164641201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02"
    "080142040a00100d"
)
"""An ONNX model that adds a number to itself, so that a provider can be started without a bundle."""


def what_is_missing(target: Target) -> str:
    """Say why a target does not work here; empty when a session on it starts."""
    from vtc.runtime.providers import choose_provider
    from vtc.runtime.session import Graph

    try:
        provider = choose_provider(target.provider)
        with tempfile.TemporaryDirectory() as directory:
            probe = Path(directory) / "probe.onnx"
            probe.write_bytes(_PROBE)
            Graph(probe, provider)
    except VtcError as error:
        return str(error).partition(";")[0]  # what follows is advice to `vtc run`
    return ""
