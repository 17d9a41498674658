"""What every selector promises, and what each does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from vtc.errors import InputError
from vtc.recipe_schema import ENCODER_SELECTORS as SELECTORS
from vtc.selectors import BuildContext, build_selector
from vtc.selectors.base import Selector, top_k
from vtc.selectors.cls_attention import CLSAttention
from vtc.selectors.learned import Learned, add_diverse
from vtc.selectors.random import Random
from vtc.selectors.uniform import Uniform
from vtc.visual_tokens import VisualTokens, on_grid

GOLDENS = Path(__file__).parents[1] / "goldens"
WIDTH = 8


def make(name: str) -> Selector:
    torch.manual_seed(0)
    options = {"learned": {"checkpoint": "pruner.safetensors"}}.get(name, {})
    return build_selector(SELECTORS[name].model_validate({"name": name, **options}), BuildContext(WIDTH, layers=(1,)))


def tokens(batch: int, grid: tuple[int, int], seed: int = 0, levels: int | None = None) -> VisualTokens:
    """Random tokens; with `levels`, attention takes few values, so that there are ties."""
    generator = torch.Generator().manual_seed(seed)
    count = grid[0] * grid[1]
    features = torch.randn(batch, count, WIDTH, generator=generator)
    row = torch.rand(batch, count, generator=generator)
    row = row if levels is None else (row * levels).floor() / levels
    return on_grid(features, grid, {1: row, 2: row.flip(1)})


@pytest.mark.parametrize("name", SELECTORS)
@settings(max_examples=30, deadline=None)
@given(data=st.data(), grid=st.sampled_from([(8, 8), (24, 24), (3, 7)]), seed=st.integers(0, 5))
def test_keeps_exactly_the_budget_in_raster_order(
    name: str, data: st.DataObject, grid: tuple[int, int], seed: int
) -> None:
    keep = data.draw(st.integers(1, min(grid[0] * grid[1], 96)))
    chosen = make(name).select(tokens(2, grid, seed), keep)
    assert chosen.shape == (2, keep)
    assert chosen.dtype == torch.int64
    assert (chosen.diff(dim=1) > 0).all()
    assert int(chosen.min()) >= 0
    assert int(chosen.max()) < grid[0] * grid[1]


@pytest.mark.parametrize("name", SELECTORS)
def test_keeps_everything_when_the_budget_allows(name: str) -> None:
    assert make(name).select(tokens(1, (3, 7)), 21)[0].tolist() == list(range(21))


@pytest.mark.parametrize("name", SELECTORS)
def test_a_batch_is_chosen_from_as_its_images_alone(name: str) -> None:
    batch = tokens(3, (6, 6))
    together = make(name).select(batch, 10)
    for row in range(3):
        one = on_grid(
            batch.features[row : row + 1], (6, 6), {layer: a[row : row + 1] for layer, a in batch.cls_attention.items()}
        )
        assert torch.equal(make(name).select(one, 10)[0], together[row])


@pytest.mark.parametrize("name", SELECTORS)
def test_works_in_half_precision(name: str) -> None:
    full = tokens(2, (6, 6))
    half = on_grid(full.features.half(), (6, 6), full.cls_attention)
    assert make(name).half().select(half, 7).shape == (2, 7)


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.integers(0, 3), min_size=1, max_size=40), data=st.data())
def test_of_equal_scores_the_lower_index_wins(values: list[int], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(values)))
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:keep]
    assert top_k(torch.tensor([values], dtype=torch.float32), keep)[0].tolist() == expected


def test_uniform_is_spread_evenly() -> None:
    assert Uniform().select(tokens(1, (4, 4)), 4)[0].tolist() == [2, 6, 10, 14]


def test_random_depends_on_the_seed_alone() -> None:
    first = Random(seed=1).select(tokens(1, (8, 8), seed=0), 10)
    assert torch.equal(first, Random(seed=1).select(tokens(1, (8, 8), seed=9), 10))
    assert not torch.equal(first, Random(seed=2).select(tokens(1, (8, 8)), 10))


def test_cls_attention_equals_fastervlm() -> None:
    golden = np.load(GOLDENS / "fastervlm.npz")
    for count, keeps in ((64, (8, 16, 32)), (576, (29, 58))):
        side = int(count**0.5)
        features = torch.from_numpy(golden[f"n{count}_patch_feats"])
        row = torch.from_numpy(golden[f"n{count}_cls_attn"]).mean(dim=1)
        for keep in keeps:
            chosen = CLSAttention([22]).select(on_grid(features, (side, side), {22: row}), keep)
            assert chosen[0].tolist() == golden[f"n{count}_k{keep}_idx"].tolist()


@pytest.mark.parametrize("start", [2, 4, 6])
def test_averaged_cls_attention_equals_vtc_cls(start: int) -> None:
    golden = np.load(GOLDENS / "vtc_cls.npz")
    rows = {layer: torch.from_numpy(golden["attn_all"][layer])[:, :, 0, 1:].mean(dim=1) for layer in range(start, 7)}
    grid = on_grid(torch.from_numpy(golden["patch_feats"]), (8, 8), rows)
    for keep in (8, 16, 32):
        chosen = CLSAttention(sorted(rows)).select(grid, keep)
        assert chosen[0].tolist() == golden[f"start{start}_k{keep}_idx"].tolist()


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
