"""The demo's closing table is made of what a manifest and the reports really hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.sizes import SMALL
from vtc.cli.demo import show, summarise
from vtc.plan import plan
from vtc.recipe import NONE, load_recipe


def test_summary_is_taken_from_plan_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bundle").mkdir()
    recipe = load_recipe("fastervlm-25")
    manifest = {
        "plan": plan(recipe, SMALL).to_dict(),
        "baseline_plan": plan(NONE, SMALL).to_dict(),
        "parity": {"fp32": {"greedy_match": 1.0, "logits_max_diff": 1e-5}},
    }
    judged = {"base": 0.9, "accuracy": 0.8, "retention": 0.889, "ci95": [0.8, 0.95], "n": 60}
    validated = {
        "results": {"bundle": judged},
        "gate": {"status": "pass"},
        "baselines": {"random": {"accuracy": 0.5}},
    }
    runs = [{"ttft_ms": {"p50": 20.0}}, {"ttft_ms": {"p50": 10.0}}]
    measured = {"runs": runs, "speedup": {"ttft": 2.0}}
    for name, content in (("bundle/manifest", manifest), ("validate", validated), ("bench", measured)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    summary = summarise(tmp_path, recipe.name, 0.0)
    assert (summary["tokens_in"], summary["keep"]) == (256, 64)
    show(summary)
    assert "256" in capsys.readouterr().out
