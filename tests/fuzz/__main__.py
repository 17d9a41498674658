"""``python -m tests.fuzz``: fuzz for as long as asked, print counts as JSON, exit with 1 if anything was found."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.areas import AREAS
from tests.fuzz.campaign import campaign, drawn
from tests.fuzz.grid import grid
from tests.fuzz.running import ROOT, Runner


def main() -> int:
    """Fuzz; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="wall time, the same for each area")
    parser.add_argument("--seed", type=int, default=0, help="draws the cases")
    parser.add_argument("--areas", nargs="+", choices=AREAS, default=list(AREAS))
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), help="directory for findings and counts.json")
    parser.add_argument("--grid", action="store_true", help="each value in each place of JSON files, not drawn cases")
    asked = parser.parse_args()
    share = asked.minutes * 60 / len(asked.areas)
    with tempfile.TemporaryDirectory() as store:
        runner = Runner(Path(store))
        try:
            counts = campaign(
                runner,
                asked.out / "findings",
                asked.areas,
                asked.seed,
                lambda seconds, _: seconds < share,
                lambda line: print(line, file=sys.stderr, flush=True),
                grid if asked.grid else drawn,
            )
        finally:
            runner.close()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    report = {
        "seed": asked.seed,
        "minutes": asked.minutes,
        "commit": commit.strip(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "areas": {area: own.to_dict() for area, own in counts.items()},
    }
    written = json.dumps(report, indent=1)
    asked.out.mkdir(parents=True, exist_ok=True)
    kind = "grid" if asked.grid else "counts"
    (asked.out / f"{kind}-{asked.seed}.json").write_text(written + "\n", encoding="utf-8")
    print(written)
    good = {"accepted", "refused"}
    return int(any(set(own.outcomes) - good for own in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
