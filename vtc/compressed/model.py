"""A model with a recipe applied: the PyTorch reference that every exported bundle is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vtc.compressed.decoder import DecoderSegment, GatherTokens, KeyValue, MergeTokens
from vtc.compressed.generation import Generation, answers
from vtc.compressed.vision_encoder import VisionEncoder
from vtc.errors import InputError
from vtc.inputs.generation import GenerationRules
from vtc.inputs.positions import PositionRule, positions
from vtc.inputs.prompts import check_several, clips
from vtc.inputs.schedule import SegmentRule, query_tokens, schedule
from vtc.models.base import VLMAdapter
from vtc.models.parts.split_mixture import ModalityRows
from vtc.plan import SegmentPlan, TokenPlan
from vtc.runtime.sampling import Sampler
from vtc.stages.base import Cut, CutStage
from vtc.visual_tokens import TextEmbeddings, VisualTokens, gather_positions, gather_tokens


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
    kept : list of Tensor of shape (spans, K), int64
        Places of the visual tokens that entered the decoder among all, and of those after each cut inside it.
    positions : list over segments of Tensor of shape (B, P), int64
        Where the decoder has sliding windows: positions of the tokens in that segment's cache.
    """

    past: list[list[KeyValue]]
    masks: list[Tensor]
    following: Tensor
    kept: list[Tensor]
    positions: list[Tensor] = field(default_factory=list)


