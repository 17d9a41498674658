"""The learned pruner: what it chooses, and which checkpoints it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.selectors.inputs import WIDTH, tokens
from vtc.errors import InputError
from vtc.recipe.selectors.learned import LearnedEntry
from vtc.selectors.learned import Learned, add_diverse
from vtc.selectors.trained import fits, load_trained, read_metadata, save_trained


def make(diversity: float = 0.1, width: int = WIDTH, layers: tuple[int, ...] = (0, 1)) -> Learned:
    return Learned(LearnedEntry(diversity=diversity), width, layers)


def test_learned_without_diversity_is_top_k_of_the_score() -> None:
    grid = tokens(2, (6, 6))
    selector = make(diversity=0.0)
    expected = selector.score(grid).topk(9).indices.sort().values
    assert torch.equal(selector.select(grid, 9), expected)


def test_diverse_picks_are_the_least_similar_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 20, WIDTH, generator=generator)
    unit = torch.nn.functional.normalize(features, dim=-1)
    chosen = add_diverse(features, torch.tensor([[3, 7], [1, 2]]), 4)
    for row in range(2):
        expected = chosen[row, :2].tolist()
        for _ in range(4):
            nearest = (unit[row] @ unit[row, expected].T).amax(dim=-1)
            nearest[expected] = 2
            expected.append(int(nearest.argmin()))
        assert chosen[row].tolist() == expected


def checkpoint(path: Path, width: int = WIDTH) -> Path:
    save_trained(path, make(width=width), "abc")
    return path


def load(path: Path, digest: str = "abc", layers: tuple[int, ...] = (0, 1)) -> Learned:
    selector = make(layers=layers)
    load_trained(path, selector, digest)
    return selector


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_part_whose_numbers_are_not_finite_is_refused_by_name(value: float, tmp_path: Path) -> None:
    pruner = make()
    name, parameter = next(iter(pruner.named_parameters()))
    with torch.no_grad():
        parameter.flatten()[-1] = value
    save_trained(tmp_path / "p.safetensors", pruner, "abc")
    with pytest.raises(InputError, match=f"{name} of the .* is not all finite numbers; train it again"):
        load(tmp_path / "p.safetensors")


def test_learned_checkpoint_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = make()
    save_trained(tmp_path / "p.safetensors", trained, "abc", {"steps": 3})
    loaded = load(tmp_path / "p.safetensors")
    assert torch.equal(trained.select(tokens(2, (6, 6)), 9), loaded.select(tokens(2, (6, 6)), 9))
    assert read_metadata(tmp_path / "p.safetensors")["steps"] == "3"


def test_learned_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "p.safetensors")
    assert fits(path, make(), "abc")
    assert not fits(path, make(), "other")
    with pytest.raises(InputError, match="pruner was trained on model abc, not other; train it again"):
        load(path, digest="other")


def test_learned_checkpoint_of_another_layer_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "p.safetensors")
    with pytest.raises(InputError, match=r"trained for encoder layers 0,1, here it is 0,1,2; train it again"):
        load(path, layers=(0, 1, 2))


def test_learned_checkpoint_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="trained for width 16, here it is 8; train it again"):
        load(checkpoint(tmp_path / "p.safetensors", width=16))


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"model_sha256": "abc", **make().made_for})
    with pytest.raises(InputError, match="not a pruner"):
        load(path)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_unreadable_learned_checkpoint_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "p.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        load(path)
