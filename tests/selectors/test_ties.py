"""Of equal tokens the lowest place is kept, whatever kernels compute the scores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from exporters.graph_spec import GraphSpec
from exporters.writing import export_graph
from tests.selectors.equal_tokens import KEEP, ONE_BY_ONE, broken_ties, copies, out_of_turn, repeated
from tests.selectors.inputs import make
from vtc.recipe.needs import Reading
from vtc.selectors.ties import first_equal, read_at
from vtc.visual_tokens import TextEmbeddings, VisualTokens

OLDER_KERNELS = {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def test_the_first_equal_token_is_found() -> None:
    some = torch.tensor([[[1.0, 2, 3, 4], [1, 2, 3, 5], [0, 2, 3, 4], [0, 2, 3, 4], [1, 2, 3, 4]]])
    first = first_equal(some)
    assert first.tolist() == [[0, 1, 2, 2, 0]]
    assert read_at(torch.arange(5.0)[None], first).tolist() == [[0.0, 1.0, 2.0, 2.0, 0.0]]


def test_equal_tokens_tie_with_the_kernels_of_this_machine() -> None:
    assert broken_ties() == []


def test_equal_tokens_tie_with_older_kernels() -> None:
    code = "from tests.selectors.equal_tokens import broken_ties; print(broken_ties())"
    root = str(Path(__file__).parents[2])
    environment = os.environ | OLDER_KERNELS | {"PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=root)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


class Choices(nn.Module):
    """What every selector of the list chooses of the same tokens."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        selectors = [make(name, (1, count), width=width) for name in ONE_BY_ONE]
        self.selectors = nn.ModuleList(selectors)
        self.readings: list[Reading] = sorted(frozenset().union(*(one.needs.readings for one in selectors)))

    def forward(self, features: Tensor, projected: Tensor, text: Tensor, mask: Tensor, *read: Tensor) -> list[Tensor]:
        indices = torch.arange(features.shape[1]).expand(features.shape[0], -1)
        readings = dict(zip(self.readings, read, strict=True))
        given = VisualTokens(features, indices, (), readings, projected, TextEmbeddings(text, mask))
        return [selector.select(given, KEEP) for selector in self.selectors]


def test_equal_tokens_tie_in_the_exported_graph(tmp_path: Path) -> None:
    count, width = 75, 9
    copy = copies(count)[1]
    given = repeated(copy, width)
    assert given.projected is not None
    assert given.text is not None
    module = Choices(count, width)
    read = [given.readings[reading] for reading in module.readings]
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
