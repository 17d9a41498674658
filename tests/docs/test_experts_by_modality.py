"""The study of experts by modality: its tables, and what its stored results promise."""

from __future__ import annotations

import json

from docs.studies.experts_by_modality import DEFAULT, PAGE, TABLES


def test_the_page_says_what_was_measured() -> None:
    results = json.loads(DEFAULT.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    for key, make in TABLES.values():
        assert key in results
        assert make(results) in page
    every, own = (results["times"][f"{name}, portable"] for name in ("all", "own"))
    assert every["prefill_ms"] >= 2 * own["prefill_ms"]
    assert every["flops"]["executed"] >= 2 * own["flops"]["executed"]
    rows = [results["accuracy"][keep]["frequency"] for keep in ("2", "4")]
    assert min(row["retention"] for row in rows) >= 0.99
    ways = results["skipped"]["0.7"]
    assert ways["by modality"]["ci95"][0] > ways["by router weight"]["ci95"][1]
