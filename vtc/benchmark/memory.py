"""Peak memory of a bundle, in a process of its own.

Within one process the peak belongs to whichever model was larger, or to whatever was loaded before; so each
model is loaded and asked in a fresh Python process, which then reads its own high-water mark. On Linux that
is ``VmHWM``: the ``ru_maxrss`` of getrusage survives exec and would include the parent's peak. It counts the
host's resident memory, interpreter and libraries included, and not memory on a GPU.

Usage: ``python -m vtc.benchmark.memory`` with a request as JSON on stdin; the figures come as JSON on stdout.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from vtc.errors import VtcError
from vtc.runtime.options import RuntimeOptions

_MB = 2**20


@dataclass(frozen=True)
class Memory:
    """Resident memory of a process that ran one model, in MiB; None where the system does not tell.

    Attributes
    ----------
    before_load_mb : float or None
        Interpreter and libraries, before the model was loaded.
    peak_mb : float or None
        The most at any time, loading included.
    """

    before_load_mb: float | None
    peak_mb: float | None


def peak_rss_mb() -> float | None:
    """Peak resident memory of this process since it was started or :func:`forget_peak`, in MiB."""
    peak = _status("VmHWM")
    if peak is not None or platform.system() != "Darwin":
        return peak
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MB


def rss_mb() -> float | None:
    """Resident memory of this process, in MiB."""
    return _status("VmRSS")


def forget_peak() -> bool:
    """Have the peak counted from here on; whether the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> float | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / 1024 if found else None


def measure_memory(
    bundle: Path,
    images: Sequence[Image.Image],
    question: str,
    new_tokens: int,
    options: RuntimeOptions,
    keep: int | None = None,
) -> Memory:
    """Load a bundle in a fresh process, ask it once, and read the peak.

    Parameters
    ----------
    bundle : Path
    images : sequence of PIL image
    question : str
    new_tokens : int
        Length of the answer.
    options : RuntimeOptions
    keep : int or None
        Which of the bundle's budgets, where it has several.

    Raises
    ------
    VtcError
        If the process fails; the message is its last line.
    """
    with tempfile.TemporaryDirectory(prefix="vtc-") as directory:
        paths = []
        for number, image in enumerate(images):
            paths.append(os.path.join(directory, f"{number}.png"))
            image.save(paths[-1])
        request = {
            "bundle": os.path.abspath(bundle),
            "images": paths,
            "question": question,
            "new_tokens": new_tokens,
            "keep": keep,
            "options": asdict(options),
        }
        # The package may be on this process's path only, as in a checkout that is not installed.
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.run(
            [sys.executable, "-m", "vtc.benchmark.memory"],
            input=json.dumps(request, default=str),
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
            check=False,
        )
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
        raise VtcError(f"{bundle}: cannot be run in a process of its own to measure its memory ({lines[-1]})")
    return Memory(**json.loads(process.stdout))


def main() -> None:
    """Serve one request."""
    from vtc.runtime.image import open_image
    from vtc.runtime.vlm import VLM

    request = json.load(sys.stdin)
    images = [open_image(path) for path in request["images"]]
    before = peak_rss_mb()
    vlm = VLM.load(request["bundle"], RuntimeOptions(**request["options"]))
    prompt = vlm.chat(request["question"], len(images))
    vlm.generate([images], [prompt], request["new_tokens"], keep=request["keep"])
    json.dump({"before_load_mb": before, "peak_mb": peak_rss_mb()}, sys.stdout)


if __name__ == "__main__":
    main()
