"""Where only bundles run, they can still be timed and compared: neither torch nor transformers is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluate.bundles import bundle_with_plan
from tests.runtime.toy import make_toy
from tests.tiny import image

WITHOUT = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from vtc.cli import main
main(sys.argv[1:], prog_name="vtc")
"""


@pytest.mark.parametrize(
    ("verb", "options", "code"),
    [
        ("bench", ["--image", "{data}/a.png", "--repeats", "2", "--max-new-tokens", "2"], 0),
        ("bench", ["--repeats", "2", "--max-new-tokens", "2", "--no-memory"], 0),
        ("validate", ["--data", "{data}", "--max-new-tokens", "2"], 5),
    ],
)
def test_bundle_against_bundle(tmp_path: Path, verb: str, options: list[str], code: int) -> None:
    whole = bundle_with_plan(make_toy(keep=16), tmp_path / "whole")
    pruned = bundle_with_plan(make_toy(keep=3), tmp_path / "pruned")
    image(0).save(tmp_path / "a.png")
    record = {"id": 1, "image": "a.png", "question": "what colour ?", "answers": ["red"], "category": "attribute"}
    (tmp_path / "data.jsonl").write_text(json.dumps(record) + "\n")
    arguments = [option.replace("{data}", str(tmp_path)) for option in options]
    command = [verb, str(pruned), "--against", str(whole), "--provider", "cpu", "--json", *arguments]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *command], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert json.loads(done.stdout)["kind"] == verb
