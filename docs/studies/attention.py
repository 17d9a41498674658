"""What attention inside the decoder says about visual tokens: how early it ranks them well, and whom it favours."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from docs.studies.harness import BATCH, MAX_NEW_TOKENS, Questions, in_batches
from vtc.compressed.decoder import attention_bias
from vtc.compressed.model import CompressedModel
from vtc.inputs.schedule import query_tokens
from vtc.models.base import VLMAdapter
from vtc.recipe import NONE, Recipe
from vtc.recipe.selectors import TextAttentionEntry
from vtc.selectors.decoder.base import DecoderScorer, DecoderTokens
from vtc.selectors.decoder.text_attention import TextAttention

PRUNED_SHARE = 0.9
PRUNED_AT = 2
BOOTSTRAP = 1000


class GivenScores(DecoderScorer[TextAttentionEntry]):
    """Ranks tokens by scores (I, K) that were computed elsewhere."""

    def __init__(self, adapter: VLMAdapter, scores: Tensor) -> None:
        super().__init__(TextAttentionEntry(), adapter, after=PRUNED_AT, before=PRUNED_AT - 1)
        self.scores = scores

    def score(self, tokens: DecoderTokens) -> Tensor:
        """The given scores."""
        return self.scores


@torch.inference_mode()
def layer_sweep(questions: Questions, images: int = 240) -> dict[str, Any]:
    """Rank with the attention of layer L over the whole, unpruned sequence, then prune 90 % before layer 2.

    An oracle's probe, not a method: layer L has seen all tokens before any is gone (LearnPruner, figure 2c).

    Returns
    -------
    dict
        ``text_after_image`` and ``last_token``: retention for each layer L.
    """
    adapter = questions.adapter
    keep = round((1 - PRUNED_SHARE) * adapter.facts.visual_tokens)
    stage = {"kind": "prune_in_decoder", "layer": PRUNED_AT, "keep": keep}
    model = questions.compressed(Recipe.model_validate({"version": 1, "name": "sweep", "stages": [stage]}))
    whole = questions.compressed(NONE)
    handoff: Any = model.handoffs[1]
    count = min(images, len(questions.items))
    right: dict[tuple[str, int], list[bool]] = {}
    for rows in in_batches(count, BATCH):
        items = [questions.items[row] for row in rows.flatten().tolist()]
        prompts = [questions.prompts[row] for row in rows.flatten().tolist()]
        ids, mask = adapter.tokenize(prompts, [1] * len(prompts), whole.image_tokens)
        states, places = hidden_states(whole, ids, mask, rows)
        for queries in ("text_after_image", "last_token"):
            asked = query_tokens(ids.numpy(), mask.numpy(), adapter.image_token_id, handoff.tokens, queries)
            _, columns, asking, asking_mask = map(torch.from_numpy, asked)
            for layer, hidden in enumerate(states):
                tokens = DecoderTokens(hidden, None, mask, places, columns, asking, asking_mask)
                handoff.selector = GivenScores(
                    adapter, TextAttention(TextAttentionEntry(), adapter, layer, layer).score(tokens)
                )
                answers = model.answer(ids, mask, rows, MAX_NEW_TOKENS)
                right.setdefault((queries, layer), []).extend(
                    answer.text in item.answers for answer, item in zip(answers, items, strict=True)
                )
    base = float(questions.original.scores[:count].mean())
    found: dict[str, dict[str, float]] = {}
    for (queries, layer), hits in right.items():
        found.setdefault(queries, {})[str(layer)] = float(np.mean(hits)) / base
    return found


def hidden_states(model: CompressedModel, ids: Tensor, mask: Tensor, rows: Tensor) -> tuple[list[Tensor], Tensor]:
    """Input of every decoder layer (B, S, E), and positions (B, S), of the model with all its tokens."""
    adapter = model.adapter
    features, _ = model.vision(rows)
    embeds = adapter.embed_tokens(ids)
    hidden = embeds.masked_scatter((ids == adapter.image_token_id).unsqueeze(-1), features)
    places = (mask.cumsum(dim=1) - 1).clamp_min(0)
    rotation = adapter.rotation(hidden, places)
    allowed = attention_bias(mask, hidden)
    states = []
    for layer in adapter.decoder_layers:
        states.append(hidden)
        hidden = layer(hidden, attention_mask=allowed, position_embeddings=rotation, past_key_values=None)
    return states, places


@torch.inference_mode()
def index_slopes(questions: Questions, images: int = 240) -> dict[str, Any]:
    """Does attention to a visual token depend on where it stands? Least-squares slopes over the token's index.

    Attention received, in units of its mean over the image's tokens, against the index scaled to 0..1: a slope of 1
    means that the last token gets a mean more than the first. Attention from visual tokens is first multiplied by the
    number of tokens that the query may see, since a longer row leaves less to each, and averaged over the queries that
    may see the token. Objects stand anywhere in the scenes, so content has no trend of its own. Intervals are
    bootstrapped over images.

    Returns
    -------
    dict
        ``vision`` (queries among the visual tokens), ``text`` (after the image): for each layer ``slope``, ``ci95``.
    """
    adapter = questions.adapter
    whole = questions.compressed(NONE)
    tokens = adapter.facts.visual_tokens
    slopes: dict[str, list[list[float]]] = {kind: [[] for _ in adapter.decoder_layers] for kind in ("vision", "text")}
    index = torch.linspace(0, 1, tokens) - 0.5
    for rows in in_batches(min(images, len(questions.items)), 8):
        prompts = [questions.prompts[row] for row in rows.flatten().tolist()]
        ids, mask = adapter.tokenize(prompts, [1] * len(prompts), tokens)
        states, places = hidden_states(whole, ids, mask, rows)
        length = ids.shape[1]
        visual = (ids == adapter.image_token_id).nonzero()[:, 1].reshape(len(prompts), tokens)
        everybody = torch.arange(length).expand(len(prompts), -1)
        seen = (torch.arange(length) <= everybody.unsqueeze(-1)) & mask.bool().unsqueeze(1)
        after = (everybody > visual[:, -1:]) & mask.bool()
        for layer, hidden in enumerate(states):
            maps = adapter.attention_rows(layer, hidden, everybody, seen, places)
            received = maps.gather(2, visual.unsqueeze(1).expand(-1, length, -1))
            among = received.gather(1, visual.unsqueeze(-1).expand(-1, -1, tokens))
            row_length = seen.sum(dim=2).gather(1, visual).unsqueeze(-1)
            by_vision = (among * row_length).sum(dim=1) / torch.arange(tokens, 0, -1)
            by_text = (received * after.unsqueeze(-1)).sum(dim=1)
            for kind, attention in (("vision", by_vision), ("text", by_text)):
                relative = attention / attention.mean(dim=1, keepdim=True)
                slopes[kind][layer] += ((relative * index).sum(dim=1) / index.square().sum()).tolist()
    return {kind: [_mean_with_interval(values) for values in layers] for kind, layers in slopes.items()}


def _mean_with_interval(values: list[float]) -> dict[str, Any]:
    array = np.array(values)
    draws = np.random.default_rng(0).integers(len(array), size=(BOOTSTRAP, len(array)))
    low, high = np.quantile(array[draws].mean(axis=1), [0.025, 0.975])
    return {"slope": float(array.mean()), "ci95": [float(low), float(high)]}
