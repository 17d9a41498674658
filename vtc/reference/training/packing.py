"""All questions about a scene in one sequence, each blind to the others.

A block-diagonal mask and restarting positions make every question see ``<s><|user|>``, the visual tokens
and itself, exactly as if it had been asked alone; so one pass over the visual tokens serves a dozen
answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vtc.reference.questions import Question
from vtc.reference.tokenizer import ASSISTANT, BOS, EOS, PAD, USER, token_ids

VISUAL_TOKENS = 256

#: Token ids of a question up to ``<|assistant|>``, and of its answer with ``</s>``.
Tokens = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Packed:
    """A batch of packed scenes; L is the padded length and K the number of visual tokens.

    Attributes
    ----------
    input_ids : Tensor of shape (B, L)
        The K visual slots after the two prefix tokens hold padding ids.
    position_ids : Tensor of shape (B, L)
    mask : Tensor of shape (B, 1, L, L)
        Additive attention mask, 0 or -inf.
    rows, columns, targets, question : Tensors of shape (T,)
        Where the answers' tokens are predicted, which they are, and the number of their question.
    """

    input_ids: Tensor
    position_ids: Tensor
    mask: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    question: Tensor


def tokenize(questions: Sequence[Question], tokenizer: PreTrainedTokenizerFast) -> list[Tokens]:
    """Token ids of questions and answers as the chat template lays them out."""
    end, assistant = token_ids(tokenizer, EOS, ASSISTANT)
    asked = tokenizer([q.text for q in questions], add_special_tokens=False).input_ids
    answered = tokenizer([q.answer for q in questions], add_special_tokens=False).input_ids
    return [([*a, assistant], [*b, end]) for a, b in zip(asked, answered, strict=True)]


def pack(
    scenes: Sequence[Sequence[Tokens]], keep: Tensor, renumber: bool, tokenizer: PreTrainedTokenizerFast
) -> Packed:
    """Lay out a batch.

    Parameters
    ----------
    scenes : sequence of sequences of Tokens
        The questions of every scene.
    keep : Tensor of shape (B, K)
        Ascending indices of the visual tokens that are there.
    renumber : bool
        Number the kept tokens contiguously; otherwise they and the text keep the positions of the full
        sequence.
    tokenizer : PreTrainedTokenizerFast

    Returns
    -------
    Packed
    """
    bos, user, pad = token_ids(tokenizer, BOS, USER, PAD)
    count = keep.shape[1]
    head = 2 + count
    length = head + max(sum(len(q) + len(a) - 1 for q, a in scene) for scene in scenes)
    ids = torch.full((len(scenes), length), pad)
    positions = torch.zeros((len(scenes), length), dtype=torch.long)
    block = torch.full((len(scenes), length), -1)
    ids[:, 0], ids[:, 1] = bos, user
    block[:, :head] = 0
    positions[:, 1] = 1
    positions[:, 2:head] = 2 + (torch.arange(count) if renumber else keep)
    first = 2 + (count if renumber else VISUAL_TOKENS)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    numbers: list[int] = []
    number = 0
    for row, scene in enumerate(scenes):
        at = head
        for index, (asked, answer) in enumerate(scene, start=1):
            tokens = asked + answer[:-1]
            stop = at + len(tokens)
            ids[row, at:stop] = torch.tensor(tokens)
            positions[row, at:stop] = torch.arange(first, first + len(tokens))
            block[row, at:stop] = index
            rows += [row] * len(answer)
            columns += range(stop - len(answer), stop)
            targets += answer
            numbers += [number] * len(answer)
            number += 1
            at = stop
    order = torch.arange(length)
    seen = (block[:, None, :] == 0) | (block[:, None, :] == block[:, :, None])
    seen = seen & (order[None, :, None] >= order[None, None, :])
    mask = torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))[:, None]
    return Packed(
        ids,
        positions,
        mask,
        torch.tensor(rows),
        torch.tensor(columns),
        torch.tensor(targets),
        torch.tensor(numbers),
    )


def answer_logits(model: LlavaForConditionalGeneration, packed: Packed, visual: Tensor) -> Tensor:
    """Logits where answers are predicted, shape (T, vocabulary); see ``run_decoder``."""
    return run_decoder(model, packed, visual, layer=0)[0]


def run_decoder(
    model: LlavaForConditionalGeneration, packed: Packed, visual: Tensor, layer: int
) -> tuple[Tensor, Tensor]:
    """Answers' logits, and the states after an earlier decoder layer.

    Parameters
    ----------
    model : LlavaForConditionalGeneration
    packed : Packed
    visual : Tensor of shape (B, K, D)
        Projected visual tokens, those of ``keep`` only.
    layer : int
        Number of decoder layers after which to look.

    Returns
    -------
    logits : Tensor of shape (T, vocabulary)
    states : Tensor of shape (B, L, D)
    """
    embeds = model.get_input_embeddings()(packed.input_ids)
    embeds = torch.cat([embeds[:, :2], visual.to(embeds.dtype), embeds[:, 2 + visual.shape[1] :]], dim=1)
    output = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=packed.mask.to(embeds.dtype),
        position_ids=packed.position_ids,
        use_cache=False,
        output_hidden_states=True,
    )
    logits: Tensor = model.lm_head(output.last_hidden_state[packed.rows, packed.columns])
    return logits, output.hidden_states[layer]


def correct(logits: Tensor, packed: Packed) -> Tensor:
    """Whether greedy decoding gives each question's exact answer.

    With the answer fed in, the argmax is right at every one of its tokens, ``</s>`` included, exactly if
    greedy decoding produces it.

    Returns
    -------
    Tensor of bool of shape (questions,)
    """
    wrong = (logits.argmax(-1) != packed.targets).long()
    count = int(packed.question.max()) + 1
    return torch.zeros(count, dtype=torch.long).index_add_(0, packed.question, wrong) == 0
