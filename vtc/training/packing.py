"""Questions about images in as few sequences as their attention allows, each blind to the others.

After the image, a block-diagonal mask and restarting positions make every question see the prompt's beginning, the
visual tokens and itself, exactly as if it had been asked alone; so one pass over the visual tokens serves many answers.
Where the image sees the question too, each question has a sequence of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vtc.data.datasets import Item
from vtc.errors import InputError
from vtc.inputs.positions import PositionRule, positions
from vtc.inputs.schedule import attention_blocks
from vtc.models.base import VLMAdapter
from vtc.plan import plan
from vtc.recipe import NONE


@dataclass(frozen=True)
class QuestionTokens:
    """Token ids of a question, from after the image to where the answer begins, and of its answer with end token."""

    question: list[int]
    answer: list[int]


def tokenize(adapter: VLMAdapter, items: Sequence[Item]) -> tuple[list[int], list[QuestionTokens]]:
    """Questions as the chat template lays them out, and the token ids before them, which all of them share.

    These go as far as the image's last run of placeholders; each earlier run is one placeholder among them. The answer
    is the first of the accepted ones.

    Raises
    ------
    InputError
        If the chat template puts something of the question before the image.
    """
    prompts = [adapter.chat(item.question) for item in items]
    ids, mask = adapter.tokenize(prompts, [1] * len(prompts), 1)
    rows = [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]
    places = [len(row) - 1 - row[::-1].index(adapter.image_token_id) for row in rows]
    beginnings = {tuple(row[:place]) for row, place in zip(rows, places, strict=True)}
    if len(beginnings) != 1:
        raise InputError(
            f"the chat template of {adapter.path} puts the question before the image, and no selector can be trained "
            "with it; take a recipe whose selector needs no training"
        )
    answers = adapter.tokenizer([item.answers[0] for item in items], add_special_tokens=False)["input_ids"]
    end = adapter.eos_token_ids[:1]
    questions = [
        QuestionTokens(row[place + 1 :], list(answer) + end)
        for row, place, answer in zip(rows, places, answers, strict=True)
    ]
    return list(beginnings.pop()), questions


@dataclass(frozen=True)
class PromptLayout:
    """What a model's prompts have in common.

    Attributes
    ----------
    beginning : sequence of int
        As :func:`tokenize` gives it.
    placeholder, padding : int
        Token ids.
    positions : PositionRule
    spans : int
        S, runs of placeholders that an image takes.
    bidirectional : {"none", "image", "prompt"}
        As for :func:`vtc.inputs.schedule.attention_blocks`.
    """

    beginning: Sequence[int]
    placeholder: int
    padding: int
    positions: PositionRule
    spans: int = 1
    bidirectional: str = "none"

    @classmethod
    def of(cls, adapter: VLMAdapter, beginning: Sequence[int]) -> PromptLayout:
        """That of a model, in which visual tokens keep the positions that they have without pruning."""
        facts = adapter.facts
        whole = plan(NONE, facts)
        rule = PositionRule("original", whole.position_span, whole.position_grids, facts.layout.time_step)
        spans, both_ways = facts.layout.spans, facts.decoder.bidirectional
        return cls(beginning, adapter.image_token_id, adapter.pad_token_id, rule, spans, both_ways)

    def frame(self, keep: int) -> list[int]:
        """Token ids before the questions, with `keep` placeholders in each run."""
        ids = [*self.beginning, self.placeholder]
        return [token for one in ids for token in [one] * (keep if one == self.placeholder else 1)]


@dataclass(frozen=True)
class Packed:
    """R sequences of L tokens about a batch of images, S runs of K visual tokens each; T answer tokens in all.

    Attributes
    ----------
    input_ids : Tensor of shape (R, L), int64
        With placeholders where visual tokens go.
    position_ids : Tensor of shape (R, L) or (3, R, L), int64
    block : Tensor of shape (R, L), int64
        0 before the questions, the number of the question (from 1) in it, -1 on padding. A question that its image
        sees has 0.
    groups : Tensor of shape (R, L), int64, or None
        Groups of tokens that attend to each other in both directions (see
        :func:`vtc.inputs.schedule.attention_blocks`), for decoders that have such.
    images : Tensor of shape (R,), int64
        The image that each sequence is about.
    visual : Tensor of shape (S * K,), int64
        Where visual tokens stand in each sequence.
    first : int
        Where questions begin.
    rows, columns, targets, question : Tensors of shape (T,), int64
        Where the answers' tokens are predicted, which they are, and the number of their question in the batch.
    """

    input_ids: Tensor
    position_ids: Tensor
    block: Tensor
    groups: Tensor | None
    images: Tensor
    visual: Tensor
    first: int
    rows: Tensor
    columns: Tensor
    targets: Tensor
    question: Tensor

    @property
    def together(self) -> Tensor:
        """Whether a token is of the beginning, the image or the other's own question: (R, L, L), bool."""
        return (self.block[:, None, :] == 0) | (self.block[:, None, :] == self.block[:, :, None])


