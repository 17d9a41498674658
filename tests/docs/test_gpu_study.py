"""The study of a GPU: its steps, whatever happens to them, and the page that is made of what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from docs.studies import gpu, gpu_bundles, gpu_shapes, gpu_tables
from docs.studies.pages import filled
from docs.studies.unattended import Skip, Step, note, read, run_step, run_steps, write
from tests.runtime.toy import make_toy, write_toy_bundle
from vtc.runtime.options import RuntimeOptions
from vtc.runtime.vlm import VLM

ROOT = Path(__file__).parents[2]
HELLO = "from pathlib import Path; from docs.studies.unattended import *; path = Path(sys.argv[1]);"


def step(out: Path, name: str, code: str, **changes: Any) -> Step:
    """A step that runs some Python, which has its record's path in `path`."""
    command = [sys.executable, "-c", f"import os, subprocess, sys, time; {HELLO} {code}", str(out / f"{name}.json")]
    return Step(name, command, **{"estimate": 0, "limit": 30, **changes})


def run(steps: list[Step], out: Path, seconds: float = 60) -> list[dict[str, Any]]:
    return run_steps(steps, out, seconds, {"vtc": "1"}, ROOT, lambda _: None)


# Steps ----------------------------------------------------------------------------------------------------------------


def test_what_a_step_found_is_there_at_once_and_stays(tmp_path: Path) -> None:
    code = "note(path, one=1); assert read(path)['status'] == 'running'; note(path, two=[2])"
    (record,) = run([step(tmp_path, "good", code)], tmp_path)
    assert record == {
        "step": "good",
        "status": "done",
        "reason": "",
        "seconds": record["seconds"],
        "result": {"one": 1, "two": [2]},
        "vtc": "1",
    }
    assert read(tmp_path / "good.json") == record
    assert record["seconds"] > 0


def test_a_step_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    sleeper = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    code = f"child = {sleeper}; note(path, child=child.pid); time.sleep(600)"
    hanging, after = run(
        [step(tmp_path, "hangs", code, limit=1.5), step(tmp_path, "after", "note(path, ran=True)")], tmp_path
    )
    assert (hanging["status"], hanging["reason"]) == ("out of time", "stopped after 2 s; what it had found is here")
    assert after["result"] == {"ran": True}
    for _ in range(50):
        if not alive(hanging["result"]["child"]):
            break
        time.sleep(0.1)
    assert not alive(hanging["result"]["child"])


