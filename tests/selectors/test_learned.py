"""The learned pruner: what it chooses, and which checkpoints it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.selectors.inputs import WIDTH, tokens
from vtc.errors import InputError
from vtc.selectors.learned import Learned, add_diverse


def test_learned_without_diversity_is_top_k_of_the_score() -> None:
    grid = tokens(2, (6, 6))
    selector = Learned(WIDTH, diversity=0.0)
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


def checkpoint(path: Path, width: int = WIDTH, digest: str = "abc") -> Path:
    save_file(Learned(width).state_dict(), path, metadata={"model_sha256": digest, "encoder_layers": "0,1"})
    return path


def load(path: Path, digest: str = "abc", layers: tuple[int, ...] = (0, 1)) -> Learned:
    return Learned.from_checkpoint(path, width=WIDTH, model_digest=digest, layers=layers)


def test_learned_checkpoint_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = Learned(WIDTH)
    metadata = {"model_sha256": "abc", "encoder_layers": "0,1"}
    save_file(trained.state_dict(), tmp_path / "p.safetensors", metadata=metadata)
    loaded = load(tmp_path / "p.safetensors")
    assert torch.equal(trained.select(tokens(2, (6, 6)), 9), loaded.select(tokens(2, (6, 6)), 9))


def test_learned_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was trained on model abc"):
        load(checkpoint(tmp_path / "p.safetensors"), digest="other")


def test_learned_checkpoint_of_another_layer_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "p.safetensors")
    with pytest.raises(InputError, match=r"encoder layers 0,1, here 0,1,2 run"):
        load(path, layers=(0, 1, 2))


def test_learned_checkpoint_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a pruner for an encoder of width 8"):
        load(checkpoint(tmp_path / "p.safetensors", width=16))


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all"])
def test_unreadable_learned_checkpoint_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "p.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        load(path)
