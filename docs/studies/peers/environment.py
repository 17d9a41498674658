"""The peers' environments, and what everything was measured on."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Peer:
    """An environment: packages, and packages that are installed without what they ask for."""

    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Of its packages, without versions."""
        return [name.split("==")[0] for name in self.packages + self.alone]


PEERS = {
    "ort-genai": Peer(("onnxruntime==1.32.0", "onnxruntime-genai==0.18.0")),
    # optimum-intel exports Qwen2-VL with transformers up to 5.0 alone. The torchvision that it asks for nobody uses
    # here, and it would bring a PyTorch of its own.
    "openvino-genai": Peer(
        (
            "openvino==2026.4.1",
            "openvino-genai==2026.4.1.0",
            "openvino-tokenizers==2026.4.1.0",
            "nncf==3.4.0",
            "optimum==2.3.0",
            "requests==2.34.2",
            "transformers==5.0.0",
        ),
        ("optimum-intel==2.2.0",),
    ),
}
"""What is measured beside us, and what converts for it; PyTorch, and what is not named here, is the project's."""
OURS = ("vtc", "onnxruntime-gpu", "openvino", "torch", "transformers", "numpy")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def peer_python(directory: Path, name: str) -> Path:
    """The interpreter of a peer's environment, made if it is not there.

    It sees the project's packages after its own, so that PyTorch is not installed again.
    """
    root, peer = directory / name, PEERS[name]
    python = root / "bin" / "python"
    if not (root / "done").exists():
        venv.create(root, clear=True, with_pip=True)
        _see_project(root)
        torch = "torch==" + version("torch").split("+")[0]
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for packages in ([torch, *peer.packages], ["--no-deps", *peer.alone] if peer.alone else []):
            if packages:
                subprocess.run([*pip, *packages], check=True, stdout=sys.stderr)
        (root / "done").touch()
    _see_project(root)  # which may have another environment than when the peer's was made
    return python


def _see_project(root: Path) -> None:
    own = next((root / "lib").glob("python*/site-packages"))
    (own / "project.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")


def versions(python: Path, names: Sequence[str]) -> dict[str, str]:
    """Versions of packages as an interpreter sees them; of those that are there."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(found))"
    )
    told = subprocess.run([str(python), "-c", code, *names], check=True, capture_output=True, text=True).stdout
    found: dict[str, str] = json.loads(told)
    return found


def machine() -> dict[str, Any]:
    """The processor and the memory."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        info = ""
    name = re.search(r"^model name\s*: (.*)$", info, re.MULTILINE)
    numbers = [re.search(rf"^{word}\s*: (\d+)$", info, re.MULTILINE) for word in ("cpu family", "model", "stepping")]
    flags = re.search(r"^flags\s*: (.*)$", info, re.MULTILINE)
    return {
        "processor": name[1] if name else platform.machine(),
        # One name may stand for several generations, which are not to be compared.
        "generation": ".".join(number[1] for number in numbers if number),
        "flags": [flag for flag in FLAGS if flags and flag in flags[1].split()],
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
    }