def pack(prompts: PromptLayout, images: Sequence[Sequence[QuestionTokens]], places: Tensor) -> Packed:
    """Lay out a batch; every token keeps the position that it has where its question is asked alone.

    Parameters
    ----------
    prompts : PromptLayout
    images : sequence of B sequences of QuestionTokens
    places : Tensor of shape (B * S, K), int64
        Ascending places of the visual tokens that are there among all of each run, separators included.
    """
    frame = prompts.frame(places.shape[1])
    alone = _alone(prompts, frame, images, places.cpu().numpy())
    rows = [(image, list(questions)) for image, questions in enumerate(images)]
    number_of_first = 1
    if prompts.bidirectional == "prompt":  # the image sees the question
        rows, number_of_first = [(image, [question]) for image, own in rows for question in own], 0
    first = len(frame)
    length = first + max(sum(len(q.question) + len(q.answer) - 1 for q in questions) for _, questions in rows)
    ids = np.full((len(rows), length), prompts.padding, dtype=np.int64)
    position_ids = np.zeros((*alone.position_ids.shape[:-2], len(rows), length), dtype=np.int64)
    block, groups = np.full_like(ids, -1), np.full_like(ids, -1)
    ids[:, :first], block[:, :first] = frame, 0
    targets: list[tuple[int, int, int, int]] = []
    number = 0
    for row, (_, questions) in enumerate(rows):
        position_ids[..., row, :first] = alone.position_ids[..., number, :first]
        groups[row, :first] = alone.groups[number, :first]
        at = first
        for index, question in enumerate(questions, start=number_of_first):
            said = at + len(question.question)
            stop = said + len(question.answer) - 1
            own = slice(first, first + len(question.question))
            ids[row, at:stop] = question.question + question.answer[:-1]
            position_ids[..., row, at:said] = alone.position_ids[..., number, own]
            position_ids[..., row, said:stop] = alone.following[number] + np.arange(stop - said)
            groups[row, at:said] = alone.groups[number, own]
            block[row, at:stop] = index
            columns = range(said - 1, stop)
            targets += [(row, column, token, number) for column, token in zip(columns, question.answer, strict=True)]
            number += 1
            at = stop
    device = places.device
    rows_, columns_, tokens, numbers = torch.tensor(targets, device=device).unbind(1)
    return Packed(
        input_ids=torch.from_numpy(ids).to(device),
        position_ids=torch.from_numpy(position_ids).to(device),
        block=torch.from_numpy(block).to(device),
        groups=None if prompts.bidirectional == "none" else torch.from_numpy(groups).to(device),
        images=torch.tensor([image for image, _ in rows], device=device),
        visual=torch.from_numpy(np.flatnonzero(np.asarray(frame) == prompts.placeholder)).to(device),
        first=first,
        rows=rows_,
        columns=columns_,
        targets=tokens,
        question=numbers,
    )


@dataclass(frozen=True)
class _Alone:
    """Positions ([3,] Q, L') and groups (Q, L') of questions asked one by one, and the position (Q,) that follows."""

    position_ids: NDArray[np.int64]
    groups: NDArray[np.int64]
    following: NDArray[np.int64]


def _alone(
    prompts: PromptLayout,
    frame: Sequence[int],
    images: Sequence[Sequence[QuestionTokens]],
    places: NDArray[np.int64],
) -> _Alone:
    """What inference works out for each question, asked alone."""
    asked = [[*frame, *question.question] for questions in images for question in questions]
    ids = np.full((len(asked), max(map(len, asked))), prompts.padding, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(asked):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    keep = places.shape[1]
    runs = places.reshape(len(images), prompts.spans, keep)
    own = np.repeat(runs, [len(questions) for questions in images], axis=0).reshape(len(asked) * prompts.spans, keep)
    found = positions(ids, mask, prompts.placeholder, own, prompts.positions)
    groups = attention_blocks(ids, mask, prompts.placeholder, keep, prompts.bidirectional)
    return _Alone(found.ids, groups, found.following)
