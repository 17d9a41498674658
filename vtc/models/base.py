"""What vtc needs of a vision-language model, and nothing else.

An adapter wraps a `transformers` model without copying its modelling code: it hands out the model's own modules, cut
at the places where stages act (between encoder layers, before the projector, between decoder layers).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoProcessor, PreTrainedModel
from transformers.utils import logging as hf_logging

from vtc.attention import GROUPED_ATTENTION
from vtc.errors import InputError, ModelError
from vtc.facts import ModelFacts
from vtc.visual_tokens import gather_tokens

PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ ' ' if message['role'] == 'user' else eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""The form that LLaVA-1.5 was trained with, for checkpoints that ship no template."""


class VLMAdapter(ABC):
    """A pretrained VLM, seen as vision encoder, projector and decoder layers.

    Attributes
    ----------
    path : Path
        The checkpoint's directory.
    facts : ModelFacts
        Its sizes.
    model : PreTrainedModel
        The `transformers` model, frozen, in evaluation mode.
    """

    family: ClassVar[str]

    def __init__(self, path: Path, facts: ModelFacts, model: Any, processor: Any) -> None:
        self.path = path
        self.facts = facts
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.tokenizer = processor.tokenizer

    @classmethod
    @abstractmethod
    def read_facts(cls, path: Path) -> ModelFacts:
        """Sizes from the checkpoint's configuration."""

    @classmethod
    @abstractmethod
    def load_model(cls, path: Path) -> PreTrainedModel:
        """The `transformers` model with its weights, float32."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load a checkpoint from a local directory.

        Raises
        ------
        ModelError
            If weights or processor are missing or truncated.
        """
        facts = cls.read_facts(path)
        quiet: Any = hf_logging.disable_progress_bar
        quiet()  # reading local weights takes a moment, and errors are to be one line
        try:
            model = cls.load_model(path)
            load_processor: Any = AutoProcessor.from_pretrained
            processor = load_processor(path, local_files_only=True)
        except Exception as error:  # transformers, safetensors and tokenizers each raise kinds of their own
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"{path}: checkpoint cannot be loaded ({reason}); fetch it again") from error
        return cls(path, facts, model, processor)

    # Vision ---------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def encoder_layers(self) -> Sequence[nn.Module]:
        """The vision encoder's layers."""

    @abstractmethod
    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        """Input of the first encoder layer, (B, [1 +] N, D), of pixels (B, 3, H, W); other sizes than the model's own
        are embedded with interpolated position embeddings.
        """

    @abstractmethod
    def encoder_layer(self, index: int, hidden: Tensor) -> Tensor:
        """Output of encoder layer `index` on its input (B, [1 +] N, D)."""

    @abstractmethod
    def encoder_queries(self, index: int, hidden: Tensor) -> Tensor:
        """Queries (B, T, D) of encoder layer `index`, all heads in a row, of its input (B, T, D)."""

    @abstractmethod
    def encoder_keys(self, index: int, hidden: Tensor) -> Tensor:
        """Keys (B, T, D) of encoder layer `index`, all heads in a row, of its input (B, T, D)."""

    @abstractmethod
    def patch_tokens(self, hidden: Tensor) -> Tensor:
        """The visual tokens (B, N, D) among an encoder layer's output (B, [1 +] N, D)."""

    @property
    @abstractmethod
    def projector(self) -> nn.Module:
        """Maps visual tokens (B, K, D) into the decoder's space (B, K, E); acts on each token alone."""

    # Decoder --------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def embed_tokens(self) -> nn.Module:
        """Token embedding, (B, S) to (B, S, E)."""

    @property
    @abstractmethod
    def decoder_layers(self) -> Sequence[nn.Module]:
        """The decoder's layers."""

    @property
    @abstractmethod
    def rotary(self) -> nn.Module:
        """``rotary(hidden, position_ids)`` gives the cosines and sines of positions (B, S)."""

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The norm before the language-model head."""

    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """The language-model head, (B, S, E) to (B, S, vocabulary)."""

    def attention_rows(
        self, index: int, hidden: Tensor, queries: Tensor, seen: Tensor, position_ids: Tensor, *, rope: bool = True
    ) -> Tensor:
        """Attention of some tokens to all in decoder layer `index`, mean over heads.

        Only the rows that are asked for are computed. Serves decoders of the Llama kind: a norm, linear queries and
        keys (normed themselves where the layer does so), rotary positions, grouped heads.

        Parameters
        ----------
        hidden : Tensor of shape (B, S, E)
            The layer's input.
        queries : Tensor of shape (B, Q), int64
            Places of the tokens whose rows are wanted.
        seen : Tensor of shape (B, Q, S), bool
            Which tokens they may attend to.
        position_ids : Tensor of shape (B, S), int64
        rope : bool
            Whether queries and keys are rotated by their positions.

        Returns
        -------
        Tensor of shape (B, Q, S), float32
        """
        layer: Any = self.decoder_layers[index]
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden)
        query = self._heads(attention.q_proj(gather_tokens(normed, queries)), getattr(attention, "q_norm", None))
        key = self._heads(attention.k_proj(normed), getattr(attention, "k_norm", None))
        if rope:
            cosines, sines = self.rotary(hidden, position_ids)
            query = rotate(query, gather_tokens(cosines, queries), gather_tokens(sines, queries))
            key = rotate(key, cosines, sines)
        batch, kv_heads = key.shape[:2]
        grouped = query.reshape(batch, kv_heads, -1, key.shape[-1])
        scores = torch.matmul(grouped, key.transpose(2, 3)) * attention.scaling
        scores = scores.float().reshape(batch, query.shape[1], queries.shape[1], -1)
        scores = torch.where(seen.unsqueeze(1), scores, torch.finfo(torch.float32).min)
        return torch.softmax(scores, dim=-1).mean(dim=1)

    def decoder_keys(self, index: int, hidden: Tensor, position_ids: Tensor) -> Tensor:
        """Keys of decoder layer `index`, rotated by their positions.

        Parameters
        ----------
        hidden : Tensor of shape (B, S, E)
            The layer's input.
        position_ids : Tensor of shape (B, S), int64

        Returns
        -------
        Tensor of shape (B, S, Hkv, Dh)
        """
        layer: Any = self.decoder_layers[index]
        attention = layer.self_attn
        key = self._heads(attention.k_proj(layer.input_layernorm(hidden)), getattr(attention, "k_norm", None))
        return rotate(key, *self.rotary(hidden, position_ids)).transpose(1, 2)

    def _heads(self, projected: Tensor, norm: nn.Module | None) -> Tensor:
        """Split (B, S, H * Dh) into heads (B, H, S, Dh)."""
        batch, length, _ = projected.shape
        heads = projected.reshape(batch, length, -1, self.facts.decoder.head_dim)
        return (heads if norm is None else norm(heads)).transpose(1, 2)

    def set_decoder_attention(self, kind: Literal["sdpa", "grouped", "eager"]) -> None:
        """Choose the decoder's attention: ``sdpa`` is fast in PyTorch, ``grouped`` exports to standard operators with
        grouped key-value heads kept grouped, ``eager`` gives its maps out too. All compute the same.
        """
        self.model.set_attn_implementation({"text_config": GROUPED_ATTENTION if kind == "grouped" else kind})

    # Prompts --------------------------------------------------------------------------------------------------------

    @property
    def image_token_id(self) -> int:
        """Token id of the image placeholder."""
        return int(self.model.config.image_token_id)

    @property
    def image_token(self) -> str:
        """The image placeholder as text."""
        return str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))

    @property
    def eos_token_ids(self) -> list[int]:
        """Token ids that end a generation."""
        generation = self.model.generation_config
        eos = (generation.eos_token_id if generation is not None else None) or self.tokenizer.eos_token_id
        return [int(token) for token in (eos if isinstance(eos, list) else [eos]) if token is not None]

    @property
    def pad_token_id(self) -> int:
        """Token id used for padding; the end token where a tokenizer has none."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else self.eos_token_ids[0]

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixels (B, 3, H, W), float32, as the checkpoint's own processor makes them."""
        pixels = self.processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return cast(Tensor, pixels).float()

    @property
    def chat_template(self) -> str:
        """The checkpoint's chat template (Jinja); a plain one where it has none."""
        return str(self.processor.chat_template or self.tokenizer.chat_template or PLAIN_CHAT_TEMPLATE)

    def chat(self, question: str, images: int = 1) -> str:
        """A question put into the checkpoint's chat template, images first."""
        content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
        return str(
            self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                chat_template=self.chat_template,
                add_generation_prompt=True,
                tokenize=False,
            )
        )

    def tokenize(self, prompts: Sequence[str], images: Sequence[int], tokens_per_image: int) -> tuple[Tensor, Tensor]:
        """Token ids of prompts whose image placeholders are expanded.

        Parameters
        ----------
        prompts : sequence of B str
            Each holds one placeholder per image.
        images : sequence of B int
            Number of images that belong to each prompt.
        tokens_per_image : int
            Placeholders that each image takes.

        Returns
        -------
        input_ids, attention_mask : Tensors of shape (B, S), int64
            Left-padded.

        Raises
        ------
        InputError
            If a prompt's placeholders do not match its images, or it is longer than the decoder's context.
        """
        rows: list[list[int]] = []
        for prompt, count in zip(prompts, images, strict=True):
            found = prompt.count(self.image_token)
            if found != count:
                raise InputError(
                    f"prompt has {found} {self.image_token} placeholder(s) for {count} image(s); give one each"
                )
            expanded = prompt.replace(self.image_token, self.image_token * tokens_per_image)
            rows.append(self.tokenizer(expanded, add_special_tokens=not self._starts_with_bos(prompt))["input_ids"])
            if len(rows[-1]) > self.facts.decoder.context:
                raise InputError(
                    f"prompt of {len(rows[-1])} tokens is beyond the model's context of {self.facts.decoder.context}"
                )
        longest = max(map(len, rows))
        input_ids = torch.tensor([[self.pad_token_id] * (longest - len(row)) + row for row in rows])
        attention_mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return input_ids, attention_mask

    def _starts_with_bos(self, prompt: str) -> bool:
        # Chat templates often write the start token themselves; the tokenizer must not add a second one.
        bos = self.tokenizer.bos_token
        return bool(bos) and prompt.startswith(bos)


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864) on heads (B, H, S, Dh), halves paired; cosines (B, S, Dh)."""
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return heads * cosines.unsqueeze(1) + turned * sines.unsqueeze(1)
