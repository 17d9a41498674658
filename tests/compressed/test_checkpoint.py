"""Compressed models on disk: they come back as they were, and what has changed is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.tiny import image, recipe
from vtc.artifact import publish, read_manifest
from vtc.compressed.build import apply_recipe
from vtc.compressed.checkpoint import KIND, SCHEMA, STATE, Origin, load_compressed, save_compressed
from vtc.errors import BundleError, ModelError, RecipeError
from vtc.models import load_adapter, model_digest
from vtc.recipe import parse_recipe
from vtc.recipe.selectors import LearnedEntry
from vtc.selectors.learned import Learned
from vtc.selectors.trained import save_trained

SEALED = ("files", "digest")
"""What publishing fills in."""


def save(model_path: Path, out: Path, *stages: dict[str, object]) -> Path:
    adapter, digest = load_adapter(model_path), model_digest(model_path)
    resolved = recipe(*stages)
    model = apply_recipe(adapter, resolved, model_digest=digest)
    return save_compressed(out.with_name(".work"), out, model, resolved, Origin(str(model_path), digest), {})


def test_round_trip(checkpoint: Path, tmp_path: Path) -> None:
    out = save(checkpoint, tmp_path / "c", {"kind": "prune", "keep": 5, "selector": "cls_attention"})
    model, loaded, origin = load_compressed(out)
    assert origin.name == str(checkpoint)
    assert loaded.digest == recipe({"kind": "prune", "keep": 5, "selector": "cls_attention"}).digest
    assert model.generate([[image(0)]], [model.adapter.chat("what ?")], 2)


def test_learned_pruner_travels_with_the_compressed_model(checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    digest = model_digest(checkpoint)
    save_trained(tmp_path / "p.safetensors", Learned(LearnedEntry(), 32, (0, 1)), digest)
    text = (
        "version: 1\nname: learned\nstages:\n- kind: prune\n  keep: 5\n"
        "  selector: {name: learned, checkpoint: p.safetensors}\n"
    )
    learned = parse_recipe(text, directory=tmp_path)
    model = apply_recipe(load_adapter(checkpoint), learned, model_digest=digest)
    out = save_compressed(tmp_path / ".w", tmp_path / "c", model, learned, Origin(str(checkpoint), digest), {})
    (tmp_path / "p.safetensors").unlink()
    loaded, _, _ = load_compressed(out)
    pixels = model.adapter.preprocess([image(0), image(1)])
    assert torch.equal(model.vision(pixels)[1], loaded.vision(pixels)[1])


def test_learned_recipe_without_its_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    text = (
        "version: 1\nname: learned\nstages:\n- kind: prune\n  keep: 5\n"
        "  selector: {name: learned, checkpoint: gone.safetensors}\n"
    )
    with pytest.raises(RecipeError, match="no such file"):
        apply_recipe(load_adapter(checkpoint), parse_recipe(text, directory=tmp_path), model_digest="x")


def test_changed_recipe_file_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    out = save(checkpoint, tmp_path / "c")
    (out / "recipe.yaml").write_text((out / "recipe.yaml").read_text() + "# touched\n")
    with pytest.raises(BundleError, match=r"recipe.yaml has changed"):
        load_compressed(out)


def test_base_model_that_moved_can_be_named(checkpoint: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(checkpoint, tmp_path / "here"))
    out = save(moved, tmp_path / "c")
    moved.rename(tmp_path / "there")
    with pytest.raises(ModelError, match="with --model"):
        load_compressed(out)
    assert load_compressed(out, base=str(tmp_path / "there"))[0]


def test_base_model_that_changed_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(checkpoint, tmp_path / "base"))
    out = save(base, tmp_path / "c")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ModelError, match="is not the model that"):
        load_compressed(out)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {name: torch.full_like(value, float("nan")) for name, value in state.items()}, "not all finite"),
        (lambda state: {f"{name}.other": value for name, value in state.items()}, "is not of this model"),
        (lambda state: {name: torch.zeros(1, 2, 3) for name in state}, "is not of this model"),
    ],
)
def test_state_that_cannot_be_is_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    words: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest = model_digest(checkpoint)
    save_trained(tmp_path / "p.safetensors", Learned(LearnedEntry(), 32, (0, 1)), digest)
    text = (
        "version: 1\nname: learned\nstages:\n- kind: prune\n  keep: 5\n"
        "  selector: {name: learned, checkpoint: p.safetensors}\n"
    )
    learned = parse_recipe(text, directory=tmp_path)
    model = apply_recipe(load_adapter(checkpoint), learned, model_digest=digest)

    def save_changed(state: dict[str, Tensor], file: Path, **more: dict[str, str]) -> None:
        save_file(change(state), file, **more)

    monkeypatch.setattr("vtc.compressed.checkpoint.save_file", save_changed)
    out = save_compressed(tmp_path / ".w", tmp_path / "c", model, learned, Origin(str(checkpoint), digest), {})
    with pytest.raises(BundleError, match=words):
        load_compressed(out)


@pytest.mark.parametrize("state", [b"", b"\xff" * 100, None], ids=["empty", "no header", "of another model"])
def test_state_that_is_none_of_the_model_is_refused_though_its_hash_is_right(
    checkpoint: Path, tmp_path: Path, state: bytes | None
) -> None:
    out = save(checkpoint, tmp_path / "c")
    manifest = read_manifest(out, KIND, SCHEMA)
    if state is None:
        save_file({"x": torch.zeros(2)}, out / STATE)
    else:
        (out / STATE).write_bytes(state)
    publish(out.rename(tmp_path / ".c"), out, {name: manifest[name] for name in manifest if name not in SEALED})
    with pytest.raises(BundleError, match=r"state\.safetensors: is not of this model") as refused:
        load_compressed(out)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "change", [{"model": None}, {"model": {"name": 1}}, {"recipe_digest": 3}, {"image_options": 1}]
)
def test_manifest_with_fields_of_other_types_is_refused(
    checkpoint: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    out = save(checkpoint, tmp_path / "c")
    manifest = read_manifest(out, KIND, SCHEMA)
    kept = {name: manifest[name] for name in manifest if name not in SEALED}
    publish(out.rename(tmp_path / ".c"), out, kept | change)
    with pytest.raises(BundleError, match="compress again"):
        load_compressed(out)
