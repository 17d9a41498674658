"""Idefics3: a SigLIP tower, squares of patches made one token, a Llama decoder (arXiv 2408.12637).

An image is enlarged and cut into tiles, the whole in small after them (Laurençon et al. 2024). Each view is a run of
placeholders of its own, with its row and column before it as text. The first SmolVLM checkpoints call themselves
Idefics3, too. Asked for nothing, the adapter is made ready for images of 1280 x 720 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import Idefics3ForConditionalGeneration, PreTrainedModel

from vtc.errors import InputError
from vtc.facts.layout import Block, Grid, ImageLayout, ImageOptions
from vtc.facts.model import ModelFacts
from vtc.inputs.pixels import PixelSpec
from vtc.models.images.pixel_specs import USUAL_IMAGE, pixel_spec
from vtc.models.parts.checks import check_parts, refuse, token_grid
from vtc.models.parts.clip_tower import ClipTower, clip_facts
from vtc.models.parts.language_model import LanguageModel, decoder_facts

DECODERS = ("llama",)

AROUND, WHOLE_IMAGE = "<fake_token_around_image>", "<global-img>"
"""What the processors write before each view and after the last, and before the whole image."""

NAMED = 6
"""Rows, and columns, of tiles that tokenizers have names for."""


class Idefics3Adapter(ClipTower, LanguageModel):
    """`Idefics3ForConditionalGeneration` with its own tower and a decoder of `DECODERS`.

    Parameters
    ----------
    *parts, **more
        As for :class:`~vtc.models.base.VLMAdapter`.
    """

    family = "idefics3"
    model_class: ClassVar[type[PreTrainedModel]] = Idefics3ForConditionalGeneration
    image_processor = "Idefics3ImageProcessor"
    called: ClassVar[str] = "Idefics3"

    def __init__(self, *parts: Any, **more: Any) -> None:
        super().__init__(*parts, **more)
        self._places = self._position_places()

    @classmethod
    def describe(cls, config: Any, settings: Mapping[str, Any], options: ImageOptions) -> tuple[ModelFacts, PixelSpec]:
        # Configurations written by the first releases give the tower the name of the whole.
        check_parts(config, (f"{cls.family}_vision", cls.family), DECODERS)
        vision, text, merge = config.vision_config, config.text_config, config.scale_factor
        size = options.image_size or (USUAL_IMAGE if options.tiles is None else None)
        pixels = cls.pixels_of(settings, size, options)
        grid = token_grid(pixels.view, vision.patch_size, merge)
        facts = ModelFacts(
            family=cls.family,
            model_type=config.model_type,
            layout=ImageLayout(
                image_size=pixels.aspect or size or pixels.view,
                view_grid=grid,
                blocks=(Block(grid),),
                spans=pixels.views * options.frames,
                frames=options.frames,
            ),
            encoder=clip_facts(vision, vision.num_hidden_layers - 1, merge=merge),
            decoder=decoder_facts(text),
            projector_params=vision.hidden_size * merge**2 * text.hidden_size,
        )
        return facts, pixels

    @classmethod
    def pixels_of(cls, settings: Mapping[str, Any], size: Grid | None, options: ImageOptions) -> PixelSpec:
        """Pixels of what is asked for, of images of `size` unless tiles say it.

        Raises
        ------
        InputError
            If the family does not serve it.
        """
        refuse(options, cls.called, "frames")
        if max(options.tiles or (0,)) > NAMED:
            raise InputError(f"{cls.called} tells at most {NAMED} rows and columns of tiles apart; give fewer --tiles")
        return pixel_spec(settings, size, options.tiles)

    # Vision ---------------------------------------------------------------------------------------------------------

    @property
    def _tower(self) -> Any:
        return self.model.model.vision_model

    def embed_patches(self, pixel_values: Tensor) -> Tensor:
        embeddings = self._tower.embeddings
        patches = embeddings.patch_embedding(pixel_values.flatten(0, -4)).flatten(2).transpose(1, 2)
        return cast(Tensor, patches + embeddings.position_embedding(self._places.to(patches.device)))

    @torch.no_grad()
    def _position_places(self) -> Tensor:
        """The row of its table that the tower adds to each patch of a view, (n).

        It works them out from fractions of the view, in a way that rounding can put a row off and that does not export.
        Here it does so once, with zeros for patches and a table that holds its own row numbers.
        """
        embeddings = self._tower.embeddings
        rows, height, width = embeddings.num_positions, *self.pixels.view
        stand_ins = {
            "patch_embedding.weight": torch.zeros(1, *embeddings.patch_embedding.weight.shape[1:]),
            "patch_embedding.bias": torch.zeros(1),
            "position_embedding.weight": torch.arange(rows, dtype=torch.float32)[:, None],
        }
        seen = torch.ones(1, height // embeddings.patch_size, width // embeddings.patch_size, dtype=torch.bool)
        numbers: Tensor = functional_call(embeddings, stand_ins, (torch.zeros(1, 3, height, width), seen))
        return numbers.flatten().long()

    def view_features(self, hidden: Tensor) -> Tensor:
        return self.view_tokens(self._tower.post_layernorm(hidden))

    @property
    def projector(self) -> nn.Module:
        return cast(nn.Module, self.model.model.connector.modality_projection)

    # Decoder and prompts --------------------------------------------------------------------------------------------

    @property
    def _language_model(self) -> Any:
        return self.model.model.text_model

    @property
    def prompt_parts(self) -> Sequence[str]:
        rows, columns = self.pixels.pictures[0].tiles if self.facts.layout.spans > 1 else (0, 0)
        tiles = [(row, column) for row in range(rows) for column in range(columns)]
        # Each row of tiles ends its line, and an empty one follows the last.
        names = [
            ("\n" if row and not column else "") + f"{AROUND}<row_{row + 1}_col_{column + 1}>" for row, column in tiles
        ]
        return [*names, ("\n\n" if tiles else "") + AROUND + WHOLE_IMAGE, AROUND]

    def placeholder_settings(self, keep: int) -> dict[str, Any]:
        return {"image_seq_len": keep}
