"""The study of peers measures in turns, goes on without those that fail, and says what it found."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from docs.studies import scaling
from docs.studies.pages import filled
from docs.studies.peers import rounds, tables
from docs.studies.peers.__main__ import FILES, NAMES, SAME, merged
from docs.studies.peers.answers import Answer, Task
from docs.studies.peers.contestants import Contestant, contestants
from docs.studies.peers.preparing import STEPS, mark
from docs.studies.peers.rounds import Failed, Processes, in_turns, summary
from docs.studies.peers.settings import SHORT, TEXT_TOKENS, Settings
from docs.studies.peers.worker import measured, visit
from tests.runtime.toy import WORDS, make_toy, write_toy_bundle

TASK = Task((6, 9), new_tokens=4, repeats=2, threads=1, vocabulary=len(WORDS))
PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def contestant(name: str, table: str = "decoder") -> Contestant:
    return Contestant(name, table, "ours", {"bundle": "nowhere"}, TASK, (("models",),))


class Fake:
    """Takes as long as it says."""

    def __init__(self, sees: int = 0) -> None:
        self.asked: list[tuple[tuple[int, ...], int]] = []
        self._sees = sees

    def answer(self, ids: Sequence[int], new_tokens: int) -> Answer:
        self.asked.append((tuple(ids), new_tokens))
        steps = [float(len(ids))] * (new_tokens - 1)
        return Answer(10.0 * len(ids), steps, None, [0.8 * step for step in steps], self._sees or len(ids))

    def answer_image(self, length: int, new_tokens: int, number: int) -> Answer:
        self.asked.append(((length, number), new_tokens))
        return Answer(7.0, [1.0] * (new_tokens - 1), 3.0)

    def facts(self) -> Mapping[str, Any]:
        return {"bytes": 5_000_000}


def test_every_second_round_goes_backwards() -> None:
    order: list[str] = []

    def told(one: Contestant) -> dict[str, Any]:
        order.append(one.name)
        return {"figures": {"load": [float(len(order))]}, "facts": {}}

    after: list[int] = []
    found = in_turns([contestant(name) for name in "abc"], 3, told, lambda so_far: after.append(so_far["a"]["rounds"]))
    assert "".join(order) == "abccbaabc"
    assert after == [1, 2, 3]
    assert found["a"]["figures"]["load"] == summary([1.0, 6.0, 7.0])


def test_whoever_fails_is_told_of_and_the_others_go_on() -> None:
    order: list[str] = []

    def told(one: Contestant) -> dict[str, Any]:
        order.append(one.name)
        if one.name == "b" and len(order) > 3:
            raise Failed("ended by signal 11")
        return {"figures": {"load": [1.0]}, "facts": {}}

    found = in_turns([contestant(name) for name in "abcd"], 3, told, failed={"d": "cannot be prepared: no space"})
    assert "".join(order) == "abccbaac"
    assert found["b"] == {"table": "decoder", "failed": "ended by signal 11"}
    assert found["d"]["failed"] == "cannot be prepared: no space"
    assert found["a"]["rounds"] == found["c"]["rounds"] == 3


def test_summary_has_median_and_quartiles() -> None:
    assert summary([5.0, 1.0, 2.0, 4.0, 3.0]) == {"median": 3.0, "min": 1.0, "q1": 2.0, "q3": 4.0, "n": 5}
    assert summary([2.0]) == {"median": 2.0, "min": 2.0, "q1": 2.0, "q3": 2.0, "n": 1}


def test_a_visit_warms_up_and_never_asks_the_same_twice() -> None:
    engine = Fake()
    figures = measured(engine, TASK)
    assert [(len(ids), tokens) for ids, tokens in engine.asked] == [(6, 2), (6, 4), (6, 4), (9, 2), (9, 4), (9, 4)]
    assert len({ids for ids, _ in engine.asked}) == 6
    assert figures["prefill_6"] == [60.0, 60.0]
    assert figures["tpot_9"] == [9.0, 9.0]
    assert figures["overhead_9"] == pytest.approx([0.25, 0.25])
    assert "vision" not in figures


def test_a_visit_about_an_image_tells_of_its_encoder() -> None:
    figures = measured(Fake(), Task((9,), 4, 2, 1, len(WORDS), image_side=8, kept=4))
    assert figures == {"ttft_9": [7.0, 7.0], "tpot_9": [1.0, 1.0], "vision": [3.0, 3.0]}


def test_a_contestant_that_sees_another_prompt_is_refused() -> None:
    with pytest.raises(AssertionError, match="6 tokens were asked for, and 7 were prefilled"):
        measured(Fake(sees=7), TASK)


def test_a_visit_to_a_bundle_of_ours(tmp_path: Path) -> None:
    bundle = write_toy_bundle(make_toy(), tmp_path / "bundle")
    options = {"bundle": str(bundle), "precision": "fp32-portable"}
    task = {"contexts": [6, 9], "new_tokens": 3, "repeats": 2, "threads": 1, "vocabulary": len(WORDS)}
    told = visit({"engine": "ours", "options": options, "task": task})
    figures = told["figures"]
    assert {name: len(values) for name, values in figures.items()} == {
        **{f"{kind}_{length}": 2 for kind in ("prefill", "tpot", "overhead") for length in (6, 9)},
        **dict.fromkeys(("load", "before_load_mb", "peak_mb"), 1),
    }
    assert min(figures["prefill_9"] + figures["tpot_9"] + figures["overhead_9"]) > 0
    assert told["facts"]["variant"] == "fp32"
    graphs = ("embed_tokens", "decoder_model_merged")
    assert told["facts"]["bytes"] == sum((bundle / "onnx" / f"{name}.onnx").stat().st_size for name in graphs)


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    processes = Processes(Settings(tmp_path), lambda _: Path(sys.executable))
    with pytest.raises(Failed, match=r"^nowhere: "):
        processes.visit(contestant("a"))
    inside = replace(contestant("a"), options={"bundle": str(tmp_path / "b"), "precision": "fp32"})
    with pytest.raises(Failed, match=r"^b: "):  # results are published: without the machine's own directories
        processes.visit(inside)


def test_a_step_that_fails_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Sequence[str]] = []

    def run(_self: Processes, _environment: str, _module: str, step: Sequence[str], _given: str) -> str:
        ran.append(step)
        raise Failed("no space")

    monkeypatch.setattr(rounds.Processes, "_run", run)
    processes = Processes(Settings(tmp_path), lambda _: Path(sys.executable))
    assert processes.prepare([contestant("a"), contestant("b")]) == dict.fromkeys("ab", "cannot be prepared: no space")
    assert ran == [("models",)]
    mark(tmp_path, ("models",)).parent.mkdir()
    mark(tmp_path, ("models",)).touch()
    assert Processes(Settings(tmp_path), lambda _: Path(sys.executable)).prepare([contestant("a")]) == {}


def test_contestants_have_names_of_their_own_and_steps_that_exist(tmp_path: Path) -> None:
    settings = Settings(tmp_path)
    everyone = contestants(settings)
    assert len({one.name for one in everyone}) == len(everyone)
    assert {step[0] for one in everyone for step in one.needs} <= set(STEPS)
    assert {one.table for one in everyone} == set(NAMES)
    lengths = {one.task.contexts[0] for one in everyone if one.table == "image"}
    assert lengths == {SHORT, settings.visual_tokens + TEXT_TOKENS}


def results() -> dict[str, Any]:
    def row(prefill: float, tpot: float, **more: float) -> dict[str, Any]:
        times = {f"prefill_{n}": prefill for n in (110, 800)} | {f"tpot_{n}": tpot for n in (110, 800)}
        return {
            "table": "decoder",
            "figures": {
                name: summary([value] * 3) for name, value in {**times, "load": 900, "peak_mb": 5, **more}.items()
            },
            "facts": {"bytes": 5_000_000},
        }

    return {
        "threads": 2,
        "machine": {"processor": "P", "cores": 2, "flags": ["avx2"], "memory_gib": 8},
        "ours": {"vtc": "1"},
        "contestants": {
            "vtc fp32": row(100, 50),
            "vtc fp32-ort": row(90, 40, overhead_110=0.02, overhead_800=0.01),
            "ONNX Runtime GenAI fp32": row(180, 30),
            "ONNX Runtime GenAI int4": {"table": "decoder", "failed": "a | b"},
        },
    }


def test_a_run_of_one_table_leaves_the_others() -> None:
    same = dict.fromkeys(SAME, 1)
    before = {**same, "peers": {"a": "1"}, "contestants": {"x": {"table": "image"}, "y": {"table": "decoder"}}}
    now = {**same, "peers": {"b": "1"}, "contestants": {"z": {"table": "decoder"}}}
    found = merged(before, now)
    assert found["contestants"] == {"x": {"table": "image"}, "z": {"table": "decoder"}}
    assert found["peers"] == {"a": "1", "b": "1"}
    assert merged(before, now | {"machine": 2}) == now | {"machine": 2}
    assert merged(before, now | {"peers": {"a": "2"}}) == now | {"peers": {"a": "2"}}
    assert merged({}, now) == now


def test_tables_show_figures_reasons_and_ratios() -> None:
    rows = tables.decoder(results()).splitlines()
    prefill, token = "100 [100, 100]", "50.0 [50.0, 50.0]"
    assert rows[2] == f"| vtc fp32 | {prefill} | {prefill} | {token} | {token} | 0.9 [0.9, 0.9] | 5 | 5 |"
    assert rows[5] == "| ONNX Runtime GenAI int4 | not measured: a \\| b |  |  |  |  |  |  |"
    (overhead,) = tables.overhead(results()).splitlines()[2:]
    assert overhead == "| vtc fp32-ort | 2.00 [2.00, 2.00] | 1.00 [1.00, 1.00] |"
    first = tables.ratios(results()).splitlines()[2]
    assert first.startswith(
        "| float32 | prefill 110 | vtc fp32-ort | 90.0 | ONNX Runtime GenAI fp32 | 180.0 | **2.00** | 2.00 |"
    )
    assert "**0.75**" in tables.ratios(results())


def test_decoders_are_measured_in_both_sizes_of_pages(tmp_path: Path) -> None:
    those = [one for one in contestants(Settings(tmp_path)) if one.table == "pages"]
    assert len(those) == 8
    for small, large in zip(those[::2], those[1::2], strict=True):
        assert small.request == large.request
        asked = [one.variables["GLIBC_TUNABLES"] for one in (small, large)]
        assert asked == ["glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=1"]
    found = results()
    found["contestants"] = {"vtc q4-ort, 2 MiB": found["contestants"]["vtc fp32"] | {"table": "pages"}}
    (row,) = tables.pages(found).splitlines()[2:]
    token = "50.0 [50.0, 50.0]"
    assert row == f"| vtc q4-ort, 2 MiB | {token} | {token} | 50.0 | 50.0 | 0.9 [0.9, 0.9] |"


def test_every_table_has_its_place_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert set(tables.TABLES) == set(FILES)
    for name in (*(name for those in tables.TABLES.values() for name in those), *scaling.TABLES):
        assert f"<!-- table: {name} -->" in text
    full = filled(text, results(), tables.TABLES["peers.json"])
    assert "Not measured yet: `python -m docs.studies.peers --work DIR --table cdpruner` fills this." in full
    assert "| vtc fp32-ort | 90" in full
    assert full.count("<!-- table:") == full.count("<!-- end -->") == text.count("<!-- table:")
