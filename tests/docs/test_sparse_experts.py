"""The study of mixtures: its tables, and what its stored results promise."""

from __future__ import annotations

import json

from docs.studies.sparse_experts import CLOSE, DEFAULT, FORMS, PAGE, TABLES, TORCH


def test_the_page_says_what_was_measured() -> None:
    results = json.loads(DEFAULT.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    for _, make in TABLES.values():
        assert make(results) in page
    every, gathered, operator, q4, q4_operator, *_ = (results["onnxruntime"][form] for form in FORMS)
    assert every["prefill_ms"] >= 2 * operator["prefill_ms"]
    assert every["step_ms"] >= 4 * max(operator["step_ms"], gathered["step_ms"])
    assert max(gathered["logits_off"], operator["logits_off"]) <= CLOSE
    held = [results["memory"][form]["own_mb"] + results["memory"][form]["mapped_mb"] for form in FORMS]
    assert max(held[:3]) <= 1.05 * held[0]  # the experts are there once
    assert 6 * q4["files_mb"] < every["files_mb"]
    assert 2.5 * held[4] < held[0]
    assert 2 * q4_operator["step_ms"] < operator["step_ms"]
    assert q4["step_ms"] < every["step_ms"] / 2
    kinds = results["operators"]
    assert all(kind["1_off"] < 1e-5 for name, kind in kinds.items() if "as they are" in name)
    assert all(1e-3 < kind["1_off"] < 3e-2 for name, kind in kinds.items() if "in 8 bits" in name)
    routed = [results["pytorch"][form] for form in TORCH]
    assert all(min(one[name] for one in routed if one[name]) == routed[0][name] for name in routed[0])
