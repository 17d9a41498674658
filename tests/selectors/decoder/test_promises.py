"""What every selector inside the decoder promises, on a tiny model's own layers."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from exporters.graph_spec import GraphSpec
from exporters.graphs import prune_spec
from exporters.lint import lint
from exporters.writing import export_graph
from vtc.inputs.positions import IntArray
from vtc.inputs.schedule import SegmentRule, schedule
from vtc.models.base import VLMAdapter
from vtc.recipe.selectors import DECODER_SELECTORS, DARTEntry, FeatherEntry, TextAttentionEntry
from vtc.selectors.decoder import build_decoder_selector
from vtc.selectors.decoder.base import DecoderSelector, DecoderTokens
from vtc.stages.base import Cut
from vtc.stages.prune_in_decoder import PruneInDecoder

IMAGE = 1
AFTER, BEFORE = 2, 1
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in DECODER_SELECTORS},
    "text_attention, raters": {"name": "text_attention", "queries": "raters", "rope": False},
    "sparsevlm, nothing recycled": {"name": "sparsevlm", "recycle": 0.0},
    "visiondrop as published": {"name": "visiondrop", "contextual": 0.3, "as_published": True},
    "dart as published": {"name": "dart", "as_published": True},
}


def make(name: str, adapter: VLMAdapter) -> tuple[DecoderSelector[Any], str]:
    """A selector and who asks."""
    entry = DECODER_SELECTORS[VARIANTS[name]["name"]].model_validate(VARIANTS[name])
    torch.manual_seed(0)  # a network that nobody has trained
    return build_decoder_selector(entry, adapter, AFTER, BEFORE), entry.query_tokens


def batch(rows: int, visual: int, keep: int, query_tokens: str, padded: bool = True) -> tuple[Tensor, Tensor, Cut]:
    """Prompts of two words, an image, and a question of which each row has one word more, left-padded."""
    words = [3 + row % 4 if padded else 5 for row in range(rows)]
    longest = 2 + visual + max(words)
    ids = np.full((rows, longest), 7, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, count in enumerate(words):
        start = longest - count - visual
        ids[row, start : start + visual] = IMAGE
        mask[row, start - 2 :] = 1
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return torch.from_numpy(mask), torch.from_numpy(positions), cut(ids, mask, visual, keep, query_tokens)


def cut(ids: IntArray, mask: IntArray, visual: int, keep: int, query_tokens: str) -> Cut:
    """Where the tokens of prompts stand around a cut."""
    (pruned,) = schedule(ids, mask, IMAGE, visual, [SegmentRule("prune", keep, query_tokens)])
    return Cut(*map(torch.from_numpy, pruned.handoff_inputs))


def states(adapter: VLMAdapter, rows: int, length: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = adapter.facts.decoder.width
    return [torch.randn(rows, length, width, generator=generator) for _ in range(2)]


def run(name: str, adapter: VLMAdapter, rows: int, visual: int, keep: int, change: Any = None) -> tuple[Tensor, ...]:
    """Hidden states after the cut, positions and kept places."""
    selector, query_tokens = make(name, adapter)
    others = batch(rows, visual, keep, query_tokens)
    hidden, before = states(adapter, rows, others[0].shape[1])
    if change is not None:
        hidden, before = change(hidden), change(before)
    result: tuple[Tensor, ...] = PruneInDecoder(selector, visual, keep)(hidden, *others, before=before)
    return result


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=15, deadline=None)
@given(data=st.data(), visual=st.sampled_from([1, 21, 64]))
def test_keeps_exactly_the_budget(name: str, adapter: VLMAdapter, data: st.DataObject, visual: int) -> None:
    keep = data.draw(st.integers(1, visual))
    hidden, positions, kept = run(name, adapter, 3, visual, keep)
    assert kept.shape == (3, keep)
    assert (kept.diff(dim=1) > 0).all()
    assert 0 <= int(kept.min()) <= int(kept.max()) < visual
    assert hidden.shape[1] == positions.shape[1] == 2 + keep + 5
    assert hidden.isfinite().all()


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_is_kept_only_where_nothing_else_is_left(name: str, adapter: VLMAdapter) -> None:
    selector, query_tokens = make(name, adapter)
    mask, positions, told = batch(2, 21, 1, query_tokens)
    hidden, before = states(adapter, 2, mask.shape[1])
    visual, queries = told.image_columns, told.query_columns
    tokens = DecoderTokens(hidden, before, mask, positions, visual, queries, told.query_mask)
    padding = torch.zeros(2, 21, dtype=torch.bool)
    padding[0, :5] = padding[0, 12:] = True
    for keep in (1, 4, 7, 9, 21):
        kept, merged = selector.prune(replace(tokens, padding=padding), keep)
        assert kept.shape == (2, keep)
        assert (kept.diff(dim=1) > 0).all()
        assert int(padding[0][kept[0]].sum()) == max(0, keep - 7)
        assert merged is None or merged.isfinite().all()
        # An image without bars keeps what it kept.
        assert torch.equal(kept[1], selector.prune(tokens, keep)[0][1])


@pytest.mark.parametrize("name", VARIANTS)
def test_states_without_any_difference_still_keep_the_budget(name: str, adapter: VLMAdapter) -> None:
    for keep in (1, 5, 21):
        _, _, kept = run(name, adapter, 2, 21, keep, torch.zeros_like)
        assert kept.shape == (2, keep)
        assert (kept.diff(dim=1) > 0).all()


class Unplaced(nn.Module):
    """What selectors choose that look at what a token is, and not at where it stands."""

    def __init__(self, adapter: VLMAdapter) -> None:
        super().__init__()
        unpinned = DARTEntry().model_copy(update={"pivots_image": 0})  # image pivots stay by their places
        entries = [TextAttentionEntry(queries="raters", rope=False), FeatherEntry(uniform=0.0), unpinned]
        self.selectors = nn.ModuleList(build_decoder_selector(entry, adapter, AFTER, BEFORE) for entry in entries)

    def forward(self, *values: Tensor) -> list[Tensor]:
        tokens = DecoderTokens(*values)
        return [selector.select(tokens, tokens.visual.shape[1] // 2) for selector in self.selectors]


def repeated(adapter: VLMAdapter, visual: int) -> tuple[tuple[Tensor, ...], int]:
    """Fields of `DecoderTokens` for two images, and after how many tokens those of an image begin again."""
    distinct = visual // 3 + 1
    mask, positions, told = batch(2, visual, 1, "text_after_image", padded=False)
    again = torch.arange(mask.shape[1])
    again[2 : 2 + visual] = 2 + torch.arange(visual) % distinct
    hidden, before = (one[:, again] for one in states(adapter, 2, len(again)))
    return (hidden, before, mask, positions, told.image_columns, told.query_columns, told.query_mask), distinct


def lower_first(kept: Tensor, distinct: int) -> bool:
    """Whether all equal tokens of lower places are kept with every kept token."""
    return all(place - distinct in row for row in kept.tolist() for place in row if place >= distinct)


@pytest.mark.parametrize("visual", [21, 75])
def test_of_equal_tokens_the_lower_place_is_kept(visual: int, adapter: VLMAdapter) -> None:
    values, distinct = repeated(adapter, visual)
    assert [lower_first(kept, distinct) for kept in Unplaced(adapter)(*values)] == [True] * 3


def test_of_equal_tokens_the_exported_graph_keeps_the_lower_place(adapter: VLMAdapter, tmp_path: Path) -> None:
    values, distinct = repeated(adapter, 75)
    names = [field.name for field in fields(DecoderTokens)][: len(values)]
    axes = (tuple({0: "batch"} for _ in names),)
    spec = GraphSpec("choices", Unplaced(adapter), values, names, ["raters", "feather", "dart"], axes)
    path = tmp_path / "choices.onnx"
    export_graph(spec, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {name: value.numpy() for name, value in zip(names, values, strict=True)}
    found = session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})
    assert [lower_first(torch.from_numpy(kept), distinct) for kept in found] == [True] * 3


@pytest.mark.parametrize("name", VARIANTS)
def test_a_batch_is_cut_as_its_rows_alone(name: str, adapter: VLMAdapter) -> None:
    selector, query_tokens = make(name, adapter)
    stage = PruneInDecoder(selector, 21, 6)
    others = batch(3, 21, 6, query_tokens)
    hidden, before = states(adapter, 3, others[0].shape[1])
    together = stage(hidden, *others, before=before)
    for row in range(3):
        padding = int((others[0][row] == 0).sum())
        mask, positions = (part[row : row + 1, padding:] for part in others[:2])
        ids = np.full(mask.shape, 7, dtype=np.int64)
        ids[:, 2 : 2 + 21] = IMAGE
        alone = stage(
            hidden[row : row + 1, padding:],
            mask,
            positions,
            cut(ids, mask.numpy(), 21, 6, query_tokens),
            before[row : row + 1, padding:],
        )
        assert torch.equal(alone[2][0], together[2][row])
        torch.testing.assert_close(alone[0][0], together[0][row, padding:], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_exported_graph_chooses_as_pytorch_does(name: str, adapter: VLMAdapter, tmp_path: Path) -> None:
    selector, query_tokens = make(name, adapter)
    visual, keep, images = 64, 16, 50
    stage = PruneInDecoder(selector, visual, keep)
    spec = prune_spec("token_selector", stage, AFTER, torch.float32)
    path = tmp_path / "selector.onnx"
    export_graph(spec, path)
    assert lint(path) == []
    assert len(onnx.load(path).graph.node) < 300
    others = batch(images, visual, keep, query_tokens)
    hidden, before = states(adapter, images, others[0].shape[1], seed=4)
    cut = [value for value in others[2] if value is not None]
    values = [hidden, *others[:2], *cut, *([before] if selector.entry.reads_before else [])]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in zip(spec.inputs, values, strict=True)})
    expected = stage(hidden, *others, before=before)
    np.testing.assert_array_equal(found[2], expected[2].numpy())
    np.testing.assert_array_equal(found[1], expected[1].numpy())
    np.testing.assert_allclose(found[0], expected[0].numpy(), atol=1e-4)
