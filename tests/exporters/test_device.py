"""What goes to a device: a script that a shell takes, with shapes of the bundle, and a page that says what is true."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from exporters.device import PAGE, SCRIPT, graph_inputs, write_device_files
from exporters.target import Target
from exporters.targets import target
from exporters.tensorrt.profiles import profiles
from tests.runtime.conftest import TOYS
from tests.runtime.toy import write_toy_bundle
from vtc.bundle.engines import Limits
from vtc.bundle.manifest import Manifest, load_manifest

ORIN, RTX = target("jetson-orin-jp6"), target("rtx")


@pytest.fixture(params=["one segment", "skipped in the middle"])
def manifest(request: pytest.FixtureRequest, tmp_path: Path) -> Manifest:
    return load_manifest(write_toy_bundle(TOYS[request.param], tmp_path / "bundle"))


def run(script: Path, tools: Path, *arguments: str) -> list[list[str]]:
    """Command lines of the tools that a script calls, with stand-ins for them that only say what they were given."""
    tools.mkdir(exist_ok=True)
    for tool in ("vtc", "trtexec", "tensorrt_rtx"):
        (tools / tool).write_text(f'#!/bin/sh\nprintf "%s\\n" "{tool}" "$@" end >> "{tools}/calls"\n')
        (tools / tool).chmod(0o755)
    subprocess.run(["sh", script, *arguments], check=True, env={"PATH": f"{tools}:/usr/bin:/bin"})
    return [call.split("\n") for call in (tools / "calls").read_text().removesuffix("\nend\n").split("\nend\n")]


def test_the_script_builds_every_precision_that_the_target_has(manifest: Manifest, tmp_path: Path) -> None:
    write_device_files(manifest.root, manifest, [ORIN])
    calls = run(manifest.root / SCRIPT, tmp_path / "tools")

    assert calls == [["vtc", "build", ".", "--target", ORIN.name, "--precision", one] for one in manifest.precisions]


def test_trtexec_gets_the_shapes_that_vtc_builds_for(manifest: Manifest, tmp_path: Path) -> None:
    limits = Limits(batch=2, text=30)
    write_device_files(manifest.root, manifest, [ORIN], limits)
    calls = run(manifest.root / SCRIPT, tmp_path / "tools", "trtexec")

    precision = manifest.precisions[0]
    expected = {
        (paths[precision], profile.name): profile
        for graph, paths in manifest.graphs.items()
        for profile in profiles(manifest, graph, graph_inputs(manifest.graph(graph, precision)), limits)
    }
    assert len(calls) == len(expected) * len(manifest.precisions)
    for call in calls[: len(expected)]:
        options = dict(option.split("=", 1) for option in call[1:] if "=" in option)
        profile = expected[options["--onnx"], options["--saveEngine"].split(".")[-2]]
        for which, option in enumerate(("--minShapes", "--optShapes", "--maxShapes")):
            shapes = dict(shape.split(":") for shape in options[option].split(","))
            assert {name: tuple(map(int, sizes.split("x"))) for name, sizes in shapes.items()} == {
                name: three[which] for name, three in profile.shapes.items()
            }


def test_several_targets_get_a_script_each(manifest: Manifest) -> None:
    write_device_files(manifest.root, manifest, [ORIN, RTX])

    for one in (ORIN, RTX):
        script = manifest.root / f"build-{one.name}.sh"
        assert f"--target {one.name}" in script.read_text()
        assert f"sh {script.name}" in (manifest.root / PAGE).read_text()


def test_a_precision_that_the_target_lacks_is_left_out(manifest: Manifest, tmp_path: Path) -> None:
    none: Target = replace(ORIN, precisions=manifest.precisions[:1])
    write_device_files(manifest.root, manifest, [none])

    assert {call[-1] for call in run(manifest.root / SCRIPT, tmp_path / "tools")} == {manifest.precisions[0]}


def test_the_page_tells_tokens_sizes_and_clocks(manifest: Manifest) -> None:
    write_device_files(manifest.root, manifest, [ORIN])
    page = (manifest.root / PAGE).read_text()

    served = manifest.images[0]
    assert f"{served.keep_per_span} of {served.tokens_per_span} visual tokens" in page
    assert re.search(r"\| memory, full KV cache \| [\d.,]+ MB", page)
    assert "nvpmodel" in page
    assert "nvidia-smi" not in page
    assert not re.search(r"[{}]", page)


def test_a_jetson_is_not_sent_to_a_provider_that_it_lacks(manifest: Manifest) -> None:
    write_device_files(manifest.root, manifest, [ORIN])
    page = (manifest.root / PAGE).read_text()

    assert "vtc run . --provider cuda" not in page
    assert "make wheel" in page
    assert "scp" in page
    assert "Engines run only on the kind of GPU" in page


def test_rtx_is_built_by_the_tool_of_its_own_library(manifest: Manifest, tmp_path: Path) -> None:
    write_device_files(manifest.root, manifest, [RTX])
    calls = run(manifest.root / SCRIPT, tmp_path / "tools", "tensorrt_rtx")
    page = (manifest.root / PAGE).read_text()

    assert {call[0] for call in calls} == {"tensorrt_rtx"}
    assert "trtexec" not in (manifest.root / SCRIPT).read_text()
    assert "Engines run only on the kind of GPU" not in page


def test_the_page_names_no_directory_of_the_machine_that_exported(manifest: Manifest) -> None:
    made = replace(manifest, model={**manifest.model, "name": "/models/private/llava"})
    write_device_files(made.root, made, [ORIN])

    assert "/models" not in (made.root / PAGE).read_text()
