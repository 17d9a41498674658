"""The wheel runs a bundle in an environment of its own, without torch, transformers or the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from exporters.onnx import ExportRequest, export
from tests.tiny import image, recipe
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import Origin
from vtc.data.samples import Sample
from vtc.models.base import VLMAdapter

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]  # the environment is made once for all tests here

ROOT = Path(__file__).parents[1]


def shell(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of programs of an environment with the wheel and what it depends on, no extras."""
    work = tmp_path_factory.mktemp("wheel")
    shell(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", work, ROOT, cwd=work)
    shell(sys.executable, "-m", "venv", "--without-pip", work / "venv", cwd=work)
    (wheel,) = work.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", work / "venv/bin/python", "--disable-pip-version-check"]
    shell(*pip, "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=work)
    return work / "venv/bin"


def test_bundle_runs_without_torch(light: Path, adapter: VLMAdapter, tmp_path: Path) -> None:
    resolved = recipe({"kind": "prune", "keep": 5, "selector": "cls_attention"})
    model = apply_recipe(adapter, resolved)
    samples = [Sample([image(0)], adapter.chat("what is it ?"))]
    export(ExportRequest([model], resolved, Origin("tiny", "0" * 64), samples), tmp_path / "bundle")
    image(0).save(tmp_path / "image.png")
    answer = shell(light / "vtc", "run", "bundle", "--image", "image.png", "--prompt", "what is it ?", cwd=tmp_path)
    expected = model.generate([[image(0)]], [adapter.chat("what is it ?")], 64)[0]
    assert answer.strip() == expected.text.strip()
    script = "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('transformers'))"
    assert shell(light / "python", "-c", script, cwd=tmp_path).split() == ["None", "None"]


def test_recipes_and_reference_model_come_with_the_wheel(light: Path, tmp_path: Path) -> None:
    assert "fastervlm" in shell(light / "vtc", "ls", "recipes", cwd=tmp_path)
    script = "from vtc.reference import reference_dir; print(*sorted(p.name for p in reference_dir().iterdir()))"
    assert "model.safetensors" in shell(light / "python", "-c", script, cwd=tmp_path)


def test_nothing_but_the_packages_comes_with_the_wheel(light: Path, tmp_path: Path) -> None:
    script = "import importlib.util as u; print(*(u.find_spec(name) is None for name in ('docs', 'tests', 'recipes')))"
    assert shell(light / "python", "-c", script, cwd=tmp_path).split() == ["True"] * 3


def test_types_come_with_the_wheel(light: Path, tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; import exporters, vtc; "
        "print(*((Path(package.__file__).parent / 'py.typed').is_file() for package in (vtc, exporters)))"
    )
    assert shell(light / "python", "-c", script, cwd=tmp_path).split() == ["True", "True"]


@pytest.mark.parametrize("name", ["pruner", "relevance", "projector-qmop", "projector-deco"])
def test_trained_parts_for_the_reference_model_come_with_the_wheel(light: Path, tmp_path: Path, name: str) -> None:
    script = (
        "from vtc.reference import reference_part\n"
        f"print(*sorted(file.name for file in reference_part('{name}').parent.glob('{name}*')))"
    )
    assert shell(light / "python", "-c", script, cwd=tmp_path).split() == [f"{name}.safetensors", f"{name}_log.csv"]


def test_compressing_without_the_extra_says_what_to_install(light: Path, tmp_path: Path) -> None:
    command = [light / "vtc", "compress", "reference", "--recipe", "uniform", "-o", "c"]
    done = subprocess.run([str(part) for part in command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'vtc[compress]'" in done.stderr
