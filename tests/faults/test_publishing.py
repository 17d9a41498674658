"""Some of the faults of `make faults`, for every day."""

from __future__ import annotations

import json
import subprocess
import sys


def test_fault_at_some_system_calls_of_publishing_leaves_the_old_or_the_new() -> None:
    command = [sys.executable, "-m", "tests.faults", "--verbs", "", "--each", "23"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)["calls"]
    assert counts["ends"]["ended"] >= 10
    assert counts["ENOSPC"]["refused in one line"] >= 10
