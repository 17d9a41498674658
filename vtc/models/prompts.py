"""How a checkpoint writes prompts and ends answers: placeholders, chat template, special tokens, generation rules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from vtc.errors import InputError, ModelError, one_line
from vtc.facts.model import ModelFacts
from vtc.inputs.generation import FILE as GENERATION_FILE
from vtc.inputs.generation import GenerationRules, check_rules, rules_of
from vtc.inputs.prompts import expand, render_chat, without_marks, writes_start
from vtc.machine import machine_fault
from vtc.models.chat_templates import check_prompt, needed_template


class Prompts:
    """The half of an adapter that deals in text; families override what they write in another way.

    Attributes
    ----------
    path : Path
        The checkpoint's directory.
    facts : ModelFacts
    model : PreTrainedModel
    tokenizer
        The checkpoint's.
    """

    path: Path
    facts: ModelFacts
    model: Any
    tokenizer: Any
    fixed_chat_template: ClassVar[str | None] = None
    """What stands in for a chat template in families whose own processor writes the whole prompt."""

    @property
    def image_token_id(self) -> int:
        """Token id of the image placeholder."""
        return int(self.model.config.image_token_id)

    @property
    def image_token(self) -> str:
        """The token that stands for one visual token, as text."""
        return self.token_text(self.image_token_id)

    def token_text(self, number: int | None) -> str:
        """A token that the configuration names by its number, as text.

        Raises
        ------
        ModelError
            If the tokenizer has none of that number.
        """
        known = number is not None and 0 <= number < 2**31
        text = self.tokenizer.convert_ids_to_tokens(number) if known else None
        if text is None:
            raise ModelError(
                f"{self.path}: config.json names token {number}, which the tokenizer has not; take the files that "
                "belong together"
            )
        return str(text)

    def special_token(self, name: str) -> str:
        """A token that the tokenizer's settings name, such as ``bos_token``, as text.

        Raises
        ------
        ModelError
            If they name none.
        """
        token = getattr(self.tokenizer, name, None)
        if not isinstance(token, str):
            raise ModelError(
                f"{self.path}: the tokenizer names no {name}; take the tokenizer that belongs to the model"
            )
        return token

    @property
    def placeholder(self) -> str:
        """What stands for an image in a prompt."""
        return self.image_token

    @property
    def prompt_parts(self) -> Sequence[str]:
        """What a placeholder is replaced by: text before, between and after the image's runs of visual tokens."""
        return [""] * (self.facts.layout.spans + 1)

    @property
    def prompt_frame(self) -> tuple[str, str]:
        """What goes into every prompt after its last placeholder (at its start, where it has none), and at its end."""
        return "", ""

    @property
    def eos_token_ids(self) -> list[int]:
        """Token ids that end a generation."""
        generation = self.model.generation_config
        eos = None if generation is None else generation.eos_token_id
        eos = self.tokenizer.eos_token_id if eos is None else eos
        return [int(token) for token in (eos if isinstance(eos, list) else [eos]) if token is not None]

    @property
    def rules(self) -> GenerationRules:
        """What the checkpoint's generation settings ask of answers; `transformers` says where it finds them.

        Raises
        ------
        ModelError
            If they ask for something that is not served.
        """
        generation = self.model.generation_config
        return rules_of({} if generation is None else generation.to_dict(), str(self.path / GENERATION_FILE))

    @property
    def pad_token_id(self) -> int:
        """Token id used for padding; the end token where a tokenizer has none."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else self.eos_token_ids[0]

    @cached_property
    def _own_chat_template(self) -> str:
        return needed_template(self.path, self.fixed_chat_template)

    @property
    def chat_template(self) -> str:
        """The checkpoint's chat template (Jinja)."""
        return self._own_chat_template

    def chat(self, question: str, images: int = 1) -> str:
        """A question put into the checkpoint's chat template, images (or clips) first."""
        kind = "video" if self.facts.layout.frames > 1 else "image"
        question = without_marks(question, (self.placeholder, self.image_token))
        return render_chat(self.chat_template, question, images, self.tokenizer.special_tokens_map, kind)

    @property
    def question_follows_image(self) -> bool:
        """Whether the chat template puts a question after its image, where whatever reads questions looks for them."""
        question = "Which question is it?"
        prompt = self.chat(question)
        return question not in prompt or prompt.rfind(self.placeholder) < prompt.find(question)

    def check_prompts(self) -> None:
        """Make sure that template and tokenizer make a question about an image what the model takes.

        Raises
        ------
        ModelError
        InputError
            If no question fits into the decoder's context.
        """
        check_prompt(self.path, self.chat, self.placeholder)
        ids, _ = self.tokenize([self.chat("What is this?")], [1], 1)
        found, wanted = int((ids == self.image_token_id).sum()), self.facts.layout.spans
        if found != wanted:
            raise ModelError(
                f"{self.path}: a prompt has {self.image_token} {wanted} times, and the tokenizer makes token "
                f"{self.image_token_id} of it {found} times; take the tokenizer that belongs to the model"
            )

    def check_generation(self) -> None:
        """Make sure that answers can begin, and end.

        Raises
        ------
        ModelError
            If generation settings ask for what is not served, or allow no token, or nothing ends an answer.
        """
        check_rules(self.rules, self.facts.decoder.vocab, str(self.path / GENERATION_FILE))
        if not self.eos_token_ids:
            raise ModelError(
                f"{self.path}: no file names an end token, so that no answer would end; set eos_token_id in "
                f"{GENERATION_FILE}"
            )

    def tokenize(self, prompts: Sequence[str], images: Sequence[int], tokens_per_span: int) -> tuple[Tensor, Tensor]:
        """Token ids of prompts whose image placeholders are expanded.

        Parameters
        ----------
        prompts : sequence of B str
            Each holds one placeholder per image.
        images : sequence of B int
            Number of images that belong to each prompt.
        tokens_per_span : int
            Visual tokens in each of an image's runs.

        Returns
        -------
        input_ids, attention_mask : Tensors of shape (B, S), int64
            Left-padded.

        Raises
        ------
        InputError
            If a prompt's placeholders do not match its images, or it is longer than the decoder's context.
        ModelError
            If the tokenizer fails.
        """
        rows: list[list[int]] = []
        for prompt, count in zip(prompts, images, strict=True):
            run = self.image_token * tokens_per_span
            expanded = expand(prompt, self.placeholder, count, self.prompt_parts, run, self.prompt_frame)
            own_start = writes_start(prompt, self.prompt_frame, self.tokenizer.bos_token)
            try:
                rows.append(self.tokenizer(expanded, add_special_tokens=not own_start)["input_ids"])
            except Exception as error:  # tokenizers raises bare Exceptions
                raise machine_fault(error) or ModelError(
                    f"{self.path}: tokenizer cannot encode a prompt ({one_line(error)}); fetch it again"
                ) from error
            if len(rows[-1]) > self.facts.decoder.context:
                raise InputError(
                    f"prompt of {len(rows[-1])} tokens is beyond the model's context of {self.facts.decoder.context}"
                )
        longest = max(map(len, rows))
        input_ids = torch.tensor([[self.pad_token_id] * (longest - len(row)) + row for row in rows])
        attention_mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return input_ids, attention_mask
