"""Projectors with the parameters of the golden vectors, on their inputs, and what the authors' code made of those."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vtc.facts.layout import Grid
from vtc.projectors.base import Own, Projector
from vtc.projectors.c_abstractor import CAbstractor
from vtc.projectors.deco import Deco
from vtc.projectors.ldpv2 import LdpV2
from vtc.projectors.llava_sp import LlavaSp
from vtc.projectors.m3 import M3
from vtc.projectors.mqt import Mqt
from vtc.projectors.pixel_shuffle import PixelShuffle
from vtc.projectors.qmop import Mixture, Qmop
from vtc.projectors.quecc import QueCC
from vtc.projectors.tokenflex import TokenFlex
from vtc.projectors.tokenpacker import TokenPacker
from vtc.recipe.needs import Reading
from vtc.recipe.projectors.qmop import BRANCHES
from vtc.visual_tokens import TextEmbeddings, VisualTokens, in_grids

GOLDENS = Path(__file__).parents[1] / "goldens"
LAYERS = (0, 1, 2, 3)
CLS = 5
Square = int


def same(values: Tensor) -> Tensor:
    """Values as they are."""
    return values


@dataclass(frozen=True)
class Vector:
    """One run of the authors' code.

    Attributes
    ----------
    name : str
    projector : Projector
    tokens : VisualTokens
    expected : Tensor
    own : callable
        The model's own projector.
    picked : callable
        The part of the result that was kept.
    """

    name: str
    projector: Projector
    tokens: VisualTokens
    expected: Tensor
    own: Own = same
    picked: Callable[[Tensor], Tensor] = same

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Everything that the projector reads of the tokens."""
        text = () if self.tokens.text is None else (self.tokens.text.states,)
        return (self.tokens.features, *self.tokens.readings.values(), *text)

    def given(self, *inputs: Tensor) -> VisualTokens:
        """The tokens with other values read."""
        features, *rest = inputs
        readings = dict(zip(self.tokens.readings, rest, strict=False))
        text = None if self.tokens.text is None else replace(self.tokens.text, states=rest[-1])
        return replace(self.tokens, features=features, readings=readings, text=text)


def _file(name: str) -> Any:
    return np.load(GOLDENS / f"{name}.npz")


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.asarray(values))


def _loaded(module: Projector, file: Any, prefix: str = "p.", **more: str) -> Projector:
    named = {key.removeprefix(prefix): _tensor(file[key]) for key in file.files if key.startswith(prefix)}
    module.load_state_dict(named | {name: _tensor(file[key]) for name, key in more.items()})
    return module.eval()


def _tokens(x: Any, side: Square, several: Any = None, text: Any = None) -> VisualTokens:
    readings = {}
    if several is not None:
        parts = _tensor(several).chunk(len(LAYERS), dim=-1)
        readings = {Reading("hidden_states", layer): part for layer, part in zip(LAYERS, parts, strict=True)}
    tokens = in_grids(_tensor(x), [(side, side)], readings=readings)
    if text is None:
        return tokens
    return replace(tokens, text=TextEmbeddings(_tensor(text), torch.ones(text.shape[:2], dtype=torch.long)))


def _square(side: Square) -> Grid:
    return side, side


def vectors() -> Iterator[Vector]:
    """All of them."""
    torch.manual_seed(0)
    yield from _pooled()
    yield from _seen()
    yield from _mixed()


def _pooled() -> Iterator[Vector]:
    file = _file("deco")
    for size, kept in ((8, (4, 5, 6)), (24, (12, 10, 8))):
        for side in kept:
            made = _loaded(Deco(_square(size), _square(side), 16, 24), file)
            key = f"n{size**2}"
            tokens = _tokens(file[f"{key}_x"], size)
            yield Vector(f"deco-{size}-{side}", made, tokens, _tensor(file[f"{key}_q{side**2}_out"]))
    file = _file("tokenflex")
    for size in (24, 27):
        for side in (8, 12, 16):
            made = _loaded(TokenFlex(_square(size), side, 16, 24), file)
            key = f"n{size**2}"
            tokens = _tokens(file[f"{key}_x"], size)
            yield Vector(f"tokenflex-{size}-{side}", made, tokens, _tensor(file[f"{key}_t{side**2}_out"]))
    file = _file("ldp")
    made = _loaded(LdpV2(_square(24), _square(12), 16, 24), file, "v2.")
    yield Vector("ldpv2", made, _tokens(file["x"], 24), _tensor(file["v2_out"]))
    file = _file("cabstractor")
    for side in (4, 6):
        made = _loaded(CAbstractor(_square(8), _square(side), 32, 48, 40, depth=2), file)
        yield Vector(f"c_abstractor-{side}", made, _tokens(file["x"], 8), _tensor(file[f"q{side**2}_out"]))
    file = _file("m3")
    for kept, side in ((144, 2), (64, 3), (36, 4), (9, 8), (1, 24)):
        yield Vector(f"m3-{kept}", M3(_square(24), side), _tokens(file["x"], 24), _tensor(file[f"t{kept}_out"]))
    file = _file("pixel_shuffle")
    for name, side in (("internvl", 2), ("idefics3", 2), ("idefics3_s4", 4), ("llama4", 2)):
        shuffle = PixelShuffle(_square(8), side, 6, 6)
        shuffle.mlp = nn.Sequential()  # the vectors end before the layers
        x = file["x"].astype(np.float32).reshape(1, 64, 6)
        yield Vector(f"pixel_shuffle-{name}", shuffle, _tokens(x, 8), _tensor(file[f"{name}_out"]).float())


