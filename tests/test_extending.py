"""The examples of docs/extending.md: its blocks, and nothing else, make a selector and a stage part of vtc."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"
NEEDED = ("vtc", "exporters", "recipes", "tests", "docs/extending.md", "pyproject.toml")
CLOSING = {"{": "}", "(": ")"}


class Block(NamedTuple):
    """Python on the page: a file, lines of a table, or a piece to run."""

    file: str
    table: str
    text: str


def blocks() -> list[Block]:
    """All of them, in order."""
    found = []
    for text in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        head, _, body = text.partition("\n")
        title = re.fullmatch(r"# (\S+\.py)(?:: (\w+))?", head)
        found.append(Block(title[1], title[2] or "", body) if title else Block("", "", text))
    return found


def with_lines(source: str, table: str, added: str) -> str:
    """A module with imports, and with a line at the end of one of its tables."""
    lines = source.splitlines()
    imports = [line for line in added.splitlines() if line and not line.startswith(" ")]
    (entry,) = [line for line in added.splitlines() if line.startswith("    ")]
    assert all(line.startswith("from ") for line in imports)
    (opens,) = [n for n, line in enumerate(lines) if re.match(rf"{table}\b.*= [({{]$", line)]
    ends = lines.index(CLOSING[lines[opens][-1]], opens)
    lines.insert(ends, entry)
    last = max(n for n, line in enumerate(lines[:opens]) if re.match(r"(from|import) ", line))
    closes = lines.index(")", last) if lines[last].endswith("(") else last
    lines[closes + 1 : closes + 1] = imports
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the page's blocks applied."""
    root = tmp_path_factory.mktemp("extended")
    for name in NEEDED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        (root / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, root / name)
    for block in blocks():
        path = root / block.file
        if block.table:
            path.write_text(with_lines(path.read_text(encoding="utf-8"), block.table, block.text), encoding="utf-8")
        elif block.file:
            assert not path.exists()
            path.write_text(block.text, encoding="utf-8")
    return root


def passes(root: Path, *arguments: str) -> None:
    """Run pytest in the copy."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    here = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_page_has_what_it_says() -> None:
    files = [block.file for block in blocks() if block.file and not block.table]
    tables = [block.table for block in blocks() if block.table]
    assert [file.rpartition("/")[2] for file in files] == ["bright_middle.py"] * 2 + ["pool.py"] * 3
    assert tables == ["AnyEncoderSelector", "ENCODER_MODULES", "AnyStage", "NUMBERS", "MODULES", "TRAINERS"]
    assert max(len(block.text.splitlines()) for block in blocks()) <= 70


@pytest.mark.slow
def test_selector_of_the_page(extended: Path) -> None:
    passes(extended, "tests/extended/selector.py", "tests/selectors/test_promises.py", "-k", "example or bright_middle")


@pytest.mark.slow
def test_stage_of_the_page(extended: Path) -> None:
    passes(extended, "tests/extended/stage.py", "tests/test_tables.py")