def alive(process: int) -> bool:
    """Whether a process runs; one that is dead and not yet collected does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("print('all is lost', file=sys.stderr); sys.exit(3)", "failed", "all is lost"),
        ("os._exit(3)", "failed", "exit code 3"),
        ("os.kill(os.getpid(), 11)", "failed", "ended by signal 11"),
        ("sys.exit(run_step(path, lambda: 1 / 0))", "failed", "ZeroDivisionError: division by zero"),
        ("\ndef work(): raise Skip('no GPU')\nsys.exit(run_step(path, work))", "skipped", "no GPU"),
    ],
)
def test_what_happened_to_a_step_is_told_in_one_line(tmp_path: Path, code: str, status: str, reason: str) -> None:
    (record,) = run([step(tmp_path, "bad", f"note(path, before=1); {code}")], tmp_path)
    assert (record["status"], record["reason"], record["result"]) == (status, reason, {"before": 1})


def test_a_step_whose_modules_are_missing_is_not_started(tmp_path: Path) -> None:
    (record,) = run([step(tmp_path, "bad", "note(path, ran=1)", needs=("json", "no_such.module"))], tmp_path)
    assert record["status"] == "skipped"
    assert record["reason"] == "needs no_such.module, which cannot be imported here"
    assert record["result"] == {}


def test_a_step_that_would_take_too_long_is_not_started_and_a_short_one_still_is(tmp_path: Path) -> None:
    steps = [
        step(tmp_path, name, "note(path, ran=1)", estimate=estimate) for name, estimate in (("long", 100), ("short", 1))
    ]
    long, short = run(steps, tmp_path, seconds=30)
    assert (long["status"], long["reason"]) == ("out of time", "takes about 100 s, and 30 s are left")
    assert (short["status"], short["result"]) == ("done", {"ran": 1})


def test_no_step_runs_beyond_the_budget(tmp_path: Path) -> None:
    begin = time.monotonic()
    (record,) = run([step(tmp_path, "slow", "note(path, ran=1); time.sleep(60)")], tmp_path, seconds=5)
    assert record["status"] == "out of time"
    assert record["result"] == {"ran": 1}
    assert time.monotonic() - begin < 9


def test_an_interrupted_run_ends_its_step_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, processes = subprocess.Popen.wait, []

    def wait(process: Any, timeout: float | None = None) -> int:
        processes.append(process)
        if len(processes) == 1:
            while not read(tmp_path / "slow.json")["result"]:
                time.sleep(0.02)
            raise KeyboardInterrupt
        return own(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        run([step(tmp_path, "slow", "note(path, ran=1); time.sleep(60)")], tmp_path)
    record = read(tmp_path / "slow.json")
    assert (record["status"], record["reason"], record["result"]) == ("stopped", "the run was interrupted", {"ran": 1})
    assert processes[0].poll() is not None


def test_a_record_is_whole_at_every_moment(tmp_path: Path) -> None:
    write(tmp_path / "a.json", {"result": {"one": 1}})
    note(tmp_path / "a.json", two=2)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert read(tmp_path / "a.json")["result"] == {"one": 1, "two": 2}
    assert run_step(tmp_path / "a.json", lambda: note(tmp_path / "a.json", one=3)) == 0


# What the steps do ----------------------------------------------------------------------------------------------------


def test_steps_are_in_one_list(tmp_path: Path) -> None:
    assert list(gpu.SECONDS) == list(gpu_tables.STEPS)
    for one in gpu.steps(tmp_path, None, tiny=False):
        assert gpu.work(one.name, tmp_path, tmp_path, tiny=False)
        assert one.estimate < one.limit
    assert [one.name for one in gpu.steps(tmp_path, None, True, ["tests", "doctor"])] == ["doctor", "tests"]


def test_the_driver_is_asked_for_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 575.1, 143771 MiB'\necho 'NVIDIA H200, 575.1, 143771 MiB'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpu_shapes.nvidia_smi() == {"name": "NVIDIA H200", "driver_version": "575.1", "memory.total": "143771 MiB"}
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert gpu_shapes.nvidia_smi() is None


def test_tests_are_counted_by_outcome(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(
        "<testsuites><testsuite><testcase classname='tests.a.test_b' name='good' time='0.5'/>"
        "<testcase classname='tests.a.test_b' name='bad' time='1'><failure message='no'/></testcase>"
        "<testcase classname='tests.a.test_b' name='left' time='0'><skipped message='no GPU'/></testcase>"
        "</testsuite></testsuites>"
    )
    found = gpu_shapes.cases(report)
    assert {kind: found[kind] for kind in ("passed", "failed", "skipped")} == dict.fromkeys(
        ("passed", "failed", "skipped"), 1
    )
    assert found["cases"][1] == {"name": "test_b::bad", "outcome": "failed", "seconds": 1.0, "reason": "no"}


def test_answers_of_a_bundle_are_compared_with_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_toy_bundle(make_toy(), tmp_path / "bundle")
    options = RuntimeOptions(provider="cpu")
    found = gpu_bundles.compared(bundle, options, questions=4)
    assert found == {"questions": 4, "equal_to_cpu": 4, "cpu": "fp32-portable"}

    other = write_toy_bundle(make_toy(seed=1), tmp_path / "other")
    load = VLM.load
    monkeypatch.setattr(
        VLM, "load", lambda path, options: load(bundle if options.precision is None else other, options)
    )
    assert gpu_bundles.compared(bundle, options, questions=4)["equal_to_cpu"] < 4


def test_without_bundles_there_is_nothing_to_run(tmp_path: Path) -> None:
    with pytest.raises(Skip, match="there is no bundle"):
        gpu_bundles.onnxruntime(tmp_path / "onnxruntime.json", True, tmp_path)


def test_a_variant_that_does_not_run_is_told_of_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, path = tmp_path / "reference-learnpruner", tmp_path / "onnxruntime.json"
    bundle.mkdir()
    (bundle / "manifest.json").write_text(json.dumps({"variants": [{"name": name} for name in ("fp32-ort", "fp16")]}))
    asked: list[str] = []

    def ran(command: list[str], _: float) -> str:
        asked.append(command[command.index("--precision") + 1])
        if len(asked) == 1:
            raise RuntimeError("CUDA is out of memory")
        return 'noise\n{"kind": "bench"}'

    monkeypatch.setattr(gpu_bundles, "_ran", ran)
    with pytest.raises(RuntimeError, match="reference-learnpruner fp16: CUDA is out of memory"):
        gpu_bundles.onnxruntime(path, True, tmp_path)
    assert asked == ["fp16-portable", "fp32-ort"]
    assert read(path)["result"] == {
        "reference-learnpruner fp16": {"error": "CUDA is out of memory"},
        "reference-learnpruner fp32-ort": {"kind": "bench"},
    }


# The page -------------------------------------------------------------------------------------------------------------


def test_a_run_becomes_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_shapes, "MEASURED", (("eager", 3, 1), ("graphs", 3, 1)))
    out = tmp_path / "results" / "here"
    out.mkdir(parents=True)
    facts = {"vtc": "9.9", "date": "2027-01-02", "gpu": "NVIDIA H200", "driver": "575.1", "reason": "", "seconds": 1.0}
    for name, status in (("doctor", "done"), ("shapes", "done"), ("tensorrt", "skipped")):
        write(out / f"{name}.json", {"step": name, "status": status, "result": {}, **facts})
    note(out / "doctor.json", torch={"version": "2.99"}, onnxruntime={"error": "not there"})
    gpu_shapes.shapes(out / "shapes.json", tiny=True)
    found = gpu_tables.results(tmp_path / "results")
    slots = "".join(f"<!-- table: {name} -->\n<!-- end -->\n" for name in gpu_tables.TABLES)
    page = filled(slots, found, gpu_tables.TABLES)
    assert "| here | NVIDIA H200 | 575.1 | torch 2.99 | 9.9 | 2027-01-02 |" in page
    assert "| here | tensorrt | skipped |" in page
    rows = [line for line in page.splitlines() if line.startswith(("| here | `tiny", "| here | `learnpruner"))]
    assert [row.split("|")[2].strip(" `") for row in rows] == ["tiny", "learnpruner", "tiny-siglip", "learnpruner"] * 2
    assert [row.split("|")[3].strip() for row in rows] == ["eager"] * 4 + ["graphs"] * 4
    assert page.count(gpu_tables.NOT_RUN) == 2  # variants and tests
    write(out / "doctor.json", {**read(out / "doctor.json"), "tiny": True})
    assert filled(slots, gpu_tables.results(tmp_path / "results"), gpu_tables.TABLES).count(gpu_tables.NOT_RUN) == 5


def test_without_results_the_page_says_so(tmp_path: Path) -> None:
    found = gpu_tables.results(tmp_path)
    assert {make(found) for _, make in gpu_tables.TABLES.values()} == {gpu_tables.NOT_RUN}