def _seen() -> Iterator[Vector]:
    file = _file("mqt")
    for kept in (1, 2, 16, 64, 144, 256):
        made = _loaded(Mqt(_square(24), kept, 32, int(file["num_heads"]), 48), file)
        expected = _tensor(file[f"m{kept}_out"])
        yield Vector(f"mqt-{kept}", made, _tokens(file["x"][: len(expected)], 24), expected)
    file = _file("tokenpacker")
    for prefix, key, size, side in (("", "s2", 12, 2), ("", "s3", 12, 3), ("", "s4", 12, 4), ("big_", "big_s2", 24, 2)):
        made = _loaded(TokenPacker(_square(size), side, 32, int(file["num_heads"]), 48, LAYERS), file)
        tokens = _tokens(file[f"{prefix}x"], size, file[f"{prefix}x_multi"])
        yield Vector(f"tokenpacker-{key}", made, tokens, _tensor(file[f"{key}_out"]))
    file = _file("quecc")
    for side in (2, 4, 8):
        down = {f"q_downsample.{part}": f"k{side}_q_downsample.{part}" for part in ("weight", "bias")}
        made = _loaded(QueCC(_square(8), side, 32, int(file["num_heads"]), 40, LAYERS), file, **down)
        tokens = _tokens(file["x"], 8, file["x_multi"], file["text"])
        yield Vector(f"quecc-{side}", made, tokens, _tensor(file[f"k{side}_out"]))


def _mixed() -> Iterator[Vector]:
    file = _file("llava_sp")
    own = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 12))
    prefix = "pool.mm_projector."
    own.load_state_dict({k.removeprefix(prefix): _tensor(file[k]) for k in file.files if k.startswith(prefix)})
    added = LlavaSp(_square(24), 8, 4, 12)
    named = {k.removeprefix("pool."): _tensor(file[k]) for k in file.files if k.startswith("pool.")}
    added.load_state_dict({name: value for name, value in named.items() if not name.startswith("mm_projector")})
    tokens = _tokens(file["x"], 24)
    yield Vector("llava_sp-six", added, tokens, _tensor(file["pool_out6"]), own, lambda out: out[:, :6])
    yield Vector("llava_sp-last", added, tokens, _tensor(file["pool_out_all_last4"]), own, lambda out: out[:, -4:])
    file = _file("qmop_selfmade")
    names = {f"branches.resampler.{name}": f"p.{name}" for name in ("query", "pos")}
    names |= {f"branches.resampler.{name}.weight": f"p.{name}" for name in ("wq", "wk", "wv", "wo")}
    for branch, one in zip(BRANCHES, "abc", strict=True):
        names |= {f"projections.{branch}.weight": f"p.proj_{one}", f"projections.{branch}.bias": f"p.bias_{one}"}
    names |= {"router.0.weight": "p.w1", "router.0.bias": "p.b1", "router.2.weight": "p.w2", "router.2.bias": "p.b2"}
    mixtures: tuple[tuple[Mixture, str], ...] = (("top_2", "out_top2"), ("all", "out_dense"))
    for mixture, key in mixtures:
        mixed = Qmop(_square(8), _square(4), 16, 2, 24, 16, 20, 32, mixture, CLS, linear=True)
        state = mixed.state_dict() | {name: _tensor(file[key]).float() for name, key in names.items()}
        score = {"weight": _tensor(file["p.score_w"])[None], "bias": _tensor(file["p.score_b"])[None]}
        state |= {f"branches.pruning.score.{name}": value for name, value in score.items()}
        mixed.load_state_dict(state)
        tokens = _tokens(file["x"], 8, text=file["eos"][:, None])
        tokens = replace(tokens, readings={Reading("cls_state", CLS): _tensor(file["cls"])})
        yield Vector(f"qmop-{mixture}", mixed.eval(), tokens, _tensor(file[key]))
