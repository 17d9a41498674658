"""A model with a recipe applied: the PyTorch reference that every exported bundle is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vtc.decoder import DecoderSegment, GatherTokens, KeyValue, MergeTokens
from vtc.errors import InputError
from vtc.models.base import VLMAdapter
from vtc.plan import TokenPlan, plan
from vtc.recipe import FrequencyFilter as FrequencyFilterEntry
from vtc.recipe import Prune as PruneEntry
from vtc.recipe import Recipe
from vtc.selectors import BuildContext, build_selector
from vtc.sequence import TextTokens, positions, text_tokens
from vtc.stages.frequency_filter import FrequencyFilter
from vtc.stages.prune import Prune
from vtc.vision_encoder import VisionEncoder


@dataclass(frozen=True)
class Generation:
    """An answer: the generated token ids, the end token left out, and their text."""

    token_ids: list[int]
    text: str


@dataclass
class DecoderState:
    """A running generation.

    Attributes
    ----------
    past : list over segments of list over layers of (key, value), each of shape (B, Hkv, P, Dh)
    masks : list over segments of Tensor of shape (B, P), int64
        1 for tokens in that segment's cache, 0 for padding.
    following : Tensor of shape (B,), int64
        Position of the next token.
    """

    past: list[list[KeyValue]]
    masks: list[Tensor]
    following: Tensor


class CompressedModel(nn.Module):
    """Adapter plus plan: prefill, decode, generate.

    Parameters
    ----------
    adapter : VLMAdapter
    plan : TokenPlan
    vision : module
        Pixels (B, 3, H, W) to features (B, K, E) and keep indices (B, K).
    tokens_per_image : int or None
        K; None takes it from the plan.
    """

    def __init__(
        self, adapter: VLMAdapter, plan: TokenPlan, vision: nn.Module, tokens_per_image: int | None = None
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.plan = plan
        self.vision = vision
        self.visual_tokens = plan.keep if tokens_per_image is None else tokens_per_image
        self.embed_tokens = adapter.embed_tokens
        last = len(plan.segments) - 1
        self.segments = nn.ModuleList(
            DecoderSegment(adapter, [plan.decoder_layers[layer] for layer in segment.layers], last=number == last)
            for number, segment in enumerate(plan.segments)
        )
        self.gather = GatherTokens()
        self.merge = MergeTokens()

    @property
    def stages(self) -> nn.Module:
        """The encoder stages, which hold whatever a recipe trained."""
        return self.vision.stages if isinstance(self.vision, VisionEncoder) else nn.ModuleList()

    # Prefill and decode ---------------------------------------------------------------------------------------------

    def prefill(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor | None
    ) -> tuple[Tensor, DecoderState]:
        """Run prompts through the model.

        Parameters
        ----------
        input_ids, attention_mask : Tensors of shape (B, S), int64
            Left-padded, each image K placeholders.
        pixel_values : Tensor of shape (images, 3, H, W), or None for a batch without images

        Returns
        -------
        logits : Tensor of shape (B, 1, vocabulary)
        state : DecoderState
        """
        embeds, keep_indices = self._embed(input_ids, pixel_values)
        ids, mask = input_ids.numpy(), attention_mask.numpy()
        original = self.plan.position_span if self.plan.positions == "original" else None
        places = positions(ids, mask, self.adapter.image_token_id, keep_indices.numpy(), original)
        everything = _Tokens(embeds, attention_mask, torch.from_numpy(places.ids))
        text = text_tokens(ids, mask, self.adapter.image_token_id)
        if any(segment.sees == "text" for segment in self.plan.segments) and bool(
            (text.indices[:, -1] != ids.shape[1] - 1).any()
        ):
            raise InputError(
                "a prompt must end in text when visual tokens leave the decoder; put the image before the question"
            )
        hidden = embeds
        sees = "all"
        state = DecoderState([], [], torch.from_numpy(places.following))
        for segment, spec in zip(self.segments, self.plan.segments, strict=True):
            hidden, everything = self._cross(hidden, everything, text, sees, spec.sees)
            sees = spec.sees
            tokens = everything if sees == "all" else everything.text(text)
            hidden, past = segment(hidden, tokens.mask, tokens.positions, self._no_past(len(spec.layers), hidden))
            state.past.append(past)
            state.masks.append(tokens.mask)
        return hidden, state

    def _cross(
        self, hidden: Tensor, everything: _Tokens, text: TextTokens, before: str, after: str
    ) -> tuple[Tensor, _Tokens]:
        """Hand hidden states from a segment that sees `before` to one that sees `after`."""
        if before == after:
            return hidden, everything
        if after == "text":
            everything = _Tokens(hidden, everything.mask, everything.positions)
            return self.gather(hidden, torch.from_numpy(text.indices)), everything
        return self.merge(everything.hidden, hidden, torch.from_numpy(text.back)), everything

    def decode(self, token_ids: Tensor, state: DecoderState) -> Tensor:
        """One more token (B, 1) for each row; the state moves on. Returns logits (B, 1, vocabulary)."""
        hidden: Tensor = self.embed_tokens(token_ids)
        for number, segment in enumerate(self.segments):
            mask = torch.cat([state.masks[number], torch.ones_like(token_ids)], dim=1)
            hidden, state.past[number] = segment(hidden, mask, state.following[:, None], state.past[number])
            state.masks[number] = mask
        state.following = state.following + 1
        return hidden

    def _embed(self, input_ids: Tensor, pixel_values: Tensor | None) -> tuple[Tensor, Tensor]:
        embeds = self.embed_tokens(input_ids)
        if pixel_values is None:
            return embeds, torch.zeros(0, self.visual_tokens, dtype=torch.long)
        features, keep_indices = self.vision(pixel_values)
        placeholders = (input_ids == self.adapter.image_token_id).unsqueeze(-1)
        return embeds.masked_scatter(placeholders, features.to(embeds.dtype)), keep_indices

    def _no_past(self, layers: int, hidden: Tensor) -> list[KeyValue]:
        decoder = self.adapter.facts.decoder
        empty = hidden.new_zeros(hidden.shape[0], decoder.kv_heads, 0, decoder.head_dim)
        return [(empty, empty)] * layers

    # Questions and answers ------------------------------------------------------------------------------------------

    def inputs(
        self, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Token ids, attention mask and pixels of a batch of prompts, each with its images."""
        counts = [len(group) for group in images]
        flat = [image for group in images for image in group]
        pixel_values = self.adapter.preprocess(flat) if flat else None
        return *self.adapter.tokenize(prompts, counts, self.visual_tokens), pixel_values

    @torch.inference_mode()
    def generate(
        self, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str], max_new_tokens: int = 32
    ) -> list[Generation]:
        """Greedy answers to a batch of prompts.

        Parameters
        ----------
        images : for each prompt, its images
        prompts : sequence of str
            Whole prompts (see :meth:`VLMAdapter.chat`) with one placeholder per image.
        max_new_tokens : int

        Returns
        -------
        list of Generation
        """
        logits, state = self.prefill(*self.inputs(images, prompts))
        eos = torch.tensor(self.adapter.eos_token_ids)
        token = logits[:, -1].argmax(dim=-1, keepdim=True)
        generated = [token]
        done = torch.isin(token, eos)
        while len(generated) < max_new_tokens and not bool(done.all()):
            token = self.decode(token, state)[:, -1].argmax(dim=-1, keepdim=True)
            generated.append(token)
            done |= torch.isin(token, eos)
        rows = [self._until_end(row, eos.tolist()) for row in torch.cat(generated, dim=1).tolist()]
        return [Generation(row, self.adapter.tokenizer.decode(row, skip_special_tokens=True).strip()) for row in rows]

    @staticmethod
    def _until_end(row: list[int], eos: Sequence[int]) -> list[int]:
        ends = [place for place, token in enumerate(row) if token in eos]
        return row[: ends[0]] if ends else row

    @torch.inference_mode()
    def score(
        self,
        images: Sequence[Sequence[Image.Image]],
        prompts: Sequence[str],
        continuations: Sequence[Sequence[int]],
    ) -> list[NDArray[np.float32]]:
        """Next-token logits along given continuations (teacher forcing).

        Parameters
        ----------
        images, prompts : as in :meth:`generate`
        continuations : for each prompt, at least one token id

        Returns
        -------
        list of arrays of shape (T, vocabulary)
            Row t holds the logits from which token t of the continuation would be drawn.
        """
        logits, state = self.prefill(*self.inputs(images, prompts))
        steps = [logits[:, -1]]
        longest = max(map(len, continuations))
        padded = [list(ids) + [self.adapter.pad_token_id] * (longest - len(ids)) for ids in continuations]
        for column in torch.tensor(padded)[:, : longest - 1].T:
            steps.append(self.decode(column[:, None], state)[:, -1])
        stacked = torch.stack(steps, dim=1).float().numpy()
        return [row[: len(ids)] for row, ids in zip(stacked, continuations, strict=True)]


