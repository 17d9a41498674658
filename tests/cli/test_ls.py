"""`vtc ls`: everything that can be chosen is listed."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from exporters import available
from exporters.available import RUNTIMES
from exporters.targets import TARGETS as ENGINE_TARGETS
from exporters.targets import target
from vtc.cli import main
from vtc.models import FAMILIES
from vtc.recipe import SELECTORS, builtin_recipes, load_recipe
from vtc.reference import SHIPPED
from vtc.runtime import nvidia


def listed(what: str) -> list[dict[str, Any]]:
    """Entries as JSON."""
    result = CliRunner().invoke(main, ["ls", what, "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["kind"] == "ls"
    entries: list[dict[str, Any]] = data[what]
    return entries


def test_models_are_the_reference_and_the_families() -> None:
    models = listed("models")
    assert [entry["name"] for entry in models[: len(SHIPPED)]] == list(SHIPPED)
    assert [entry["family"] for entry in models[len(SHIPPED) :]] == list(FAMILIES)


def test_selectors_come_from_the_table() -> None:
    assert [entry["name"] for entry in listed("selectors")] == list(SELECTORS)
    assert all(entry["summary"] and entry["needs"] and entry["where"] for entry in listed("selectors"))


def test_recipes_are_the_shipped_ones() -> None:
    assert [entry["name"] for entry in listed("recipes")] == list(builtin_recipes())
    assert all(len(entry["digest"]) == 64 for entry in listed("recipes"))


def test_the_processor_is_a_target_that_works() -> None:
    (cpu,) = [entry for entry in listed("targets") if entry["name"] == "onnxruntime-cpu"]
    assert cpu["available"]


def test_targets_are_runtimes_and_what_engines_are_built_for_with_all_facts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_jetson(monkeypatch, tmp_path, "x86_64", None, 0)
    names = [one.name for one in (*RUNTIMES, *ENGINE_TARGETS)]
    assert [entry["name"] for entry in listed("targets")] == names
    (orin,) = [entry for entry in listed("targets") if entry["name"] == "jetson-orin-jp6"]
    assert (orin["release"], orin["cuda"], orin["capabilities"]) == ("10.3", "12.6", ["8.7"])
    assert "Attention" in orin["operators"]["absent"]
    assert orin["operators"]["max_topk_k"] == 3840
    assert all(source["fact"] and source["address"] for source in orin["sources"])
    assert orin["unverified"]
    assert not orin["available"]
    assert "on the Jetson" in orin["install"]


def test_targets_are_listed_without_what_makes_bundles() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(('onnx', 'torch', 'transformers', 'tensorrt_rtx')))"
    code = f"{blocked}; from vtc.cli import main; main(['ls', 'targets'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "jetson-thor-jp7" in done.stdout


def no_jetson(monkeypatch: pytest.MonkeyPatch, empty: Path, machine: str, library: str | None, gpus: int) -> None:
    """An imagined machine that is no Jetson: the file that tells one is missing from a directory `empty`."""
    monkeypatch.setattr(available, "JETSON_RELEASE", empty / "release")
    monkeypatch.setattr(available.platform, "machine", lambda: machine)
    monkeypatch.setattr(available, "library_version", lambda name: library)
    monkeypatch.setattr(nvidia, "cuda_devices", lambda: gpus)


@pytest.mark.parametrize(
    ("name", "machine", "library", "gpus", "works", "words"),
    [
        ("rtx", "x86_64", "1.7.1", 0, True, "no NVIDIA GPU to run them on"),
        ("rtx", "AMD64", "1.7.1", 1, True, "builds engines with tensorrt_rtx 1.7.1"),
        ("rtx", "x86_64", None, 1, False, "tensorrt_rtx is not installed"),
        ("rtx", "arm64", "1.7.1", 0, False, "this machine is aarch64"),
        ("x86-tensorrt-10", "x86_64", "10.13.2", 1, True, "builds engines with tensorrt 10.13.2"),
        ("x86-tensorrt-10", "x86_64", "10.13.2", 0, False, "no NVIDIA GPU"),
        ("x86-tensorrt-10", "x86_64", "10.0.1", 1, False, "10.0.1 is installed, and this is 10.3 or newer 10.x"),
        ("x86-tensorrt-11", "x86_64", "10.13.2", 1, False, "10.13.2 is installed, and this is 11.0 or newer 11.x"),
        ("jetson-orin-jp6", "aarch64", "10.3.0", 1, False, "this is no Jetson"),
    ],
)
def test_whether_engines_can_be_built_here(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    machine: str,
    library: str | None,
    gpus: int,
    works: bool,
    words: str,
) -> None:
    no_jetson(monkeypatch, tmp_path, machine, library, gpus)
    can, state = available.can_build(target(name))
    assert can == works
    assert words in state


def test_on_a_jetson_engines_are_built_for_it_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_jetson(monkeypatch, tmp_path, "aarch64", "10.3.0", 1)
    monkeypatch.setattr(available, "JETSON_RELEASE", tmp_path)
    assert available.can_build(target("jetson-orin-jp6")) == (True, "builds engines with tensorrt 10.3.0")
    assert available.can_build(target("x86-tensorrt-10")) == (False, "this is a Jetson")
    assert not available.can_build(target("jetson-orin-jp7"))[0]


@pytest.mark.parametrize("what", ["models", "selectors", "recipes", "targets"])
def test_table_has_a_row_for_each(what: str) -> None:
    result = CliRunner().invoke(main, ["ls", what])
    assert result.exit_code == 0
    rows = result.stdout.splitlines()[1:]
    assert [row.split()[0] for row in rows] == [entry["name"] for entry in listed(what)]


def test_a_recipe_is_told_as_yaml_to_start_from(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["ls", "recipes", "fastervlm"])
    assert result.stdout == builtin_recipes()["fastervlm"].read_text()
    (tmp_path / "mine.yaml").write_text(result.stdout)
    assert load_recipe(tmp_path / "mine.yaml") == load_recipe("fastervlm")


@pytest.mark.parametrize(
    ("what", "name", "words"),
    [
        ("models", "reference", "reference"),
        ("models", "llava", "reference"),
        ("selectors", "cdpruner", "arXiv 2506.10967"),
        ("targets", "jetson-orin-jp6", "nvidia-jetpack"),
    ],
)
def test_one_entry_is_told_whole(what: str, name: str, words: str) -> None:
    result = CliRunner().invoke(main, ["ls", what, name])
    assert result.exit_code == 0
    assert words in result.stdout
    (entry,) = json.loads(CliRunner().invoke(main, ["ls", what, name, "--json"]).stdout)[what]
    assert name in (entry["name"], entry["family"] if what == "models" else "")


def test_unknown_entry_is_one_line_with_the_nearest() -> None:
    result = CliRunner().invoke(main, ["ls", "recipes", "fastervln"])
    assert result.exit_code == 2
    assert result.stderr == "error: no recipe 'fastervln', did you mean 'fastervlm'?\n"


@pytest.mark.parametrize("what", ["models", "selectors", "recipes", "targets"])
def test_table_is_readable_in_80_columns(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No column is squeezed: an entry takes two lines at most, and no word is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", shown)
    main(["ls", what], standalone_mode=False)
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    names = [entry["name"] for entry in listed(what)]
    assert sum(line.split(" ")[1] in names for line in lines if line.startswith(" ") and line.strip()) == len(names)
    assert len([line for line in lines if line.strip()]) <= 2 + 2 * len(names)


def test_unknown_list_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["ls", "bundles"])
    assert result.exit_code == 2
    assert "'models', 'selectors', 'projectors', 'recipes', 'targets'" in result.stderr
