"""The relevance network: what it reads, and which checkpoints it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.selectors.decoder.fakes import FakeAdapter, adapter, decoder_tokens
from vtc.errors import InputError
from vtc.recipe.selectors.decoder.relevance import RelevanceEntry
from vtc.selectors.decoder.relevance import Relevance
from vtc.selectors.trained import load_trained, save_trained


def make(maps: torch.Tensor | None = None) -> Relevance:
    torch.manual_seed(0)
    fake = FakeAdapter({} if maps is None else {0: maps})
    return Relevance(RelevanceEntry(), adapter(fake), after=1, before=0)


def save(selector: Relevance, path: Path) -> Path:
    save_trained(path, selector, "abc")
    return path


def load(path: Path, digest: str = "abc", before: int = 0) -> Relevance:
    selector = Relevance(RelevanceEntry(), adapter(FakeAdapter()), after=before + 1, before=before)
    load_trained(path, selector, digest)
    return selector


def test_reads_the_mean_row_of_the_first_layer_whatever_its_level() -> None:
    maps = torch.rand(2, 3, 20, 20)
    tokens = decoder_tokens(torch.zeros(2, 20, 4), 2, 12)
    score = make(maps).score(tokens)
    row = maps.mean(dim=1)[:, 14:, 2:14].mean(dim=1)
    assert torch.allclose(score, make().logits(row), atol=1e-6)
    assert torch.allclose(score, make().logits(row / 7), atol=1e-4)


def test_equal_attention_leaves_no_gap() -> None:
    assert torch.isfinite(make().logits(torch.zeros(1, 9))).all()


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    trained = make()
    row = torch.rand(1, 30)
    assert torch.equal(load(save(trained, tmp_path / "r.safetensors")).logits(row), trained.logits(row))


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was trained on model abc"):
        load(save(make(), tmp_path / "r.safetensors"), digest="other")


def test_checkpoint_of_another_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="trained for decoder layer 0, here it is 3; train it again"):
        load(save(make(), tmp_path / "r.safetensors"), before=3)


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"model_sha256": "abc", "decoder_layer": "0"})
    with pytest.raises(InputError, match="not a relevance network"):
        load(path)


@pytest.mark.parametrize("content", [None, b"not safetensors at all"])
def test_unreadable_checkpoint_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "r.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        load(path)
