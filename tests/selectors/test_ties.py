"""Of equal tokens the lowest place is kept, whatever kernels compute the scores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from exporters.graphs import GraphSpec
from exporters.writing import export_graph
from tests.selectors.inputs import make, tokens
from vtc.selectors.ties import first_equal, read_at
from vtc.visual_tokens import Reading, TextEmbeddings, VisualTokens

ONE_BY_ONE = ("cls_attention", "learned", "fopru", "divprune", "cdpruner", "todre", "mmtok", "hired", "globalcom2")
"""Selectors that look at each token for itself or for what it adds, and not at where it stands."""
SIZES = [(22, 5), (36, 8), (75, 37), (131, 64)]
"""Tokens and widths; vector registers hold 8 or 16 numbers, which divide few of these."""
KEEP = 6
OLDER_KERNELS = {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def copies(count: int) -> list[list[int]]:
    """Which token stands at each of `count` places: every token twice in a row; all tokens over and over."""
    return [[place // 2 for place in range(count)], [place % (count // 3 + 1) for place in range(count)]]


def repeated(copy: list[int], width: int) -> VisualTokens:
    """Tokens of two images, some of which are equal."""
    return tokens(2, (1, len(copy)), width=width).keep(torch.tensor(copy).expand(2, -1))


def out_of_turn(chosen: Tensor, copy: list[int]) -> list[int]:
    """Places that were chosen although an equal token of a lower place was not."""
    return [
        place
        for row in chosen.tolist()
        for place in row
        if any(copy[lower] == copy[place] and lower not in row for lower in range(place))
    ]


def broken_ties() -> list[tuple[str, int, int]]:
    """Names, tokens and widths with which a selector broke the tie rule in PyTorch."""
    return [
        (name, count, width)
        for name in ONE_BY_ONE
        for count, width in SIZES
        for copy in copies(count)
        for keep in (KEEP, count // 3, count // 2)
        if out_of_turn(make(name, (1, count), width).select(repeated(copy, width), keep), copy)
    ]


def test_the_first_equal_token_is_found() -> None:
    some = torch.tensor([[[1.0, 2, 3, 4], [1, 2, 3, 5], [0, 2, 3, 4], [0, 2, 3, 4], [1, 2, 3, 4]]])
    first = first_equal(some)
    assert first.tolist() == [[0, 1, 2, 2, 0]]
    assert read_at(torch.arange(5.0)[None], first).tolist() == [[0.0, 1.0, 2.0, 2.0, 0.0]]


def test_equal_tokens_tie_with_the_kernels_of_this_machine() -> None:
    assert broken_ties() == []


def test_equal_tokens_tie_with_older_kernels() -> None:
    code = "from tests.selectors.test_ties import broken_ties; print(broken_ties())"
    root = str(Path(__file__).parents[2])
    environment = os.environ | OLDER_KERNELS | {"PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=root)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


class Choices(nn.Module):
    """What every selector of the list chooses of the same tokens."""

    def __init__(self, readings: list[Reading], count: int, width: int) -> None:
        super().__init__()
        self.readings = readings
        self.selectors = nn.ModuleList(make(name, (1, count), width) for name in ONE_BY_ONE)

    def forward(self, features: Tensor, projected: Tensor, text: Tensor, mask: Tensor, *read: Tensor) -> list[Tensor]:
        indices = torch.arange(features.shape[1]).expand(features.shape[0], -1)
        readings = dict(zip(self.readings, read, strict=True))
        given = VisualTokens(features, indices, (), readings, projected, TextEmbeddings(text, mask))
        return [selector.select(given, KEEP) for selector in self.selectors]


@pytest.mark.parametrize(("count", "width"), [(37, 20), (75, 9)])
def test_equal_tokens_tie_in_the_exported_graph(count: int, width: int, tmp_path: Path) -> None:
    copy = copies(count)[1]
    given = repeated(copy, width)
    assert given.projected is not None
    assert given.text is not None
    needed = [make(name, (1, count), width).needs.readings for name in ONE_BY_ONE]
    readings = sorted(frozenset().union(*needed))
    module = Choices(readings, count, width)
    read = [given.readings[reading] for reading in readings]
    args = (given.features, given.projected, given.text.states, given.text.mask, *read)
    names = [f"input_{number}" for number in range(len(args))]
    batch: dict[int, str] = {0: "batch"}
    dynamic = (*(batch for _ in args[:4]), tuple(batch for _ in read))
    path = tmp_path / "choices.onnx"
    export_graph(GraphSpec("choices", module, args, names, list(ONE_BY_ONE), dynamic), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {value.name: args[names.index(value.name)].numpy() for value in session.get_inputs()}
    for name, chosen in zip(ONE_BY_ONE, session.run(None, feeds), strict=True):
        assert out_of_turn(torch.from_numpy(chosen), copy) == [], name
