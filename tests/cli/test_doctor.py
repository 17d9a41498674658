"""`vtc doctor`: what is installed and what works, and what to do about the rest."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from exporters.available import entries
from vtc.cli import doctor, main


def test_json_names_packages_capabilities_and_targets() -> None:
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert {package["name"]: package["version"] for package in report["packages"]}["onnxruntime"]
    assert all(capability["works"] for capability in report["capabilities"])
    assert [target["name"] for target in report["targets"]] == [one.name for one in entries()]
    for target in report["targets"]:
        assert target["works"] or (target["reason"] and target["install"])


def test_missing_extra_is_named_with_its_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "package_version", lambda *names: None if "torch" in names else "1.0")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0
    assert "pip install 'vtc[compress]' (lacks torch)" in result.stdout


def test_missing_base_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "package_version", lambda *names: None if "pillow" in names else "1.0")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "pip install vtc (lacks pillow)" in result.stdout


def test_engines_that_cannot_be_built_here_say_what_to_do() -> None:
    result = CliRunner().invoke(main, ["doctor"])
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("build engines for jetson-orin-jp6")]
    assert "engines are built on the board" in line
    assert "sudo apt install nvidia-jetpack" in line
