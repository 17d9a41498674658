"""Prepare, measure, and fill the page."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from docs.studies.pages import fill_tables
from docs.studies.peers import environment
from docs.studies.peers.contestants import Contestant, contestants
from docs.studies.peers.rounds import Processes, in_turns, tell
from docs.studies.peers.settings import SHAPE, Settings
from docs.studies.peers.tables import TABLES

DOCS = Path(__file__).resolve().parents[2]
RESULTS = DOCS / "results"
FILES = {"peers.json": ("decoder", "image", "cdpruner"), "peers_pages.json": ("pages",)}
"""Files of results, and the tables of contestants that are measured together for each."""
NAMES = tuple(name for names in FILES.values() for name in names)
"""Tables that contestants are in."""
SAME = ("shape", "layers", "vocabulary", "threads", "machine", "ours", "new_tokens")
"""What results of several runs must share."""


def chosen(settings: Settings, words: Sequence[str], names: Sequence[str]) -> list[Contestant]:
    """Contestants of these tables whose table or name has one of the words; all of them where none are given."""
    those = [one for one in contestants(settings) if one.table in names]
    return [one for one in those if not words or any(word in f"{one.table}: {one.name}" for word in words)]


def merged(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Results with those of earlier runs for tables that this run did not measure.

    Only those of the same machine, versions and sizes go together.
    """
    mine = {row["table"] for row in now["contestants"].values()}
    if not before or any(before[key] != now[key] for key in SAME):
        return dict(now)
    stay = {name: row for name, row in before["contestants"].items() if row["table"] not in mine}
    peers = {**before["peers"], **now["peers"]}
    if any(before["peers"].get(name, number) != number for name, number in now["peers"].items()):
        return dict(now)
    return {**now, "peers": peers, "contestants": {**stay, **now["contestants"]}}


def study(settings: Settings, those: Sequence[Contestant], environments: Path) -> dict[str, Any]:
    """All results of these contestants."""

    @cache
    def python(name: str) -> Path:
        tell(f"environment: {name}")
        return environment.peer_python(environments, name)

    processes = Processes(settings, python)
    told = {
        "shape": SHAPE,
        "layers": settings.layers or "as published",
        "vocabulary": settings.shape.decoder.vocab,
        "threads": settings.threads,
        "machine": environment.machine(),
        "ours": environment.versions(Path(sys.executable), environment.OURS),
        "new_tokens": settings.new_tokens,
        "repeats": settings.repeats,
    }
    told["peers"] = {
        package: number
        for name, peer in environment.PEERS.items()
        if any(one.environment == name for one in those)
        for package, number in environment.versions(python(name), peer.names).items()
    }
    results = {**told, "contestants": {}}

    def keep(found: dict[str, Any]) -> None:
        results["contestants"] = found
        (settings.work / "peers.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    failed = processes.prepare(those)
    in_turns(those, settings.rounds, processes.visit, keep, failed)
    return results


def main() -> None:
    """Measure, or only fill the tables from what was measured."""
    parser = argparse.ArgumentParser(prog="python -m docs.studies.peers", description=__doc__)
    parser.add_argument("--work", type=Path, help="where checkpoints, bundles and the peers' environment are kept")
    parser.add_argument("--layers", type=int, default=0, help="fewer layers, to try it out; results are not published")
    parser.add_argument("--vocabulary", type=int, default=0, help="fewer words; the same")
    parser.add_argument("--only", action="append", default=[], help="contestants with this in table or name; the same")
    parser.add_argument(
        "--table", action="append", default=[], choices=NAMES, help="measure this table's; others stay as they are"
    )
    parser.add_argument("--rounds", type=int, default=Settings.rounds)
    parser.add_argument("--repeats", type=int, default=Settings.repeats)
    parser.add_argument("--new-tokens", type=int, default=Settings.new_tokens)
    parser.add_argument("--threads", type=int, default=Settings.threads)
    parser.add_argument("--environments", type=Path, help="where the peers' environments are; in the work directory")
    parser.add_argument("--tables", action="store_true", help="only fill the tables")
    asked = parser.parse_args()
    if asked.tables:
        for name in FILES:
            fill_tables(DOCS / "performance.md", _read(name), TABLES[name])
        return
    if asked.work is None:
        parser.error("--work is needed: conversions take gigabytes and many minutes, and are kept")
    asked.work.mkdir(parents=True, exist_ok=True)
    sizes = asked.layers, asked.vocabulary, asked.rounds, asked.repeats, asked.new_tokens, asked.threads
    settings = Settings(asked.work.absolute(), *sizes)
    for name, tables in FILES.items():
        those = chosen(settings, asked.only, [table for table in tables if table in asked.table or not asked.table])
        if not those:
            continue
        results = study(settings, those, asked.environments or settings.work / "environments")
        if not settings.reduced and not asked.only:
            results = merged(_read(name), results)
            (RESULTS / name).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            fill_tables(DOCS / "performance.md", results, TABLES[name])
        for _, make in TABLES[name].values():
            print(make(results), end="\n\n")


def _read(name: str) -> dict[str, Any]:
    """Results of earlier runs; none where there was no run."""
    file = RESULTS / name
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


if __name__ == "__main__":
    main()
