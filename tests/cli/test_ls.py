"""`vtc ls`: everything that can be chosen is listed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from vtc.cli import main
from vtc.models import FAMILIES
from vtc.recipe import SELECTORS, builtin_recipes


def listed(what: str) -> list[dict[str, Any]]:
    """Entries as JSON."""
    result = CliRunner().invoke(main, ["ls", what, "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["kind"] == "ls"
    entries: list[dict[str, Any]] = data[what]
    return entries


def test_models_are_the_reference_and_the_families() -> None:
    assert listed("models")[0]["name"] == "reference"
    assert [entry["family"] for entry in listed("models")[1:]] == list(FAMILIES)


def test_selectors_come_from_the_table() -> None:
    assert [entry["name"] for entry in listed("selectors")] == list(SELECTORS)
    assert all(entry["summary"] and entry["needs"] and entry["where"] for entry in listed("selectors"))


def test_recipes_are_the_shipped_ones() -> None:
    assert [entry["name"] for entry in listed("recipes")] == list(builtin_recipes())
    assert all(len(entry["digest"]) == 64 for entry in listed("recipes"))


def test_the_processor_is_a_target_that_works() -> None:
    (cpu,) = [entry for entry in listed("targets") if entry["name"] == "onnxruntime-cpu"]
    assert cpu["available"]


@pytest.mark.parametrize("what", ["models", "selectors", "recipes", "targets"])
def test_table_has_a_row_for_each(what: str) -> None:
    result = CliRunner().invoke(main, ["ls", what])
    assert result.exit_code == 0
    rows = result.stdout.splitlines()[1:]
    assert [row.split()[0] for row in rows] == [entry["name"] for entry in listed(what)]


def test_unknown_list_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["ls", "bundles"])
    assert result.exit_code == 2
    assert "'models', 'selectors', 'recipes', 'targets'" in result.stderr
