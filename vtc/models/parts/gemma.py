"""What PaliGemma and Gemma 3 share: SigLIP with its last norm, a Gemma decoder, placeholders beyond its vocabulary."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from vtc.models.parts.clip_tower import ClipTower
from vtc.models.parts.language_model import LanguageModel

TOWERS = ("siglip_vision_model",)


class GemmaVLM(ClipTower, LanguageModel):
    """An adapter whose features are SigLIP's last hidden state, normed, and whose decoder is of the Gemma kind.

    Gemma's own modules scale its embeddings, by a buffer beside their weights; image features go in as they are.
    """

    def view_features(self, hidden: Tensor) -> Tensor:
        return self.view_tokens(self._tower.post_layernorm(hidden))

    @property
    def embed_tokens(self) -> nn.Module:
        embedding: Any = super().embed_tokens
        if self.image_token_id < embedding.num_embeddings:
            return cast(nn.Module, embedding)
        return WithoutPlaceholders(embedding, self.image_token_id)


class WithoutPlaceholders(nn.Module):
    """An embedding that has no row for the placeholder; features take the place of what it gives there.

    Parameters
    ----------
    embedding : module
    token_id : int
        The placeholder.
    """

    def __init__(self, embedding: nn.Module, token_id: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.token_id = token_id

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embeddings (B, S, E) of token ids (B, S), those of token 0 where a placeholder stands."""
        return cast(Tensor, self.embedding(input_ids.masked_fill(input_ids == self.token_id, 0)))
