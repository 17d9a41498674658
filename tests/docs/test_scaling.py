"""The study of scaling measures prefill and steps in turns, beside exact FLOPs."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.studies import scaling
from docs.studies.peers.settings import Settings
from tests.runtime.toy import WORDS, make_toy, write_toy_bundle
from vtc.runtime.options import RuntimeOptions

PROMPTS = [scaling.Point("visual", 4, 3), scaling.Point("visual", 12, 3), scaling.Point("text", 4, 9)]


def test_points_grow_one_part_at_a_time() -> None:
    every = scaling.points()
    assert [point.visual for point in every if point.grows == "visual"] == list(scaling.VISUAL)
    assert [point.text for point in every if point.grows == "text"] == list(scaling.TEXT)
    assert max(point.tokens for point in scaling.points(500)) <= 500 < max(point.tokens for point in every)


def test_square_is_what_doubling_the_tokens_more_than_doubles(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    one, two = scaling.predicted(settings, [scaling.Point("text", 0, 100), scaling.Point("text", 0, 200)])
    head = scaling.head_flops(scaling.facts_of(settings.shape).decoder)
    linear = one["flops"] - one["square"] - head
    assert two["flops"] == 2 * linear + 4 * one["square"] + head
    assert one["square"] > 0


def test_every_prompt_is_measured_as_often_in_every_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "IDS", (0, len(WORDS)))
    bundle = write_toy_bundle(make_toy(), tmp_path / "bundle")
    models = {name: scaling.decoder_of(bundle, RuntimeOptions(verify=False)) for name in ("a", "b")}
    found = scaling.measure(models, PROMPTS, 2)
    assert list(found) == ["a", "b"]
    for rows in found.values():
        assert [(row["grows"], row["visual"], row["text"]) for row in rows] == [
            (point.grows, point.visual, point.text) for point in PROMPTS
        ]
        assert all(row[kind]["n"] == 2 and row[kind]["min"] > 0 for row in rows for kind in ("prefill", "token"))


def test_the_line_goes_through_the_best_rate() -> None:
    work = [{"tokens": 10, "flops": 1000, "square": 100}, {"tokens": 20, "flops": 2000, "square": 400}]
    rows = [
        {"grows": "visual", "visual": count, "text": 0, "prefill": {"median": took}, "token": {"median": 1.0}}
        for count, took in ((10, 4.0), (20, 5.0))
    ]
    results = {"predicted": work, "variants": {"fp32": rows}}
    assert scaling.rate(results, "fp32") == 400
    body = scaling.scaling_table(results).splitlines()[2:]
    assert body == ["| 10 | 0 | 10 % | 4 | 1.60 | 1.0 |", "| 20 | 0 | 20 % | 5 | 1.00 | 1.0 |"]


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from docs.studies.scaling_plot import draw

    summary = {"median": 4.0, "q1": 3.0, "q3": 5.0}
    rows = [
        {"grows": grows, "visual": 32, "text": 32, "prefill": summary, "token": summary} for grows in ("visual", "text")
    ]
    work = [{"tokens": 64, "flops": 1000, "square": 100}] * 2
    draw({"predicted": work, "variants": {"fp32": rows}}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
