"""`vtc run` in an environment that holds what the base install asks for, and neither torch nor transformers."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.runtime.conftest import picture

ROOT = Path(__file__).parents[2]


def base_distributions() -> set[str]:
    """Names of the base install's distributions, dependencies of dependencies included."""
    names: set[str] = set()
    waiting = [Requirement(line) for line in distribution("vtc").requires or []]
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in names or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        names.add(name)
        waiting += [Requirement(line) for line in requires]
    return names


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of an environment with vtc and the base install, linked from this one."""
    path = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(path, with_pip=False, symlinks=True)
    site = next(path.glob("lib/python*/site-packages"))
    for name in base_distributions():
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or [] if file.parts[0] != ".."}:
            if top != "__pycache__" and not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
    (site / "vtc").symlink_to(ROOT / "vtc")
    return path / "bin" / "python"


@pytest.mark.skipif(sys.platform == "win32", reason="links environments")
def test_bundle_runs_without_torch_and_transformers(python: Path, toy_bundle: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, "-I", *arguments], capture_output=True, text=True, cwd=tmp_path, check=False)

    for missing in ("torch", "transformers", "onnx", "exporters"):
        assert "ModuleNotFoundError" in run("-c", f"import {missing}").stderr
    picture(0).save(tmp_path / "photo.png")
    shell = "from vtc.cli import main; main()"
    answer = run("-c", shell, "run", str(toy_bundle), "--image", "photo.png", "--prompt", "what is red")
    assert (answer.returncode, answer.stderr) == (0, f"next: vtc validate {toy_bundle}\n")
    here = subprocess.run(
        [
            sys.executable,
            "-m",
            "vtc.cli",
            "run",
            toy_bundle,
            "--image",
            tmp_path / "photo.png",
            "--prompt",
            "what is red",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == here.stdout
