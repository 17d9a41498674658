"""`--backend openvino` and `vtc doctor`, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from exporters import available
from exporters.available import RUNTIMES
from tests.evaluate.bundles import bundle_with_plan
from tests.runtime.openvino.test_openvino import needs_bf16
from tests.runtime.toy import make_toy
from tests.tiny import image
from vtc.cli import main
from vtc.errors import MissingDependency
from vtc.runtime.openvino import device
from vtc.runtime.vlm import VLM

QUICK = ("--repeats", "2", "--warmup", "1", "--max-new-tokens", "3", "--threads", "1")


def vtc(*args: str | Path) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="vtc")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy with a plan."""
    return bundle_with_plan(make_toy(keep=3), tmp_path_factory.mktemp("bundles") / "pruned")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    image(0).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_an_answer_says_what_gave_it(bundle: Path, picture: Path) -> None:
    asked = ("run", bundle, "--image", picture, "--prompt", "what is red", "--json")
    answers = [json.loads(vtc(*asked, *more).stdout) for more in ((), ("--backend", "openvino", "--threads", "1"))]
    assert answers[0]["token_ids"] == answers[1]["token_ids"]
    assert [answers[1][key] for key in ("backend", "provider", "precision")] == ["openvino", "openvino CPU", "fp32"]


@needs_bf16
def test_bench_tells_what_is_computed_in(bundle: Path, picture: Path) -> None:
    asked = ("bench", bundle, "--against", bundle, "--image", picture, "--prompt", "what ?", *QUICK, "--json")
    result = vtc(*asked, "--backend", "openvino", "--precision", "bf16")
    assert result.exit_code == 0, result.output
    for run in json.loads(result.stdout)["runs"]:
        assert (run["precision"], run["provider"]) == ("bf16", "openvino CPU")
        assert run["tpot_ms"]["p50"] > 0
    model = VLM.load(bundle, backend="openvino", precision="bf16")
    assert model.backend.exported == "fp32"  # what a checkpoint is exported in that is to be timed beside it


def test_a_shape_is_not_timed_in_it() -> None:
    result = vtc("bench", "--shape", "llava-onevision-0.5b", "--backend", "openvino")
    assert result.exit_code == 2
    assert "--backend openvino goes with a BUNDLE" in result.stderr


def test_doctor_and_targets_know_it(monkeypatch: pytest.MonkeyPatch) -> None:
    report = json.loads(vtc("doctor", "--json").stdout)
    (package,) = [one for one in report["packages"] if one["name"] == "openvino"]
    assert (package["extra"], bool(package["version"])) == ("openvino", True)
    works = {one["name"]: one["works"] for one in report["targets"]}
    assert works["openvino-cpu"]
    (cpu,) = json.loads(vtc("ls", "targets", "openvino-cpu", "--json").stdout)["targets"]
    assert (cpu["available"], cpu["backend"], cpu["provider"]) == (True, "openvino", "cpu")

    def missing() -> None:
        raise MissingDependency("openvino cannot be imported (no module): pip install 'vtc[openvino]'")

    monkeypatch.setattr(device, "core", missing)
    (runtime,) = [one for one in RUNTIMES if one.name == "openvino-cpu"]
    assert available.what_is_missing(runtime).startswith("openvino cannot be imported")
    assert runtime.install == "pip install 'vtc[openvino]'"
