"""Builds that were interrupted or cannot fit, and what does not go together."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import exporters.tensorrt.memory as memory
from exporters.tensorrt.build import build
from exporters.tensorrt.builder import Builder
from exporters.tensorrt.memory import GIB, available_ram, check_memory, need
from tests.exporters.tensorrt.building import NANO, RTX, request
from tests.marks import needs_rtx
from vtc.artifact import staging_dir
from vtc.bundle.engines import Limits, load_engines
from vtc.bundle.manifest import Manifest
from vtc.errors import InputError
from vtc.runtime.nvidia import Gpu
from vtc.staging import open_work

pytestmark = needs_rtx


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that fills with the names of graphs that are built."""
    done: list[str] = []
    real = Builder.build

    def building(self: Builder, graph: Path, *rest: Any) -> Any:
        result = real(self, graph, *rest)
        done.append(graph.stem)
        return result

    monkeypatch.setattr(Builder, "build", building)
    return done


def interrupted(bundle: Manifest, out: Path, at: str, **options: Any) -> None:
    def stop(label: str, *_: int) -> None:
        if label == f"building {at}":
            raise OSError("stop")

    with pytest.raises(OSError, match="stop"):
        build(request(bundle, progress=stop, **options), out)
    assert not out.exists()


def test_interrupted_build_is_taken_up_again(bundle: Manifest, tmp_path: Path, counted: list[str]) -> None:
    out = tmp_path / "engines"
    interrupted(bundle, out, "decoder_segment_0")
    assert counted == ["vision_encoder", "embed_tokens"]
    build(request(bundle), out)
    assert counted == list(bundle.graphs)
    load_engines(out, bundle)


@pytest.mark.parametrize("options", [{"limits": Limits(text=20)}, {"capabilities": ("8.9",)}, {"workspace": 0.5}])
def test_what_was_built_for_something_else_is_built_again(
    bundle: Manifest, tmp_path: Path, counted: list[str], options: dict[str, Any]
) -> None:
    interrupted(bundle, tmp_path / "engines", "embed_tokens")
    build(request(bundle, **options), tmp_path / "engines")
    assert counted == ["vision_encoder", *bundle.graphs]


def test_half_written_engine_is_not_trusted(bundle: Manifest, tmp_path: Path, counted: list[str]) -> None:
    out = tmp_path / "engines"
    interrupted(bundle, out, "decoder_segment_0")
    with open_work(out, "test") as work:
        work.claim("*.engine")
        (work.path / "embed_tokens.engine").write_bytes(b"half")
        (work.path / "of_another_bundle.engine").write_bytes(b"old")
    built = build(request(bundle), out)
    assert counted == ["vision_encoder", "embed_tokens", *list(bundle.graphs)[1:]]
    assert not (built.root / "of_another_bundle.engine").exists()


def test_a_build_that_cannot_fit_is_refused_before_it_begins(
    bundle: Manifest, tmp_path: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_ram", lambda: 2**20)
    with pytest.raises(InputError, match=r"onnx/vision_encoder.onnx: .* 0.5 GiB of RAM, and 0.0 GiB are free; stop"):
        build(request(bundle), tmp_path / "engines")
    assert counted == []
    assert not staging_dir(tmp_path / "engines").exists()


def test_memory_that_a_build_takes() -> None:
    assert need(GIB, runs=False, tensors=5, workspace=GIB).device == 0
    wanted = need(GIB, runs=True, tensors=GIB, workspace=2 * GIB)
    assert (wanted.ram, wanted.device) == (3.75 * GIB, 4 * GIB)
    check_memory("g", wanted, Gpu("8.9", 4 * GIB, integrated=False), available=4 * GIB)
    check_memory("g", wanted, NANO, available=8 * GIB)
    with pytest.raises(InputError, match=r"7.8 GiB of RAM, and 7.0 GiB are free; .* give less --workspace"):
        check_memory("g", wanted, NANO, available=7 * GIB)
    with pytest.raises(InputError, match=r"4.0 GiB of GPU memory, and the GPU has 3.0 GiB; give less --workspace"):
        check_memory("g", wanted, Gpu("8.9", 3 * GIB, integrated=False), available=4 * GIB)


def test_memory_that_there_is(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9 kB\nMemAvailable:  7 kB\nSwapFree:  2 kB\nHugePages_Total:  0\n")
    assert available_ram(meminfo) == 9 * 1024
    assert available_ram(tmp_path / "none") is None
    assert (available_ram() or GIB) > 2**20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"capabilities": ("8.6", "9.9")}, "does not build for SM 9.9; give --capability 7.5, 8.0, 8.6,"),
        ({"timing_cache": Path("t")}, "has no timing cache; leave --timing-cache out"),
        (
            {"precision": "int8"},
            "holds no int8 graphs, only fp32; give another --precision, or export it with --precision int8",
        ),
    ],
)
def test_what_does_not_go_together(
    bundle: Manifest, tmp_path: Path, counted: list[str], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        build(replace(request(bundle), **options), tmp_path / "engines")
    assert counted == []


def test_lint_comes_first(bundle: Manifest, tmp_path: Path, counted: list[str]) -> None:
    old = replace(RTX, max_opset=12)
    with pytest.raises(InputError, match=r"cannot take fp32 of this bundle: .*opset \d+ is above 12"):
        build(request(bundle, target=old), tmp_path / "engines")
    assert counted == []
