"""A model of several budgets that is asked one question at a time: what a policy spends on each, and what it takes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vtc.data.datasets import Item
from vtc.evaluate.predictor import Generated, Logits, Predictor
from vtc.inputs.generation import GenerationRules
from vtc.runtime.budgets import Entropy, Keep

Images = Sequence[Sequence[Image.Image]]


class Passed(Generated, Protocol):
    """An answer, and the budgets at which it was asked, one after the other; the last one answered."""

    @property
    def budgets(self) -> tuple[int, ...]:
        """Of visual tokens."""


class Elastic(Protocol):
    """A model of several budgets: a bundle, or one in PyTorch."""

    @property
    def budgets(self) -> tuple[int, ...]:
        """Ascending; none where there is one for all questions."""

    @property
    def generation_rules(self) -> GenerationRules:
        """As of a predictor."""

    def at_budget(self, keep: int) -> Predictor:
        """The model at one of them."""

    def generate(
        self, images: Images, prompts: Sequence[str], max_new_tokens: int = 32, sampler: None = None, keep: Keep = None
    ) -> Sequence[Passed]:
        """Answer B prompts at a budget, or by a policy."""


@dataclass(frozen=True)
class Timed:
    """An answer, the budgets at which it was asked, and the milliseconds of all that: preprocessing to last token."""

    token_ids: Sequence[int]
    text: str
    budgets: tuple[int, ...]
    ms: float

    def to_dict(self) -> dict[str, Any]:
        """What is noted beside tokens and text."""
        return {"budgets": list(self.budgets), "ms": self.ms}

    @staticmethod
    def told(note: Mapping[str, Any]) -> bool:
        """Whether a note holds what :meth:`to_dict` gives."""
        budgets, ms = note.get("budgets"), note.get("ms")
        return isinstance(budgets, list) and bool(budgets) and isinstance(ms, float)


class OneByOne:
    """Asks at a budget, or by a policy, one question after the other.

    Parameters
    ----------
    model : Elastic
    keep : int or Entropy
    """

    def __init__(self, model: Elastic, keep: int | Entropy) -> None:
        self._model, self.keep = model, keep
        self._tried = (keep,) if isinstance(keep, int) else keep.of(model.budgets)
        self._warm = False

    @property
    def image_tokens(self) -> int:
        """Visual tokens of one image that enter the decoder, in the first pass."""
        return self._model.at_budget(self._tried[0]).image_tokens

    @property
    def generation_rules(self) -> GenerationRules:
        """What the checkpoint's settings ask of answers, which this model follows."""
        return self._model.generation_rules

    def generate(
        self, images: list[list[Image.Image]], prompts: list[str], max_new_tokens: int = 32
    ) -> Sequence[Timed]:
        """Answer prompts greedily."""
        if not self._warm:  # no question's time holds the loading of a graph
            for keep in self._tried:
                self._model.generate(images[:1], prompts[:1], 1, keep=keep)
            self._warm = True
        return [self._timed(group, prompt, max_new_tokens) for group, prompt in zip(images, prompts, strict=True)]

    def _timed(self, images: list[Image.Image], prompt: str, max_new_tokens: int) -> Timed:
        begin = time.perf_counter()
        (answer,) = self._model.generate([images], [prompt], max_new_tokens, keep=self.keep)
        ms = (time.perf_counter() - begin) * 1000
        return Timed(answer.token_ids, answer.text, answer.budgets, ms)

    def score(
        self, images: list[list[Image.Image]], prompts: list[str], continuations: list[list[int]]
    ) -> Sequence[Logits]:
        """Score each continuation at the budget at which its prompt is answered."""
        return [self._score(*one) for one in zip(images, prompts, continuations, strict=True)]

    def _score(self, images: list[Image.Image], prompt: str, continuation: list[int]) -> Logits:
        (answer,) = self._model.generate([images], [prompt], 1, keep=self.keep)
        (logits,) = self._model.at_budget(answer.budgets[-1]).score([images], [prompt], [continuation])
        return logits

    def spent(self, items: Sequence[Item], found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """What was spent on answers, from what was noted of them.

        Returns
        -------
        dict
            ``answered_at``: budget to number of questions; ``tokens_answered`` and ``visual_tokens``: visual tokens of
            the pass that answered and of all passes, ``passes``, means over questions; ``latency_ms``: p50 and p95.
        """
        passes = [found[item.id]["budgets"] for item in items]
        tokens = {keep: self._model.at_budget(keep).image_tokens for keep in {one for each in passes for one in each}}
        answered = Counter(each[-1] for each in passes)
        p50, p95 = np.quantile([found[item.id]["ms"] for item in items], (0.5, 0.95)).tolist()
        return {
            "answered_at": {str(keep): answered[keep] for keep in self._model.budgets},
            "tokens_answered": float(np.mean([tokens[each[-1]] for each in passes])),
            "visual_tokens": float(np.mean([sum(tokens[keep] for keep in each) for each in passes])),
            "passes": float(np.mean([len(each) for each in passes])),
            "latency_ms": {"p50": p50, "p95": p95},
        }
