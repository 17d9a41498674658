"""The verbs as functions: every example in their docs runs, and importing vtc loads nothing heavy."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from collections.abc import Iterator
from inspect import isfunction
from pathlib import Path

import pytest

import vtc
from vtc import api
from vtc.errors import InputError
from vtc.models.base import VLMAdapter

IN_ORDER = (
    "inspect",
    "expert_statistics",
    "expert_skipping",
    "place_experts",
    "compress",
    "export",
    "optimize",
    "load",
    "validate",
    "bench",
)
"""The functions as a user meets them: each example goes on from the one before."""

RECIPE = "version: 1\nname: small\nstages:\n- kind: prune\n  keep: 5\n  selector: uniform\n"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty current directory, in which examples find what those before them left."""
    before = os.getcwd()
    directory = tmp_path_factory.mktemp("workshop")
    os.chdir(directory)
    yield directory
    os.chdir(before)


def test_every_function_has_an_example_that_runs(workshop: Path) -> None:
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for name in IN_ORDER:
        function = getattr(vtc, name)
        (example,) = finder.find(function, name, module=sys.modules[function.__module__], globs={})
        assert example.examples, name
        assert runner.run(example).failed == 0, name


def test_examples_are_of_all_functions() -> None:
    functions = {
        name for name, value in vars(api).items() if isfunction(value) and value.__module__.startswith("vtc.api.")
    }
    assert {name for name in functions if not name.startswith("_")} == set(IN_ORDER)


@pytest.mark.parametrize("module", ["vtc", "vtc.cli", "vtc.api"])
def test_importing_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'onnxruntime') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_functions_are_not_hidden_by_packages() -> None:
    code = "import vtc.cli.bench, vtc.benchmark.memory, vtc.evaluate.validate, vtc; print(callable(vtc.bench))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_every_name_is_found_and_no_other() -> None:
    assert all(getattr(vtc, name) is not None for name in vtc.__all__)
    assert set(vtc.__all__) <= set(dir(vtc))
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        vtc.compres  # noqa: B018


def test_types_are_told() -> None:
    assert (Path(vtc.__file__).parent / "py.typed").is_file()


def test_recipe_in_memory_is_taken_and_overridden(adapter: VLMAdapter, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(RECIPE)
    recipe = vtc.load_recipe(tmp_path / "small.yaml")
    assert vtc.inspect(adapter.path, recipe).plan.keep == 5
    assert vtc.inspect(adapter.path, recipe, overrides=["stages.0.keep=3"]).plan.keep == 3
    result = vtc.compress(adapter.path, recipe, out=tmp_path / "compressed", overrides=["stages.0.keep=4"])
    assert (result.path, result.plan.keep) == (tmp_path / "compressed", 4)
    assert vtc.inspect(result.path).plan == result.plan


def test_other_models_are_not_asked_about_drawn_digits(adapter: VLMAdapter, tmp_path: Path) -> None:
    vtc.compress(adapter.path, "uniform", out=tmp_path / "compressed", overrides=["stages.0.keep=4"])
    for against in (None, adapter.path):
        with pytest.raises(InputError, match=r"say what to ask .*: --data DIR"):
            vtc.validate(tmp_path / "compressed", against=against)
