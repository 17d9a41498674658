"""What vtc needs of a vision-language model, and nothing else.

An adapter wraps a `transformers` model without copying its modelling code: it hands out the model's own modules, cut
at the places where stages act (between encoder layers, before the projector, between decoder layers). It is made ready
for images of one size, so that whatever depends on that size is a constant.
"""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from typing_extensions import Self

from vtc.errors import CheckpointError, InputError, ModelError, all_faults, one_line
from vtc.facts.layout import ANY_IMAGE, ImageLayout, ImageOptions
from vtc.facts.model import ModelFacts
from vtc.facts.placement import ON_CPU, Placement
from vtc.inputs.pixels import PixelSpec, to_pixels
from vtc.machine import machine_fault
from vtc.models.chat_templates import needed_template
from vtc.models.images.processor_files import image_settings, video_settings
from vtc.models.loading import load_tokenizer, load_weights
from vtc.models.lora import LoraFactors
from vtc.models.outline import outline_model
from vtc.models.parts.attention import GROUPED_ATTENTION
from vtc.models.parts.experts import EVERY_EXPERT
from vtc.models.placing import placed
from vtc.models.prompts import Prompts

_log = logging.getLogger(__name__)


class VLMAdapter(Prompts, ABC):
    """A pretrained VLM, seen as vision encoder, projector and decoder layers.

    Attributes
    ----------
    path : Path
        The checkpoint's directory.
    facts : ModelFacts
        Its sizes, and the layout of images that it serves.
    pixels : PixelSpec
        How an image becomes the pixels that the encoder takes.
    model : PreTrainedModel
        The `transformers` model, frozen, in evaluation mode.
    wanted : ImageOptions
        What images it was asked to be made ready for.
    lora : LoraFactors or None
        Of the updates of its decoder, where it has any (see :func:`vtc.models.lora.with_lora`).
    """

    family: ClassVar[str]
    model_class: ClassVar[type[PreTrainedModel]]
    image_processor: ClassVar[str]
    """Class of the family's image processor, for settings that name none."""
    video_processor: ClassVar[str] = ""

    def __init__(
        self,
        path: Path,
        facts: ModelFacts,
        pixels: PixelSpec,
        model: Any,
        tokenizer: Any,
        wanted: ImageOptions = ANY_IMAGE,
    ) -> None:
        self.path = path
        self.wanted = wanted
        self.facts = facts
        self.pixels = pixels
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.lora: LoraFactors | None = None

    @classmethod
    @abstractmethod
    def describe(cls, config: Any, settings: Mapping[str, Any], options: ImageOptions) -> tuple[ModelFacts, PixelSpec]:
        """Sizes and pixels, from a configuration and the settings of the checkpoint's image (or video) processor.

        Raises
        ------
        ModelError
            If the configuration asks for something that the adapter does not serve.
        InputError
            If the checkpoint cannot serve what is asked for.
        """

    @classmethod
    def read(cls, path: Path, options: ImageOptions) -> tuple[ModelFacts, PixelSpec]:
        """Sizes and pixels from a checkpoint's own files, `transformers`' defaults filled in.

        Raises
        ------
        ModelError
            If a file is missing or is not what this adapter serves.
        InputError
            If the checkpoint cannot serve what is asked for.
        """
        config = cls.configuration(path)
        try:
            return cls.describe(config, cls.settings(path, options), options)
        except (ModelError, InputError) as error:
            named = "" if str(error).startswith(str(path)) else f"{path}: "
            raise type(error)(f"{named}{error}") from None
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            words = f"{type(error).__name__}: {one_line(error)}"
            raise ModelError(f"{path}: its settings make no model of the family {cls.family} ({words})") from error

    @classmethod
    def configuration(cls, path: Path) -> Any:
        """The checkpoint's configuration, `transformers`' defaults filled in.

        Raises
        ------
        ModelError
            If `transformers` cannot use it.
        """
        try:
            return AutoConfig.from_pretrained(path, local_files_only=True)
        except Exception as error:
            raise machine_fault(error, path) or ModelError(
                f"{path / 'config.json'}: not a usable configuration ({one_line(error)})"
            ) from error

    @classmethod
    def settings(cls, path: Path, options: ImageOptions) -> dict[str, Any]:
        """Settings of a checkpoint's image processor, or of its video processor for clips.

        Raises
        ------
        ModelError
            If it ships none, or a setting is not what it must be.
        """
        if options.frames > 1 and cls.video_processor:
            return video_settings(path, cls.video_processor)
        return image_settings(path, cls.image_processor)

    @classmethod
    def outline(cls, path: Path, options: ImageOptions = ANY_IMAGE) -> tuple[Self, list[str]]:
        """Put together all of a checkpoint but the numbers of its weights: what it says of prompts can be asked.

        Returns
        -------
        adapter : VLMAdapter
            Its model is on the device ``meta``.
        unused : list of str
            Names of weights that the model has no place for.

        Raises
        ------
        CheckpointError
            With every fault, one a line.
        InputError
            If the checkpoint cannot serve what is asked for.
        """
        facts, pixels = cls.read(path, options)
        faults: list[str] = []

        def tried(step: Callable[[], Any]) -> Any:
            try:
                return step()
            except ModelError as error:
                faults.append(str(error))

        tried(lambda: needed_template(path, cls.fixed_chat_template))
        tokenizer = tried(lambda: load_tokenizer(path))
        model, unused = tried(lambda: outline_model(path, cls.model_class, cls.configuration(path))) or (None, [])
        if not faults:
            adapter = cls(path, facts, pixels, model, tokenizer, options)
            tried(adapter.check_generation)
        if not faults:
            tried(adapter.check_prompts)
        if faults:
            raise CheckpointError(all_faults(faults))
        return adapter, unused

    def with_weights(self, placement: Placement = ON_CPU) -> Self:
        """The same checkpoint, its weights loaded, from safetensors only.

        Raises
        ------
        ModelError
            If weights are damaged, or not finite numbers.
        InputError
            If there is no such device.
        """
        places = placed(self, placement)
        if places.words:
            _log.warning("note: %s: %s", self.path, places.words)
        model = load_weights(self.path, self.model_class, places)
        adapter = type(self)(self.path, self.facts, self.pixels, model, self.tokenizer, self.wanted)
        if told := adapter.rules.told:
            _log.warning("note: %s: %s", self.path, told)
        return adapter

    def with_image_options(self, options: ImageOptions) -> Self:
        """The same model, made ready for other images."""
        other = copy.copy(self)
        other.wanted = options
        other.facts, other.pixels = self.read(self.path, options)
        other.check_prompts()
        return other

    def with_layout(self, layout: ImageLayout) -> Self:
        """The same model for images of another layout."""
        other = copy.copy(self)
        other.facts = replace(self.facts, layout=layout)
        return other

    # Vision ---------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def encoder_layers(self) -> Sequence[nn.Module]:
        """The vision encoder's layers."""

    @abstractmethod
    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        """Input of the first encoder layer, (views, [1 +] n, D), of pixels (images, *shape of one image's pixels)."""

    @abstractmethod
    def encoder_layer(self, index: int, hidden: Tensor) -> Tensor:
        """Output of encoder layer `index` on its input (views, [1 +] n, D)."""

    def encoder_window(self, index: int) -> Tensor | None:
        """Which patches see which in encoder layer `index`, (n, n), bool; None where all see all."""
        return None

    @abstractmethod
    def encoder_queries(self, index: int, hidden: Tensor) -> Tensor:
        """Queries (B, T, D) of encoder layer `index`, all heads in a row, of its input (B, T, D)."""

    @abstractmethod
    def encoder_keys(self, index: int, hidden: Tensor) -> Tensor:
        """Keys (B, T, D) of encoder layer `index`, all heads in a row, of its input (B, T, D)."""

    def patch_tokens(self, hidden: Tensor) -> Tensor:
        """The patches (views, n, D) among an encoder layer's output (views, [1 +] n, D)."""
        return hidden[:, 1:] if self.facts.encoder.has_cls else hidden

    def cells(self, patches: Tensor) -> Tensor:
        """Patches (views, n, D) by the token that they become, (views, N, merge ** 2, D); both in raster order."""
        (rows, columns), merge = self.facts.layout.view_grid, self.facts.encoder.merge
        grid = patches.reshape(-1, rows, merge, columns, merge, patches.shape[-1]).transpose(2, 3)
        return grid.reshape(-1, rows * columns, merge**2, patches.shape[-1])

    def view_tokens(self, hidden: Tensor) -> Tensor:
        """Tokens (views, N, F) of the output (views, [1 +] n, D) of an encoder layer."""
        patches, encoder = self.patch_tokens(hidden), self.facts.encoder
        if encoder.merge == 1:
            return patches
        cells = self.cells(patches)
        return cells.mean(dim=2) if encoder.pooled else cells.flatten(2)

    def view_features(self, hidden: Tensor) -> Tensor:
        """Tokens (views, N, F) that the projector takes, of the output of the last layer that runs."""
        return self.view_tokens(hidden)

    @property
    @abstractmethod
    def projector(self) -> nn.Module:
        """Maps visual tokens (B, K, F) into the decoder's space (B, K, E); acts on each token alone."""

    @property
    def separator(self) -> Tensor:
        """What stands between rows or after an image where its layout says so, (E); in the decoder's space."""
        raise NotImplementedError(f"{self.family} has no separators")

    @property
    def deepstack_layers(self) -> Sequence[int]:
        """Encoder layers whose outputs go with the tokens into the first decoder layers (DeepStack), in that order."""
        return ()

    def project_deepstack(self, deepstack: Tensor) -> Tensor:
        """DeepStack features (B, K, c * F) in the decoder's space, (B, K, c * E), which its first layers add."""
        raise NotImplementedError(f"{self.family} has no DeepStack features")

    # Decoder --------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def embed_tokens(self) -> nn.Module:
        """Token embedding, (B, S) to (B, S, E); with room for DeepStack features where there are any."""

    @property
    @abstractmethod
    def decoder_layers(self) -> Sequence[nn.Module]:
        """The decoder's layers."""

    @abstractmethod
    def rotation(self, hidden: Tensor, position_ids: Tensor, windowed: bool = False) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, S, Dh) of positions (B, S) or (3, B, S), in layers with a sliding window or not."""

    def decoder_layer(
        self, index: int, hidden: Tensor, bias: Tensor, rotation: tuple[Tensor, Tensor], cache: Any
    ) -> Tensor:
        """Output (B, S, E) of decoder layer `index`.

        Parameters
        ----------
        hidden : Tensor of shape (B, S, E)
        bias : Tensor of shape (B, 1, S, T)
            Added to attention scores.
        rotation : (Tensor, Tensor)
            As :meth:`rotation` gives it.
        cache
            What `transformers`' layers append keys and values to.
        """
        layer = self.decoder_layers[index]
        output = layer(hidden, attention_mask=bias, past_key_values=cache, use_cache=True, position_embeddings=rotation)
        return cast(Tensor, output)

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The norm before the language-model head."""

    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """The language-model head, (B, S, E) to (B, S, vocabulary)."""

    @abstractmethod
    def attention_rows(
        self, index: int, hidden: Tensor, queries: Tensor, seen: Tensor, position_ids: Tensor, *, rope: bool = True
    ) -> Tensor:
        """Attention (B, Q, S) of some tokens to all in decoder layer `index`, mean over heads, float32.

        Only the rows that are asked for are computed.

        Parameters
        ----------
        hidden : Tensor of shape (B, S, E)
            The layer's input.
        queries : Tensor of shape (B, Q), int64
            Places of the tokens whose rows are wanted.
        seen : Tensor of shape (B, Q, S), bool
            Which tokens they may attend to.
        position_ids : Tensor of shape (B, S) or (3, B, S), int64
        rope : bool
            Whether queries and keys are rotated by their positions.
        """

    @abstractmethod
    def decoder_keys(self, index: int, hidden: Tensor, position_ids: Tensor) -> Tensor:
        """Keys (B, S, Hkv, Dh) of decoder layer `index` on its input (B, S, E), rotated by ([3,] B, S) positions."""

    def set_decoder_attention(self, kind: Literal["sdpa", "grouped", "eager"]) -> None:
        """Choose the decoder's attention: ``sdpa`` is fast in PyTorch, ``grouped`` exports to standard operators with
        grouped key-value heads kept grouped, ``eager`` gives its maps out too. All compute the same.

        Mixtures of experts export to standard operators with ``grouped``, too.
        """
        exported = kind == "grouped"
        self.model.set_attn_implementation({"text_config": GROUPED_ATTENTION if exported else kind})
        if self.facts.decoder.experts > 1:
            # None is what transformers takes by itself.
            experts = EVERY_EXPERT if exported else self.model.get_correct_experts_implementation(None)
            self.model.set_experts_implementation({"text_config": experts})

    # Pixels ---------------------------------------------------------------------------------------------------------

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixels (inputs, *shape of one input's pixels), float32, of images, or of clips one frame after the other."""
        return torch.from_numpy(to_pixels(self.pixels, images))

    def placeholder_settings(self, keep: int) -> dict[str, Any]:
        """Fields of ``processor_config.json`` that make the family's own processor emit `keep` placeholders a span.

        Empty where it cannot be told: it then goes on counting what the unpruned model needs, and prompts are to be
        made by vtc's runtime.
        """
        return {}
