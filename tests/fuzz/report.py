"""``python -m tests.fuzz.report COUNTS...`` writes the table of docs/reliability.md from files of ``make fuzz``."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from tests.fuzz.areas import AREAS
from tests.fuzz.running import ROOT

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- counts -->\n", "<!-- end of counts -->\n"
GOOD = ("accepted", "refused")


def table(files: list[Path]) -> str:
    """Counts of several runs together, in Markdown, with a line that says which runs."""
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    lines = ["| Area | Cases | Accepted | Refused | Findings |", "|---|--:|--:|--:|--:|"]
    whole = Counter[str]()
    for area in AREAS:
        counts = Counter[str]()
        for run in runs:
            counts.update({name: count for name, count in run["areas"].get(area, {}).items() if name != "seconds"})
        lines.append(_row(area, counts))
        whole += counts
    lines.append(_row("all", whole))
    said = ", ".join(f"`make fuzz MINUTES={run['minutes']:g} SEED={run['seed']}` at {run['commit']}" for run in runs)
    return "\n".join([*lines, "", f"Counted by {said}.", ""])


def _row(name: str, counts: Counter[str]) -> str:
    cases = counts["cases"]
    findings = cases - sum(counts[kind] for kind in GOOD)
    return f"| {name} | {cases:,} | {counts['accepted']:,} | {counts['refused']:,} | {findings:,} |"


def main() -> None:
    """Write the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}{table(list(map(Path, sys.argv[1:])))}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
