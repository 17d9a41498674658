"""The interface of a projector: visual tokens of the encoder in, fewer tokens in the decoder's space out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from vtc.facts.layout import Grid
from vtc.models.lora import LoraFactors
from vtc.recipe.needs import NOTHING, Needs
from vtc.selectors.trained import TrainedPart
from vtc.visual_tokens import VisualTokens

Own = Callable[[Tensor], Tensor]
"""A model's own projector, of tokens (B, N, D) in the encoder's space."""
LATER = {"lora": "none", "question": "yes"}
"""What files of before there was a choice do not say."""


class Projector(nn.Module, ABC):
    """What stands in the place of a model's projector.

    Parameters
    ----------
    grid : (int, int)
        Rows and columns of the tokens that come in.
    keep : int
        Tokens that go out.
    """

    def __init__(self, grid: Grid, keep: int) -> None:
        super().__init__()
        self.grid = grid
        self.keep = keep

    @property
    def needs(self) -> Needs:
        """What it looks at beyond the features."""
        return NOTHING

    @abstractmethod
    def forward(self, tokens: VisualTokens, own: Own) -> Tensor:
        """Tokens (B, keep, E) in the decoder's space; `own` may be gone on with."""

    def begin(self, tokens: VisualTokens, own: Own) -> VisualTokens:
        """Do what does not depend on the question: nothing, unless a projector that reads it says otherwise."""
        return tokens

    def finish(self, begun: VisualTokens, own: Own) -> Tensor:
        """Go on with what :meth:`begin` made, now that the question is known."""
        made: Tensor = self(begun, own)
        return made


class TrainedProjector(Projector, TrainedPart):
    """A projector with parameters of its own, made for one number of tokens of one grid, or an elastic one for several.

    Attributes
    ----------
    method : str
        Its name in a recipe.
    budgets : tuple of int
        Numbers of tokens that training is to make it good at, ascending.
    encoder_layers : tuple of int
        Those that run before it.
    lora : LoraFactors or None
        Of the decoder's updates that are trained with it.
    """

    noun = "projector"

    def __init__(self, grid: Grid, keep: int) -> None:
        super().__init__(grid, keep)
        self.method = ""
        self.lora: LoraFactors | None = None
        self.budgets: tuple[int, ...] = (keep,)
        self.encoder_layers: tuple[int, ...] = ()

    @property
    def made_for(self) -> Mapping[str, str]:
        layers = ",".join(map(str, self.encoder_layers))
        return {
            "method": self.method,
            "grid": f"{self.grid[0]}x{self.grid[1]}",
            "keep": ",".join(map(str, self.budgets)),
            "encoder_layers": layers,
            "lora": LATER["lora"] if self.lora is None else str(self.lora),
        }

    def accepts(self, name: str, stored: str | None) -> bool:
        """A file may have been trained for more budgets than are asked for."""
        if name != "keep" or stored is None:
            return super().accepts(name, LATER.get(name) if stored is None else stored)
        return set(map(str, self.budgets)) <= set(stored.split(","))


def two_layers(width: int, inner: int, out: int) -> nn.Sequential:
    """LLaVA's projector: linear, GELU, linear."""
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, out))
