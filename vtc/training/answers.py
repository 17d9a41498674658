"""What models say at the tokens of answers: the original, which teaches, and the compressed model, which learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vtc.compressed.model import CompressedModel
from vtc.data.datasets import Item, load_dataset
from vtc.errors import InputError
from vtc.recipe.training import DistillationTraining
from vtc.training.encoded import EncodedImages, Kept, Seen
from vtc.training.job import TrainingJob


@dataclass(frozen=True)
class Prompt:
    """A question, its number and its image's, and the token ids of its answer, the end token included."""

    number: int
    image: int
    item: Item
    answer: tuple[int, ...]


class Pair:
    """The compressed model, at one budget or several, and the original; images are encoded once as memory allows.

    So long as there is memory, the original answers each question once, too.

    Parameters
    ----------
    models : sequence of CompressedModel
        At each budget, ascending.
    original : CompressedModel
    prompts : sequence of Prompt
        All that will be asked about.
    memory : int
        Bytes that may be kept.
    """

    def __init__(
        self,
        models: Sequence[CompressedModel],
        original: CompressedModel,
        prompts: Sequence[Prompt],
        memory: int,
    ) -> None:
        items = {prompt.image: prompt.item for prompt in prompts}
        weights = next(original.embed_tokens.parameters())

        def pixels(numbers: Sequence[int]) -> Tensor:
            return original.adapter.preprocess([items[number].load() for number in numbers]).to(weights)

        ours, theirs = models[0].vision, original.vision
        images = EncodedImages(ours, pixels, memory // 2)
        same = ours.layers == theirs.layers
        for model in models:
            model.vision = Seen(images, model.vision)
        original.vision = Seen(images if same else EncodedImages(theirs, pixels, memory // 4), theirs)
        self.models = models
        numbered = {prompt.number: prompt for prompt in prompts}

        @torch.no_grad()
        def said(numbers: Sequence[int]) -> list[Tensor]:
            asked = [numbered[number] for number in numbers]
            return [own.clone() for own in by_prompt(answers(original, asked), asked)]

        self._said = Kept(said, lambda own: own.nbytes, memory // 4)

    @property
    def device(self) -> torch.device:
        """Where both run."""
        return self.models[0].device

    def wanted(self, prompts: Sequence[Prompt]) -> Tensor:
        """What the original says at each of the T tokens of all answers, log probabilities (T, V)."""
        return torch.cat(self._said.get([prompt.number for prompt in prompts]))


def answers(model: CompressedModel, prompts: Sequence[Prompt]) -> Tensor:
    """Log probabilities (T, V) of the next token at each of the T tokens of all answers.

    Parameters
    ----------
    model : CompressedModel
        Whose vision module takes numbers of images.
    prompts : sequence of Prompt
    """
    device = model.device
    asked = [model.adapter.chat(prompt.item.question) for prompt in prompts]
    ids, mask = model.adapter.tokenize(asked, [1] * len(asked), model.keep_per_span)
    images = torch.tensor([[prompt.image] for prompt in prompts])
    encoded = model.encode(model.embed_tokens(ids.to(device)), ids.numpy(), mask.numpy(), images)
    rows = [
        [*row[real.bool()].tolist(), *prompt.answer[:-1]] for row, real, prompt in zip(ids, mask, prompts, strict=True)
    ]
    longest = max(map(len, rows))
    padded = [[model.adapter.pad_token_id] * (longest - len(row)) + row for row in rows]
    real = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    given = torch.tensor(padded, device=device), torch.tensor(real, device=device)
    most = max(len(prompt.answer) for prompt in prompts)
    answered = [len(prompt.answer) - 1 for prompt in prompts]
    logits, _ = model.prefill(*given, None, encoded=encoded, wanted=most, answered=answered)
    own = [row[most - len(prompt.answer) :] for row, prompt in zip(logits, prompts, strict=True)]
    return F.log_softmax(torch.cat(own).float(), dim=-1)


def by_prompt(values: Tensor, prompts: Sequence[Prompt]) -> Sequence[Tensor]:
    """Values (T, ...) at the tokens of all answers, those of each answer by themselves."""
    return torch.split(values, [len(prompt.answer) for prompt in prompts])


def targets(prompts: Sequence[Prompt]) -> Tensor:
    """The T tokens of all answers."""
    return torch.tensor([token for prompt in prompts for token in prompt.answer])


def load_prompts(job: TrainingJob, config: DistillationTraining) -> tuple[list[Prompt], list[Prompt]]:
    """Questions to train on, and others, about other images, to check on; at random, as files are often sorted."""
    items = load_dataset(job.source, config.questions + config.validation, config.seed, split="train").items
    tokenized = job.adapter.tokenizer([item.answers[0] for item in items], add_special_tokens=False)["input_ids"]
    end = job.adapter.eos_token_ids[:1]
    images = {image: number for number, image in enumerate(dict.fromkeys(item.image_id for item in items))}
    prompts = [
        Prompt(number, images[item.image_id], item, (*answer, *end))
        for number, (item, answer) in enumerate(zip(items, tokenized, strict=True))
    ]
    order = np.random.default_rng(config.seed).permutation(len(prompts))
    drawn = [prompts[number] for number in order]
    check_on = drawn[: max(1, min(config.validation, len(drawn) // 2))]
    seen = {prompt.item.image_id for prompt in check_on}
    train_on = [prompt for prompt in drawn if prompt.item.image_id not in seen]
    if not train_on:
        raise InputError(f"{job.source}: a part is trained on some images and checked on others; give at least two")
    return train_on, check_on
