"""Scenes of the reference model in the packed layout of :mod:`vtc.training.packing`, and its decoder over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vtc.inputs.positions import PositionRule
from vtc.reference.questions import Question
from vtc.reference.tokenizer import ASSISTANT, BOS, EOS, IMAGE, PAD, USER, token_ids
from vtc.training.forward import attention_mask
from vtc.training.packing import Packed, PromptLayout, QuestionTokens, pack

VISUAL_TOKENS = 256


def tokenize(questions: Sequence[Question], tokenizer: PreTrainedTokenizerFast) -> list[QuestionTokens]:
    """Token ids of questions and answers as the chat template lays them out."""
    end, assistant = token_ids(tokenizer, EOS, ASSISTANT)
    asked = tokenizer([q.text for q in questions], add_special_tokens=False).input_ids
    answered = tokenizer([q.answer for q in questions], add_special_tokens=False).input_ids
    return [QuestionTokens([*a, assistant], [*b, end]) for a, b in zip(asked, answered, strict=True)]


def pack_scenes(
    scenes: Sequence[Sequence[QuestionTokens]], keep: Tensor, renumber: bool, tokenizer: PreTrainedTokenizerFast
) -> Packed:
    """Lay out a batch of scenes.

    Parameters
    ----------
    scenes : sequence of sequences of QuestionTokens
        The questions of every scene.
    keep : Tensor of shape (B, K), int64
        Ascending indices of the visual tokens that are there.
    renumber : bool
        Number the kept tokens contiguously; otherwise they and the text keep the positions of the full sequence.
    tokenizer : PreTrainedTokenizerFast
    """
    bos, user, image, pad = token_ids(tokenizer, BOS, USER, IMAGE, PAD)
    rule = PositionRule("renumber") if renumber else PositionRule("original", VISUAL_TOKENS)
    packed = pack(PromptLayout([bos, user], image, pad, rule), scenes, keep)
    if keep.shape[1] or renumber:
        return packed
    # Of an image that is not there, nothing shows its length.
    return replace(packed, position_ids=packed.position_ids + VISUAL_TOKENS * (packed.block > 0))


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
    embeds = embeds.index_copy(1, packed.visual, visual.to(embeds.dtype))
    output = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=attention_mask(packed, embeds.dtype),
        position_ids=packed.position_ids,
        use_cache=False,
        output_hidden_states=True,
    )
    logits: Tensor = model.lm_head(output.last_hidden_state[packed.rows, packed.columns])
    return logits, output.hidden_states[layer]
