"""A model in PyTorch for several layouts of images: each image is judged in its own, as a bundle serves it."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from vtc.evaluate.predictor import Generated, Logits, Predictor
from vtc.inputs.batches import in_parts
from vtc.inputs.generation import GenerationRules
from vtc.inputs.layouts import Offer, layouts_of


class ByLayout:
    """Predictors of one model, each made ready for a layout; every prompt goes to the one for its image.

    Parameters
    ----------
    predictors : sequence of Predictor
        The default layout's first.
    offers : sequence of Offer
        What each is made ready for.
    """

    def __init__(self, predictors: Sequence[Predictor], offers: Sequence[Offer]) -> None:
        self._predictors, self._offers = predictors, offers

    @property
    def image_tokens(self) -> int:
        """Visual tokens of one image, of the default layout, that enter the decoder."""
        return self._predictors[0].image_tokens

    @property
    def generation_rules(self) -> GenerationRules:
        """What the checkpoint's settings ask of answers, which this model follows."""
        return self._predictors[0].generation_rules

    def generate(
        self, images: list[list[Image.Image]], prompts: list[str], max_new_tokens: int = 32
    ) -> Sequence[Generated]:
        """Answer prompts greedily, those of one layout together."""
        layouts = layouts_of(images, self._offers)

        def run(rows: list[int]) -> Sequence[Generated]:
            chosen = self._predictors[layouts[rows[0]]]
            return chosen.generate([images[row] for row in rows], [prompts[row] for row in rows], max_new_tokens)

        return in_parts(layouts, run)

    def score(
        self, images: list[list[Image.Image]], prompts: list[str], continuations: list[list[int]]
    ) -> Sequence[Logits]:
        """Score continuations, those of one layout together."""
        layouts = layouts_of(images, self._offers)

        def run(rows: list[int]) -> Sequence[Logits]:
            chosen = self._predictors[layouts[rows[0]]]
            return chosen.score(
                [images[row] for row in rows], [prompts[row] for row in rows], [continuations[row] for row in rows]
            )

        return in_parts(layouts, run)


def by_layout(predictors: Sequence[Predictor], offers: Sequence[Offer]) -> Predictor:
    """One predictor for all layouts."""
    return predictors[0] if len(predictors) == 1 else ByLayout(predictors, offers)
