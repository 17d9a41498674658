"""Questions to answers, each at the budget of visual tokens that it names or that a policy chooses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from PIL import Image

from vtc.errors import InputError
from vtc.inputs.batches import in_parts
from vtc.runtime.budgets import Entropy, Keep
from vtc.runtime.decoder import Cache, Logits
from vtc.runtime.generation import Batch, Generation, Prefilled, RunningGeneration
from vtc.runtime.image import ImageLike, open_batch, open_several
from vtc.runtime.interface import IntArray
from vtc.runtime.sampling import Sampler
from vtc.runtime.text import Text


class Answer(Protocol):
    """An answer to a question."""

    @property
    def text(self) -> str:
        """In words."""


class Askable(ABC):
    """Answers questions about images."""

    @abstractmethod
    def chat(self, question: str, images: int = 1) -> str:
        """The prompt for a question about `images` images."""

    @abstractmethod
    def generate(
        self,
        images: Sequence[Sequence[Image.Image]],
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        sampler: Sampler | None = None,
        keep: Keep = None,
    ) -> Sequence[Answer]:
        """Answer a batch of prompts.

        Parameters
        ----------
        images : for each prompt, its images
        prompts : sequence of str
            Whole prompts (see :meth:`chat`) with one placeholder an image.
        max_new_tokens : int
        sampler : Sampler or None
            None is greedy.
        keep : int, Entropy or None
            As in :meth:`ask`. A policy decides for each prompt by itself, and each is run by itself then.

        Returns
        -------
        list of Generation
        """

    def ask(
        self,
        image: ImageLike | Sequence[ImageLike] | None,
        question: str,
        max_new_tokens: int = 64,
        keep: Keep = None,
        **sampling: Any,
    ) -> str:
        """Answer a question about an image (or several, or none).

        Parameters
        ----------
        image : path, PIL image, array (a camera's frame), bytes or file object, a sequence of those, or None
            See :func:`vtc.runtime.image.open_image`.
        question : str
        max_new_tokens : int
        keep : int, Entropy or None
            Where there are several `budgets`: which it gets, or what chooses; None is the largest.
        sampling
            Fields of :class:`~vtc.runtime.sampling.Sampler` by name, such as ``temperature=0.7``; greedy without.

        Returns
        -------
        str
        """
        images = open_several(image)
        prompt = self.chat(question, len(images))
        return self.generate([images], [prompt], max_new_tokens, Sampler(**sampling), keep)[0].text


class Answering(Askable):
    """Asks a model that runs prompts and steps, whatever runs them.

    Attributes
    ----------
    text : Text
    budgets : tuple of int
        Those that a question may get, ascending; none where there is one for all.
    """

    text: Text
    budgets: tuple[int, ...]

    # What a model has to say and to do ------------------------------------------------------------------------

    @abstractmethod
    def at_budget(self, keep: int) -> Answering:
        """The same model at one of its `budgets`.

        Raises
        ------
        InputError
            If it has no such budget.
        """

    @abstractmethod
    def layouts(self, images: Sequence[Sequence[Image.Image]]) -> list[int]:
        """Number of each prompt's layout; those of one layout can be run together."""

    @abstractmethod
    def inputs(
        self, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str], new_tokens: int = 1
    ) -> tuple[float, Batch]:
        """Milliseconds that making it took, and a batch that is ready to run and to be answered at such length."""

    @abstractmethod
    def prefill(self, batch: Batch) -> Prefilled:
        """Run prompts."""

    @abstractmethod
    def step(self, tokens: IntArray, cache: Cache) -> Logits:
        """Run one more token of each row, (B,); the cache moves on. Returns logits (B, V)."""

    # One question -------------------------------------------------------------------------------------------

    def stream(
        self,
        image: ImageLike | Sequence[ImageLike] | None,
        question: str,
        max_new_tokens: int = 64,
        keep: Keep = None,
        **sampling: Any,
    ) -> Iterator[str]:
        """Answer as :meth:`ask` does, yielding the answer piece by piece."""
        images = open_several(image)
        prompt = self.chat(question, len(images))
        yield from self.start([images], [prompt], max_new_tokens, Sampler(**sampling), keep).stream()

    # Batches ------------------------------------------------------------------------------------------------

    def generate(
        self,
        images: Sequence[Sequence[Image.Image]],
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        sampler: Sampler | None = None,
        keep: Keep = None,
    ) -> list[Generation]:
        opened = open_batch(images)
        if isinstance(keep, Entropy):
            alone = zip(opened, prompts, strict=True)
            running = (self.start([group], [prompt], max_new_tokens, sampler, keep) for group, prompt in alone)
            return [one.finish()[0] for one in running]

        def answer(rows: list[int]) -> list[Generation]:
            part = [opened[row] for row in rows], [prompts[row] for row in rows]
            return self.start(*part, max_new_tokens, sampler or Sampler(), keep).finish()

        return in_parts(self.layouts(opened), answer)

    def start(
        self,
        images: Sequence[Sequence[Image.Image]],
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        sampler: Sampler | None = None,
        keep: Keep = None,
    ) -> RunningGeneration:
        """Run a batch's prefill; the result goes on token by token.

        Parameters are those of :meth:`generate`; by a policy a batch gets the budget that its least certain row asks
        for.
        """
        if isinstance(keep, Entropy):

            def ask(budget: int) -> RunningGeneration:
                return self.at_budget(budget).start(images, prompts, max_new_tokens, sampler)

            *given_up, last = keep.passes(self.budgets, ask, any(images))
            return last.after(given_up)
        if keep is not None:
            return self.at_budget(keep).start(images, prompts, max_new_tokens, sampler)
        if max_new_tokens < 1:
            raise InputError(f"max-new-tokens must be at least 1, not {max_new_tokens}")
        batch = self.inputs(images, prompts, max_new_tokens)
        return RunningGeneration(self, *batch, max_new_tokens, sampler or Sampler())
