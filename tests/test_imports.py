"""Imports go one way: the contracts of pyproject.toml hold, and a wrong import breaks them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WRONG = {
    "vtc/runtime/text.py": "import torch",
    "vtc/plan/flops.py": "import vtc.models.base",
    "vtc/compressed/model.py": "import exporters.onnx",
    "vtc/cli/run.py": "import numpy",
    "vtc/selectors/uniform.py": "import transformers",
}


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the two packages and their contracts."""
    directory = tmp_path_factory.mktemp("tree")
    for package in ("vtc", "exporters"):
        shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__", "weights"))
    shutil.copy(ROOT / "pyproject.toml", directory)
    return directory


def test_contracts_hold(tree: Path) -> None:
    found = lint(tree)
    assert found.returncode == 0, found.stdout
    assert "0 broken" in found.stdout


@pytest.mark.parametrize("file", WRONG)
def test_a_wrong_import_breaks_a_contract(tree: Path, file: str) -> None:
    right = (tree / file).read_text()
    (tree / file).write_text(right + f"\n{WRONG[file]}\n")
    try:
        found = lint(tree)
    finally:
        (tree / file).write_text(right)
    assert found.returncode != 0
    assert "0 broken" not in found.stdout
    assert file.removesuffix(".py").replace("/", ".") in found.stdout