class CompressedModel(nn.Module):
    """Adapter plus plan: prefill, decode, generate.

    Parameters
    ----------
    adapter : VLMAdapter
    plan : TokenPlan
    vision : module
        Pixels of images, and the questions where its `needs` say so, to features (spans, K, E), keep indices
        (spans, K) and, where cuts want to know it, which tokens are padding; see :class:`VisionEncoder`.
    keep_per_span : int or None
        K; None takes it from the plan.
    cuts : mapping of segment number to CutStage
        For segments that are entered by ``prune``.

    Attributes
    ----------
    base_facts : ModelFacts
        Sizes of the model before any stage, which may have fewer experts now.
    """

    def __init__(
        self,
        adapter: VLMAdapter,
        plan: TokenPlan,
        vision: nn.Module,
        keep_per_span: int | None = None,
        cuts: Mapping[int, CutStage] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.adapter = adapter
        self.base_facts = adapter.facts
        self.plan = plan
        self.vision: Any = vision
        self.keep_per_span = plan.keep_per_span if keep_per_span is None else keep_per_span
        self.rule = PositionRule(
            plan.positions, plan.position_span, plan.position_grids, adapter.facts.layout.time_step
        )
        self.embed_tokens = adapter.embed_tokens
        self.query_tokens = {number: cut.query_tokens for number, cut in cuts.items()}
        self.rules = [
            SegmentRule(segment.enters, plan.per_span(segment.visual_tokens), self.query_tokens.get(number, ""))
            for number, segment in enumerate(plan.segments)
        ]
        self.handoffs = nn.ModuleList(
            cuts[number] if segment.enters == "prune" else self._handoff(segment)
            for number, segment in enumerate(plan.segments)
        )
        self.segments = nn.ModuleList(self._segment(number) for number in range(len(plan.segments)))

    def _segment(self, number: int) -> DecoderSegment:
        last = number == len(self.plan.segments) - 1
        return DecoderSegment(
            self.adapter,
            [self.plan.decoder_layers[layer] for layer in self.plan.segments[number].layers],
            last=last,
            taps=not last and self.reads_before(number + 1),
            begins=self.begins(number),
        )

    @property
    def device(self) -> torch.device:
        """Where it takes its inputs."""
        device: torch.device = next(self.embed_tokens.parameters()).device
        return device

    def begins(self, number: int) -> int:
        """The layer, as the model numbers them, before which tokens coming to a segment stand."""
        return self.plan.around(number)[1] + 1 if number else 0

    @property
    def trained(self) -> nn.Module:
        """What holds whatever a recipe trained: encoder stages by number, and what hands tokens over in the decoder."""
        stages = self.vision.stages.named_children() if isinstance(self.vision, VisionEncoder) else ()
        return nn.ModuleDict({**dict(stages), "handoffs": self.handoffs})

    def _handoff(self, segment: SegmentPlan) -> nn.Module:
        """What hands tokens over to a segment."""
        if segment.enters == "merge":
            return MergeTokens(self.adapter.facts.decoder.width)
        return GatherTokens() if segment.enters == "gather" else nn.Identity()

    def reads_before(self, number: int) -> bool:
        """Whether what hands tokens over to a segment reads the input of the layer before it."""
        handoff = self.handoffs[number]
        return isinstance(handoff, CutStage) and handoff.reads_before

    @property
    def image_tokens(self) -> int:
        """Visual tokens of one image that enter the decoder."""
        return self.plan.spans * self.keep_per_span

    @property
    def generation_rules(self) -> GenerationRules:
        """What the checkpoint's settings ask of answers, which this model follows."""
        return self.adapter.rules

    @property
    def tells_padding(self) -> bool:
        """Whether the vision module tells which tokens are padding, and cuts inside the decoder read it."""
        return isinstance(self.vision, VisionEncoder) and self.vision.tells_padding

    @property
    def reads_text(self) -> bool:
        """Whether the vision module looks at the questions."""
        return bool(self.vision.needs.text)

    # Prefill and decode ---------------------------------------------------------------------------------------------

    def prefill(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None,
        *,
        encoded: tuple[Tensor, ...] | None = None,
        seen: VisualTokens | None = None,
        wanted: int = 1,
        answered: Sequence[int] | None = None,
    ) -> tuple[Tensor, DecoderState]:
        """Run prompts through the model.

        Parameters
        ----------
        input_ids, attention_mask : Tensors of shape (B, S), int64
            Left-padded, each span of an image K placeholders.
        pixel_values : Tensor of shape (images, ...), or None for a batch without images
        encoded : tuple of Tensor or None
            What :meth:`encode` gave for them already.
        seen : VisualTokens or None
            For :meth:`encode`, where that has not run.
        wanted : int
            Tokens at the end of each prompt whose logits are wanted.
        answered : sequence of B int, or None
            Tokens at the end of each prompt that are the beginning of its answer; None is none.

        Returns
        -------
        logits : Tensor of shape (B, wanted, vocabulary)
        state : DecoderState
        """
        ids, mask = _numbers(input_ids), _numbers(attention_mask)
        image, decoder = self.adapter.image_token_id, self.adapter.facts.decoder
        of_prompts = (ids, mask, image, self.keep_per_span, self.rules, self.plan.spans, decoder.bidirectional)
        known = None if answered is None else np.asarray(answered)
        scheduled = schedule(*of_prompts, known, by_modality=decoder.visual_experts > 0)
        embeds = self.embed_tokens(input_ids)
        keep_indices = input_ids.new_zeros(0, self.keep_per_span)
        padding: list[Tensor] = []
        if encoded is None and pixel_values is not None:
            encoded = self.encode(embeds, ids, mask, pixel_values, seen)
        if encoded is not None:
            features, keep_indices, *padding = encoded
            embeds = embeds.masked_scatter((input_ids == image).unsqueeze(-1), features.to(embeds.dtype))
        places = positions(ids, mask, image, _numbers(keep_indices), self.rule)

        def here(numbers: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(numbers).to(embeds.device)

        hidden, position_ids, tapped = embeds, here(places.ids), None
        whole = hidden, position_ids
        state = DecoderState([], [], here(places.following), [keep_indices])
        parts = zip(self.plan.segments, self.segments, self.handoffs, scheduled, strict=True)
        for planned, segment, handoff, entry in parts:
            inputs = [here(numbers) for numbers in entry.handoff_inputs]
            if entry.enters == "gather":
                whole = hidden, position_ids
                hidden, position_ids = handoff(hidden, *inputs), gather_positions(position_ids, *inputs)
            elif entry.enters == "merge":
                hidden, position_ids = handoff(whole[0], hidden, *inputs), whole[1]
            elif entry.enters == "prune":
                cut = Cut(*inputs, *padding)
                hidden, position_ids, kept = handoff(hidden, attention_mask, position_ids, cut, tapped)
                state.kept.append(state.kept[-1].gather(1, kept))
                padding = [marks.gather(1, kept) for marks in padding]
            attention_mask = here(entry.attention_mask)
            hidden, past, tapped = segment(
                hidden,
                attention_mask,
                position_ids,
                self._no_past(len(planned.layers), hidden),
                None if entry.block_ids is None else here(entry.block_ids),
                position_ids if decoder.window else None,
                wanted,
                None if entry.rows is None else ModalityRows(*map(here, entry.rows)),
            )
            state.past.append(past)
            state.masks.append(attention_mask)
            if decoder.window:
                state.positions.append(position_ids)
        return hidden, state

    def decode(self, token_ids: Tensor, state: DecoderState) -> Tensor:
        """One more token (B, 1) for each row; the state moves on. Returns logits (B, 1, vocabulary)."""
        hidden: Tensor = self.embed_tokens(token_ids)
        decoder, here = self.adapter.facts.decoder, state.following[:, None]
        places = here if decoder.position_axes == 1 else here.expand(decoder.position_axes, -1, -1)
        text = ModalityRows.of_text(token_ids) if decoder.visual_experts else None
        for number, (segment, planned) in enumerate(zip(self.segments, self.plan.segments, strict=True)):
            mask = torch.cat([state.masks[number], torch.ones_like(token_ids)], dim=1)
            blocks = torch.full_like(mask, -1) if decoder.bidirectional != "none" else None
            keys = torch.cat([state.positions[number], here], dim=1) if decoder.window else None
            rows = text if planned.sees == "all" else None
            past = state.past[number]
            hidden, state.past[number], _ = segment(hidden, mask, places, past, blocks, keys, 1, rows)
            state.masks[number] = mask
            if keys is not None:
                state.positions[number] = keys
        state.following = state.following + 1
        return hidden

    def encode(
        self,
        embeds: Tensor,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        pixel_values: Tensor,
        seen: VisualTokens | None = None,
    ) -> tuple[Tensor, ...]:
        """Encode the images of prompts.

        Parameters
        ----------
        embeds : Tensor of shape (B, S, E)
        ids, mask : arrays of shape (B, S)
            On the host.
        pixel_values : Tensor of shape (images, ...)
        seen : VisualTokens or None
            What the vision encoder made of them already, before any stage.

        Returns
        -------
        tuple of Tensor
            As :meth:`VisionEncoder.forward` does.
        """
        text = self._questions(embeds, ids, mask) if self.reads_text else None
        if seen is not None:
            return tuple(self.vision.compress(replace(seen, text=text)))
        return tuple(self.vision(pixel_values) if text is None else self.vision(pixel_values, text))

    def _questions(self, embeds: Tensor, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> TextEmbeddings:
        image, spans = self.adapter.image_token_id, self.plan.spans
        where = query_tokens(ids, mask, image, self.keep_per_span, "text_after_image", spans)
        parts = (where.image_rows, where.query_columns, where.query_mask)
        rows, columns, real = (torch.from_numpy(part).to(embeds.device) for part in parts)
        own = embeds[..., : self.adapter.facts.decoder.width]
        return TextEmbeddings(gather_tokens(own.index_select(0, rows), columns), real)

    def _no_past(self, layers: int, hidden: Tensor) -> list[KeyValue]:
        decoder = self.adapter.facts.decoder
        empty = hidden.new_zeros(hidden.shape[0], decoder.kv_heads, 0, decoder.head_dim)
        return [(empty, empty)] * layers

    # Questions and answers ------------------------------------------------------------------------------------------

    def inputs(
        self, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str], pixel_values: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Token ids, attention mask and pixels of a batch of prompts, each with its images, where the weights are.

        Pixels that are known already are taken as they are.
        """
        flat = [image for group in images for image in group]
        layout = self.adapter.facts.layout
        counts = clips([len(group) for group in images], layout.frames)
        check_several(max(counts, default=0), several=layout.several)
        weights = next(self.embed_tokens.parameters())
        if pixel_values is None and flat:
            pixel_values = self.adapter.preprocess(flat).to(weights)
        input_ids, attention_mask = self.adapter.tokenize(prompts, counts, self.keep_per_span)
        return input_ids.to(weights.device), attention_mask.to(weights.device), pixel_values

    def generate(
        self,
        images: Sequence[Sequence[Image.Image]],
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        sampler: Sampler | None = None,
    ) -> list[Generation]:
        """Answer a batch of prompts.

        Parameters
        ----------
        images : for each prompt, its images
        prompts : sequence of str
            Whole prompts (see :meth:`VLMAdapter.chat`) with one placeholder per image.
        max_new_tokens : int
        sampler : Sampler or None
            None is greedy.

        Returns
        -------
        list of Generation
        """
        return self.answer(*self.inputs(images, prompts), max_new_tokens, sampler)

    @torch.inference_mode()
    def answer(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor | None,
        max_new_tokens: int = 32,
        sampler: Sampler | None = None,
    ) -> list[Generation]:
        """Answer prepared prompts; arguments as in :meth:`prefill` and :meth:`generate`."""
        prefilled = self.prefill(input_ids, attention_mask, pixel_values)
        return self.go_on(prefilled, input_ids, attention_mask, max_new_tokens, sampler)

    def go_on(
        self,
        prefilled: tuple[Tensor, DecoderState],
        input_ids: Tensor,
        attention_mask: Tensor,
        max_new_tokens: int,
        sampler: Sampler | None = None,
    ) -> list[Generation]:
        """Answer prompts from what :meth:`prefill` gave for them."""
        return answers(self, prefilled, (_numbers(input_ids), _numbers(attention_mask)), max_new_tokens, sampler)

    @torch.inference_mode()
    def features(self, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features (images, K, E) and keep indices (images, K) of a batch of prompts' images, at least one."""
        input_ids, attention_mask, pixel_values = self.inputs(images, prompts)
        if pixel_values is None:
            raise InputError("there is no image to encode")
        embeds = self.embed_tokens(input_ids)
        features, keep_indices, *_ = self.encode(embeds, _numbers(input_ids), _numbers(attention_mask), pixel_values)
        return features, keep_indices

    @torch.inference_mode()
    def kept(self, images: Sequence[Sequence[Image.Image]], prompts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Which visual tokens a batch of prompts keeps: entering the decoder, and after each cut inside it.

        Parameters
        ----------
        images, prompts : as in :meth:`generate`

        Returns
        -------
        list of arrays of shape (images, K)
            Places on the encoder's grid, ascending.
        """
        _, state = self.prefill(*self.inputs(images, prompts))
        return [_numbers(indices) for indices in state.kept]

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
        for column in torch.tensor(padded, device=logits.device)[:, : longest - 1].T:
            steps.append(self.decode(column[:, None], state)[:, -1])
        stacked = torch.stack(steps, dim=1).float().cpu().numpy()
        return [row[: len(ids)] for row, ids in zip(stacked, continuations, strict=True)]


def _numbers(tensor: Tensor) -> NDArray[np.int64]:
    """Token ids, masks and the like on the host, where positions are worked out."""
    return np.asarray(tensor.cpu().numpy(), dtype=np.int64)
