"""What does not fit is refused in one line; sizes and times are told in words; progress tells the time left."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import vtc.needs as module
from vtc.amounts import duration, gigabytes
from vtc.errors import OutOfResources
from vtc.needs import Need, free_disk, refuse_what_cannot_fit
from vtc.progress import progress
from vtc.staging import open_work

GB = 10**9
NEED = Need(libraries=GB, work=8 * GB, mapped=100 * GB, gpu=2 * GB, disk=3 * GB)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with exactly what is needed."""
    monkeypatch.setattr(module, "available_ram", lambda: NEED.work)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=NEED.disk))


def test_what_just_fits_is_let_pass(tmp_path: Path) -> None:
    refuse_what_cannot_fit("it", NEED, "less", tmp_path, gpu=NEED.gpu)


@pytest.mark.parametrize("limit", ["ram", "gpu", "disk"])
def test_what_does_not_fit_is_refused_in_one_line(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if limit == "ram":
        monkeypatch.setattr(module, "available_ram", lambda: NEED.work - 1)
    if limit == "disk":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=NEED.disk - 1))
    with pytest.raises(OutOfResources) as refused:
        refuse_what_cannot_fit("it", NEED, "--less", tmp_path / "out", NEED.gpu - 1 if limit == "gpu" else None)
    assert (
        str(refused.value)
        == {
            "ram": "it takes about 8 GB of memory, and 8 GB are free; close other programs, or give --less",
            "gpu": "it takes about 2 GB of GPU memory, and 2 GB are free; give --less",
            "disk": f"it takes about 3 GB of disk at {tmp_path / 'out'}, and 3 GB are free; free some, or give -o on "
            "another disk",
        }[limit]
    )


def test_what_the_system_does_not_tell_refuses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_ram", lambda: None)
    monkeypatch.setattr(module, "free_disk", lambda _: None)
    refuse_what_cannot_fit("it", NEED, "less", tmp_path)


def test_what_an_interrupted_run_has_written_is_not_needed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, written = tmp_path / "out", 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=NEED.disk - written))
    with pytest.raises(OutOfResources):
        refuse_what_cannot_fit("it", NEED, "less", out)
    with open_work(out, "test") as work:
        work.claim("graph")
        (work.path / "graph").write_bytes(bytes(written))
    refuse_what_cannot_fit("it", NEED, "less", out)


def test_disk_is_that_of_the_nearest_directory_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=len(list(path.iterdir())))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert free_disk(tmp_path / "not" / "there") == 0
    assert asked[-1] == tmp_path


def test_two_at_once_take_both_and_libraries_once() -> None:
    both = NEED.beside(Need(libraries=1, work=1, mapped=1, gpu=1, disk=1))
    assert both == Need(GB, 8 * GB + 1, 100 * GB + 1, 2 * GB + 1, 3 * GB + 1)
    assert both.to_dict()["ram"] == 9 * GB + 1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (89, "89 s"), (90, "1.5 min"), (1500, "25 min"), (5400, "1.5 h"), (400_000, "111 h")],
)
def test_times_have_two_digits(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_sizes_have_three_digits() -> None:
    assert gigabytes(12_345_678_901) == "12.3 GB"


def test_plain_progress_tells_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 20.0, 40.0, 50.0, 80.0])
    monkeypatch.setattr("vtc.progress.time.monotonic", lambda: next(clock))
    out = io.StringIO()
    with progress(out) as tell:
        tell("training", 0, 10)
        tell("training (loss 3)", 2, 10)
        tell("training (loss 2)", 4, 10)
        tell("training (loss 1)", 10, 10)
        tell("training", 0, 10)  # another part
    assert out.getvalue().splitlines() == [
        "training (loss 3) 2/10, about 80 s left",
        "training (loss 2) 4/10, about 60 s left",
        "training (loss 1) 10/10",
        "training 0/10",
    ]
