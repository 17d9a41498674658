"""A compressed model in PyTorch, at one budget of visual tokens or several, that is asked as a bundle is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vtc.compressed.generation import Generation
from vtc.compressed.model import CompressedModel
from vtc.errors import InputError
from vtc.facts.placement import ON_CPU, Placement
from vtc.inputs.generation import GenerationRules
from vtc.inputs.prompts import clips
from vtc.runtime.answering import Askable
from vtc.runtime.budgets import Entropy, Keep, entropies, no_budget
from vtc.runtime.image import open_batch
from vtc.runtime.sampling import Sampler
from vtc.visual_tokens import VisualTokens

Asked = tuple[list[list[Image.Image]], list[str]]
"""Images and prompts of a batch of one."""


class ElasticModel(Askable):
    """Answers each question at the budget that it names or that a policy chooses.

    Parameters
    ----------
    model : CompressedModel
        At the largest budget.
    models : mapping of int to CompressedModel
        Budget, ascending, to the model there (see :func:`vtc.compressed.checkpoint.at_budgets`); empty where there is
        one for all questions.
    """

    def __init__(self, model: CompressedModel, models: Mapping[int, CompressedModel] = MappingProxyType({})) -> None:
        self.model = model
        self.models = dict(models)

    @classmethod
    def load(cls, path: str | Path, placement: Placement = ON_CPU) -> ElasticModel:
        """Load what `vtc compress` wrote; parameters and errors are those of `load_compressed`."""
        from vtc.compressed.checkpoint import at_budgets, load_compressed

        model, recipe, _ = load_compressed(Path(path), placement=placement)
        return cls(model, at_budgets(model, recipe))

    @property
    def budgets(self) -> tuple[int, ...]:
        """Ascending; none where there is one for all questions."""
        return tuple(self.models)

    @property
    def image_tokens(self) -> int:
        """Visual tokens of one image that enter the decoder at the largest budget."""
        return self.model.image_tokens

    @property
    def generation_rules(self) -> GenerationRules:
        """What the checkpoint's settings ask of answers, which this model follows."""
        return self.model.generation_rules

    def at_budget(self, keep: int) -> CompressedModel:
        """The model at one of its budgets.

        Raises
        ------
        InputError
            If there is no such budget.
        """
        if keep not in self.models:
            raise no_budget("this model", keep, self.budgets)
        return self.models[keep]

    def chat(self, question: str, images: int = 1) -> str:
        """The prompt for a question about `images` images."""
        return self.model.adapter.chat(question, clips([images], self.model.adapter.facts.layout.frames)[0])

    def generate(
        self,
        images: Sequence[Sequence[Image.Image]],
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        sampler: Sampler | None = None,
        keep: Keep = None,
    ) -> list[Generation]:
        if max_new_tokens < 1:
            raise InputError(f"max-new-tokens must be at least 1, not {max_new_tokens}")
        opened = open_batch(images)
        if isinstance(keep, Entropy):
            alone = zip(opened, prompts, strict=True)
            return [self._by_policy(([group], [prompt]), keep, max_new_tokens, sampler) for group, prompt in alone]
        budgets = self.budgets[-1:] if keep is None else (keep,)
        model = self.model if keep is None else self.at_budget(keep)
        return [replace(one, budgets=budgets) for one in model.generate(opened, prompts, max_new_tokens, sampler)]

    @torch.inference_mode()
    def _by_policy(
        self, asked: Asked, policy: Entropy, max_new_tokens: int, sampler: Sampler | None = None
    ) -> Generation:
        """Answer one prompt; the vision encoder runs once for all passes."""
        *_, pixels = self.model.inputs(*asked)
        seen = None if pixels is None else self.model.vision.tokens(pixels)

        def ask(keep: int) -> _Pass:
            return _Pass(keep, self.at_budget(keep), asked, pixels, seen)

        passes = policy.passes(self.budgets, ask, pixels is not None)
        answer = passes[-1].answer(max_new_tokens, sampler)
        return replace(answer, budgets=tuple(one.keep for one in passes))

    def score(
        self,
        images: Sequence[Sequence[Image.Image]],
        prompts: Sequence[str],
        continuations: Sequence[Sequence[int]],
    ) -> list[NDArray[np.float32]]:
        """Next-token logits along given continuations, at the largest budget; see :meth:`CompressedModel.score`."""
        return self.model.score(images, prompts, continuations)

    def kept(self, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Which visual tokens a batch of prompts keeps at the largest budget; see :meth:`CompressedModel.kept`."""
        return self.model.kept(images, prompts)


class _Pass:
    """One prompt, run at one budget.

    Parameters
    ----------
    keep : int
    model : CompressedModel
        At that budget.
    asked : images and prompts
        A batch of one.
    pixels : Tensor of shape (images, ...), or None without an image
    seen : VisualTokens or None
        What the vision encoder, which is the same at every budget, made of them.
    """

    def __init__(
        self, keep: int, model: CompressedModel, asked: Asked, pixels: Tensor | None, seen: VisualTokens | None
    ) -> None:
        self.keep = keep
        self._model = model
        ids, mask, _ = model.inputs(*asked, pixels)
        self._prefilled = model.prefill(ids, mask, pixels, seen=seen)
        self._prompt = ids, mask

    @property
    def entropies(self) -> list[float]:
        """Of the first token, in nats, before any rule."""
        logits, _ = self._prefilled
        found: list[float] = entropies(logits[:, -1].float().cpu().numpy()).tolist()
        return found

    def answer(self, max_new_tokens: int, sampler: Sampler | None) -> Generation:
        """Go on from it."""
        return self._model.go_on(self._prefilled, *self._prompt, max_new_tokens, sampler)[0]
