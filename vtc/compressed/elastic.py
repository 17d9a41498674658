"""A compressed model at several budgets, in PyTorch: what a bundle of them is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image

from vtc.compressed.model import CompressedModel, Generation
from vtc.errors import InputError
from vtc.runtime.budgets import Entropy, Keep, entropies


class ElasticModel:
    """Answers each question at a budget of its own.

    Parameters
    ----------
    models : mapping of int to CompressedModel
        Budget, ascending, to the model there; see :func:`vtc.compressed.checkpoint.at_budgets`.
    """

    def __init__(self, models: Mapping[int, CompressedModel]) -> None:
        self.models = dict(models)

    @property
    def budgets(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(self.models)

    def generate(
        self,
        images: Sequence[Sequence[Image.Image]],
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        keep: Keep = None,
    ) -> list[Generation]:
        """Greedy answers; `keep` is as for :meth:`vtc.runtime.vlm.VLM.generate`."""
        if not isinstance(keep, Entropy):
            return self._at(self.budgets[-1] if keep is None else keep).generate(images, prompts, max_new_tokens)
        alone = list(zip(images, prompts, strict=True))
        chosen = [self._at(self.chosen(group, prompt, keep)) for group, prompt in alone]
        asked = zip(chosen, alone, strict=True)
        return [model.generate([group], [prompt], max_new_tokens)[0] for model, (group, prompt) in asked]

    def chosen(self, images: Sequence[Image.Image], prompt: str, policy: Entropy) -> int:
        """The budget at which a policy has a prompt answered."""
        *smaller, largest = policy.of(self.budgets)
        for keep in smaller:
            model = self._at(keep)
            first = model.score([images], [prompt], [model.adapter.eos_token_ids[:1]])[0]
            if not images or entropies(first)[0] <= policy.threshold:
                return keep
        return largest

    def _at(self, keep: int) -> CompressedModel:
        if keep not in self.models:
            these = ", ".join(map(str, self.models))
            raise InputError(f"there is no budget of {keep} visual tokens; there are {these}")
        return self.models[keep]
