"""All questions about an image in one sequence, each blind to the others.

After the image, a block-diagonal mask and restarting positions make every question see the prompt's beginning, the
visual tokens and itself, exactly as if it had been asked alone; so one pass over the visual tokens serves many answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.data.datasets import Item
from vtc.errors import InputError
from vtc.models.base import VLMAdapter


@dataclass(frozen=True)
class QuestionTokens:
    """Token ids of a question, from after the image to where the answer begins, and of its answer with end token."""

    question: list[int]
    answer: list[int]


def tokenize(adapter: VLMAdapter, items: Sequence[Item]) -> tuple[list[int], list[QuestionTokens]]:
    """Questions as the chat template lays them out, and the token ids before the image, which all of them share.

    The answer is the first of the accepted ones.

    Raises
    ------
    InputError
        If the chat template puts something of the question before the image.
    """
    prompts = [adapter.chat(item.question) for item in items]
    ids, mask = adapter.tokenize(prompts, [1] * len(prompts), 1)
    rows = [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]
    places = [row.index(adapter.image_token_id) for row in rows]
    beginnings = {tuple(row[:place]) for row, place in zip(rows, places, strict=True)}
    if len(beginnings) != 1:
        raise InputError("the chat template puts the question before the image; a pruner cannot be trained with it")
    answers = adapter.tokenizer([item.answers[0] for item in items], add_special_tokens=False)["input_ids"]
    end = adapter.eos_token_ids[:1]
    questions = [
        QuestionTokens(row[place + 1 :], list(answer) + end)
        for row, place, answer in zip(rows, places, answers, strict=True)
    ]
    return list(beginnings.pop()), questions


@dataclass(frozen=True)
class Packed:
    """A batch of images with their questions; K visual tokens each, L tokens in all, T answer tokens in the batch.

    Attributes
    ----------
    input_ids, position_ids : Tensors of shape (B, L), int64
        The K slots after the `start` first tokens are the image's; their ids are padding.
    block : Tensor of shape (B, L), int64
        0 before and in the image, the number of the question (from 1) after it, -1 on padding.
    start : int
        Tokens before the image.
    visual : int
        K.
    rows, columns, targets, question : Tensors of shape (T,), int64
        Where the answers' tokens are predicted, which they are, and the number of their question in the batch.
    """

    input_ids: Tensor
    position_ids: Tensor
    block: Tensor
    start: int
    visual: int
    rows: Tensor
    columns: Tensor
    targets: Tensor
    question: Tensor

    @property
    def seen(self) -> Tensor:
        """Which tokens each token sees, the beginning, the image and its own question up to itself: (B, L, L), bool."""
        own = self.block[:, None, :] == self.block[:, :, None]
        return ((self.block[:, None, :] == 0) | own).tril()


def pack(
    beginning: Sequence[int], images: Sequence[Sequence[QuestionTokens]], places: Tensor, span: int, padding: int
) -> Packed:
    """Lay out a batch; every token keeps the position it has in the unpruned sequence.

    Parameters
    ----------
    beginning : sequence of int
        Token ids before the image.
    images : sequence of B sequences of QuestionTokens
    places : Tensor of shape (B, K), int64
        Ascending places of the visual tokens that are there, among `span`.
    span : int
        Visual tokens of an unpruned image.
    padding : int
        Token id for unused slots.
    """
    start, count = len(beginning), places.shape[1]
    first = start + count
    length = first + max(sum(len(q.question) + len(q.answer) - 1 for q in questions) for questions in images)
    ids = torch.full((len(images), length), padding)
    positions = torch.zeros((len(images), length), dtype=torch.long)
    block = torch.full((len(images), length), -1)
    ids[:, :start] = torch.tensor(beginning, dtype=torch.long)
    positions[:, :start] = torch.arange(start)
    positions[:, start:first] = start + places.cpu()
    block[:, :first] = 0
    targets: list[tuple[int, int, int, int]] = []
    number = 0
    for row, questions in enumerate(images):
        at = first
        for index, question in enumerate(questions, start=1):
            tokens = question.question + question.answer[:-1]
            stop = at + len(tokens)
            ids[row, at:stop] = torch.tensor(tokens)
            positions[row, at:stop] = start + span + torch.arange(len(tokens))
            block[row, at:stop] = index
            columns = range(stop - len(question.answer), stop)
            targets += [(row, column, token, number) for column, token in zip(columns, question.answer, strict=True)]
            number += 1
            at = stop
    device = places.device
    rows, columns_, tokens_, numbers = torch.tensor(targets, device=device).unbind(1)
    return Packed(
        ids.to(device), positions.to(device), block.to(device), start, count, rows, columns_, tokens_, numbers
    )