@dataclass(frozen=True)
class _Tokens:
    """Hidden states (B, S, E), attention mask (B, S) and positions (B, S) of one set of tokens."""

    hidden: Tensor
    mask: Tensor
    positions: Tensor

    def text(self, text: TextTokens) -> _Tokens:
        """Mask and positions of the text tokens alone."""
        return _Tokens(
            self.hidden, torch.from_numpy(text.mask), self.positions.gather(1, torch.from_numpy(text.indices))
        )


def compress(
    adapter: VLMAdapter, recipe: Recipe, *, model_digest: str = "", from_state: bool = False
) -> CompressedModel:
    """Apply a recipe to a loaded model, in memory.

    Parameters
    ----------
    adapter : VLMAdapter
    recipe : Recipe
        Without ``auto`` values; see :mod:`vtc.calibrate` for those.
    model_digest : str
        The checkpoint's digest, which trained parts are checked against.
    from_state : bool
        Leave trained parts empty: the caller loads them from a compressed model's state.

    Returns
    -------
    CompressedModel
        In evaluation mode, sharing the adapter's weights.

    Raises
    ------
    RecipeError
        If the recipe does not fit the model.
    """
    token_plan = plan(recipe, adapter.facts)
    stages: list[nn.Module] = []
    cls_layers: frozenset[int] = frozenset()
    for number, (entry, stage) in enumerate(zip(recipe.stages, token_plan.stages, strict=True)):
        if isinstance(entry, FrequencyFilterEntry):
            if stage.grid_in is None or stage.grid_out is None:
                raise AssertionError("a frequency filter's plan always has grids")
            stages.append(FrequencyFilter(stage.grid_in, stage.grid_out, preserve_mean=entry.preserve_mean))
        elif isinstance(entry, PruneEntry):
            learned = entry.selector.name == "learned" and not from_state
            checkpoint = recipe.checkpoint(number) if learned else None
            context = BuildContext(
                adapter.facts.encoder.width, stage.layers, model_digest, checkpoint, token_plan.encoder_layers
            )
            selector = build_selector(entry.selector, context)
            cls_layers |= selector.needs.cls_attention
            stages.append(Prune(selector, stage.tokens_out))
    vision = VisionEncoder(adapter, token_plan.encoder_layers, stages, cls_layers)
    return CompressedModel(adapter, token_plan, vision).eval().requires_grad_(False)
