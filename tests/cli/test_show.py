"""`vtc show` draws what a recipe, a compressed model or a bundle keeps, and says what it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from exporters.onnx import ExportRequest, export
from tests.tiny import image
from vtc.cli import main
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import Origin
from vtc.compressed.padding import padding_of
from vtc.data.samples import samples_from
from vtc.evaluate.picture import MARGIN, PANEL
from vtc.facts.layout import ImageOptions
from vtc.models import load_adapter, model_digest
from vtc.models.base import VLMAdapter
from vtc.models.random.tiny_families import write_tiny
from vtc.recipe import Recipe, load_recipe
from vtc.runtime.vlm import VLM

RECIPE = """
version: 1
name: two-stages
stages:
  - {kind: prune, keep: 7, selector: cls_attention, positions: original}
  - {kind: prune_in_decoder, layer: 2, keep: 3}
"""


def show(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["show", *map(str, arguments)])


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    image(1).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    (tmp_path / "two.yaml").write_text(RECIPE)
    return tmp_path / "two.yaml"


def test_a_recipe_and_its_bundle_show_the_same(
    adapter: VLMAdapter, photo: Path, recipe_file: Path, tmp_path: Path
) -> None:
    digest, recipe = model_digest(adapter.path), load_recipe(recipe_file)
    model = apply_recipe(adapter, recipe, model_digest=digest)
    origin = Origin(str(adapter.path), digest)
    export(ExportRequest([model], recipe, origin, samples_from(adapter, None, 1, 0)), tmp_path / "bundle")
    eager = show(
        photo, "--recipe", recipe_file, "--model", adapter.path, "--prompt", "what ?", "-o", tmp_path / "a.png"
    )
    ran = show(photo, tmp_path / "bundle", "--prompt", "what ?", "-o", tmp_path / "b" / "b.png")
    assert eager.exit_code == ran.exit_code == 0, eager.output + ran.output
    assert "into the decoder: 7, from decoder layer 2 on: 3; answer: " in eager.stdout
    assert eager.stdout.split(": ", 1)[1] == ran.stdout.split(": ", 1)[1]
    assert Image.open(tmp_path / "a.png").width == MARGIN + 3 * (PANEL + MARGIN)
    panels = (0, 40, MARGIN + 3 * (PANEL + MARGIN), 400)
    assert Image.open(tmp_path / "a.png").crop(panels) == Image.open(tmp_path / "b" / "b.png").crop(panels)


def test_a_pruner_that_ships_is_shown(tmp_path: Path) -> None:
    image(1, (224, 224)).save(tmp_path / "photo.png")
    result = show(
        tmp_path / "photo.png", "--recipe", "learnpruner", "--prompt", "what digit is shown?", "-o", tmp_path / "a.png"
    )
    assert result.exit_code == 0, result.output
    assert "into the decoder: 18, from decoder layer 5 on: 6; answer: " in result.output


def test_a_pruner_that_does_not_ship_has_to_be_trained_first(adapter: VLMAdapter, photo: Path, tmp_path: Path) -> None:
    result = show(photo, "--recipe", "learnpruner-encoder", "--model", adapter.path, "-o", tmp_path / "a.png")
    assert result.exit_code == 2
    assert "leaves a pruner to training; give --data DIR to vtc compress" in result.stderr


def test_images_to_serve_go_with_a_recipe(photo: Path, tmp_path: Path) -> None:
    result = show(photo, tmp_path, "--tiles", "2x2", "-o", tmp_path / "a.png")
    assert result.exit_code == 2
    assert "--image-size, --tiles and --frames go with --recipe" in result.stderr


def test_pictures_are_png_files(photo: Path) -> None:
    result = show(photo, "--recipe", "uniform", "-o", "kept.jpg")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: kept.jpg: pictures are PNG files; give a name that ends in .png\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to show"),
        (["--recipe", "uniform", "--tiles", "2x2"], "leave out --tiles"),
        (["--recipe", "fourier-vlm"], "chooses no places in the image"),
        (["--recipe", "none"], "chooses no places in the image"),
        (["--recipe", "combined"], "stages.1.layer is left to calibration; vtc compress it, then show that"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(photo: Path, arguments: list[str], message: str) -> None:
    result = show(photo, "-o", photo.with_name("kept.png"), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not photo.with_name("kept.png").exists()


def test_merged_tokens_are_told_to_be_such(adapter: VLMAdapter, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "merged.yaml").write_text(
        "version: 1\nname: merged\nstages:\n  - {kind: prune, keep: 5, selector: pooling}\n"
        "  - {kind: prune_in_decoder, layer: 2, keep: 3}\n"
    )
    result = show(photo, "--recipe", tmp_path / "merged.yaml", "--model", adapter.path, "-o", tmp_path / "a.png")
    assert result.exit_code == 0, result.output
    assert "into the decoder: 5 merged tokens, framed where each stands" in result.stdout
    assert "from decoder layer 2 on: 3 merged tokens" in result.stdout


def test_a_bundle_of_two_layouts_shows_each_image_in_its_own(tmp_path: Path) -> None:
    path = write_tiny("qwen2_vl", tmp_path / "model", encoder_layers=1, decoder_layers=2)
    digest = model_digest(path)
    recipe = Recipe.model_validate(
        {"version": 1, "name": "half", "stages": [{"kind": "prune", "keep": 0.5, "selector": "uniform"}]}
    )
    layouts = [ImageOptions(image_size=size) for size in ((56, 112), (112, 56))]
    models = [apply_recipe(load_adapter(path, layout), recipe, model_digest=digest) for layout in layouts]
    samples = samples_from(models[0].adapter, None, 1, 0)
    export(ExportRequest(models, recipe, Origin(str(path), digest), samples), tmp_path / "bundle")
    for size in ((112, 56), (56, 112)):
        image(1, size).save(tmp_path / "photo.png")
        result = show(tmp_path / "photo.png", tmp_path / "bundle", "-o", tmp_path / "a.png")
        assert result.exit_code == 0, result.output
        height = Image.open(tmp_path / "a.png").height
        assert (height > PANEL * 2) == (size[1] > size[0])
    # The graph finds the bars of an image of another shape as the model does, and keeps none of them.
    square = image(1, (56, 56))
    padding = padding_of(models[0].adapter, models[0].adapter.preprocess([square]))
    assert padding is not None
    places = np.flatnonzero(padding[0].numpy())
    asked = [[square]], [models[0].adapter.chat("what is red ?")]
    (ran,), (eager,) = VLM.load(tmp_path / "bundle").kept(*asked), models[0].kept(*asked)
    assert ran.tolist() == eager.tolist()
    assert len(places) > 0
    assert not np.isin(ran[0], places).any()
