"""``vtc optimize`` adds variants to a bundle, tells what they are, and leaves the bundle alone where it cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.exporters.conftest import exports_of
from tests.exporters.test_optimising import WIDE
from tests.tiny import write_checkpoint
from vtc.bundle.manifest import load_manifest
from vtc.cli import main
from vtc.models import load_adapter


def optimize(*args: str | Path) -> Result:
    return CliRunner().invoke(main, ["optimize", *map(str, args)], prog_name="vtc")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, as it is."""
    path = write_checkpoint(tmp_path_factory.mktemp("models") / "wide", like=WIDE)
    return exports_of(load_adapter(path), tmp_path_factory.mktemp("bundles"))("none")[1]


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "bundle")


def test_bundle_is_replaced_by_one_with_variants(bundle: Path) -> None:
    result = optimize(bundle, "--for", "cpu", "--samples", "1")
    assert result.exit_code == 0, result.output
    assert f"{bundle}: fp32-ort computes what fp32 does, by 1 prompts: logits within" in result.stdout
    assert f"next: vtc bench {bundle} --precision fp32-ort" in result.stderr
    assert [one.name for one in load_manifest(bundle).variants] == ["fp32", "fp32-ort"]


def test_json_and_another_directory(bundle: Path, tmp_path: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    result = optimize(bundle, "--variant", "fp32-ort,fp32-opset23", "-o", tmp_path / "out", "--samples", "1", "--json")
    found = json.loads(result.stdout)
    assert (found["kind"], found["out"]) == ("optimize", str(tmp_path / "out"))
    assert {name: one["greedy_match"] for name, one in found["variants"].items()} == {
        "fp32-ort": 1.0,
        "fp32-opset23": 1.0,
    }
    assert (bundle / "manifest.json").read_bytes() == before
    assert len(load_manifest(tmp_path / "out").variants) == 3


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--variant", "q4-ort"], "holds no q4 graphs, only fp32"),
        (["--variant", "fp32-quick"], "variant 'fp32-quick' is not known; variants: fp32, fp32-ort"),
        (["--variant", "fp32"], "fp32 is a precision, which only vtc export writes"),
        (["--for", "abacus"], "'abacus' is not one of 'cpu', 'cuda'"),
    ],
)
def test_bad_input_is_one_line(bundle: Path, args: list[str], line: str) -> None:
    before = (bundle / "manifest.json").read_bytes()
    result = optimize(bundle, *args)
    assert result.exit_code == 2
    assert line in result.stderr
    assert len([one for one in result.stderr.splitlines() if "error" in one or "vtc" in one]) == 1
    assert (bundle / "manifest.json").read_bytes() == before
