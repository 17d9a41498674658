"""Run all faults and print how many there were, as JSON: ``python -m tests.faults --kills 100``."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of each verb, at random moments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", default="compress,export,build,validate")
    parser.add_argument("--each", type=int, default=1, help="take every so-manieth system call only")
    parser.add_argument("--skip", default="", help="of calls, kills, signals, limits, two")
    wanted = parser.parse_args()
    skipped = wanted.skip.split(",")
    report: dict[str, Any] = {"seed": wanted.seed}
    begin = time.monotonic()
    if "calls" not in skipped:
        from tests.faults.publishing import every_call

        report["calls"] = every_call(each=wanted.each)
        print(json.dumps(report), file=sys.stderr, flush=True)
    if wanted.verbs:
        report["verbs"] = _verbs(wanted.verbs.split(","), wanted.kills, wanted.seed, skipped)
    report["seconds"] = round(time.monotonic() - begin)
    print(json.dumps(report, indent=2))


def _verbs(names: list[str], times: int, seed: int, skipped: list[str]) -> dict[str, Any]:
    # Imported once, here: each run is a process that is split off from this one.
    import onnxruntime  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import vtc.calibrate.compress
    import vtc.evaluate.validate  # noqa: F401
    from tests.faults import verbs

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        for case in verbs.cases(Path(folder)):
            if case.verb not in names:
                continue
            counts = found[case.verb] = {}
            for name, act in (
                ("kills", lambda: verbs.kills(case, times, random.Random(seed))),  # noqa: B023 (called at once)
                ("signals", lambda: verbs.signals(case, min(times, 20), random.Random(seed))),  # noqa: B023
                ("limits", lambda: verbs.limits(case)),  # noqa: B023
                ("two", lambda: verbs.two_at_once(case)),  # noqa: B023
            ):
                if name not in skipped:
                    counts[name] = act()
                    print(json.dumps({case.verb: counts}), file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
