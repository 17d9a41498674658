"""Stage 2: teach the projector and decoder to answer from any subset of visual tokens that shows the objects.

The tower is frozen and its features are computed once per scene. They are whitened first: raw, their spread
is a hundred times that of word embeddings and nearly all in a few directions, and a decoder learns nothing
from them. Whitening is an affine map, folded into the projector's first layer afterwards. Random subsets
and both position conventions are our stand-in for the robustness of large pretrained decoders, which
tolerate missing visual tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vtc.reference.questions import CATEGORIES
from vtc.reference.scenes import scene
from vtc.reference.tokenizer import token_ids
from vtc.reference.training.dense import RANKS, label_patches
from vtc.reference.training.optim import make_optimizers, schedule
from vtc.reference.training.packing import answer_logits, pack_scenes, run_decoder, tokenize
from vtc.reference.training.pretrain import Log, to_pixels
from vtc.reference.training.subsets import BUDGETS, covering_subset, oracle_subset, uniform_subset
from vtc.training.evaluation import exact
from vtc.training.packing import Packed, QuestionTokens

#: Standard deviation of the visual tokens that enter the decoder at the start, in every direction.
FEATURE_SCALE = 0.5


@dataclass(frozen=True)
class InstructConfig:
    """Size of stage 2."""

    scenes: int = 18_000
    steps: int = 2000
    batch: int = 32
    muon_lr: float = 0.003
    adam_lr: float = 1e-3
    warmup: int = 50
    full_share: float = 0.2
    tally_weight: float = 0.3
    place_weight: float = 0.5
    held_out: int = 160
    every: int = 200
    seed: int = 11


@dataclass
class Features:
    """Cached scenes: tower features (N, 256, D) bf16, patch owners and shares (N, 256), questions."""

    states: Tensor
    owner: NDArray[np.int64]
    ranks: NDArray[np.int64]
    share: NDArray[np.float32]
    tokens: list[list[QuestionTokens]]
    category: list[list[str]]


@torch.no_grad()
def cache_features(
    tower: CLIPVisionModel,
    tokenizer: PreTrainedTokenizerFast,
    split: str,
    seed: int,
    indices: Sequence[int],
    batch: int = 32,
) -> Features:
    """Render scenes and run the tower once over each."""
    tower.train(False)
    width = tower.config.hidden_size
    states = torch.empty((len(indices), 256, width), dtype=torch.bfloat16)
    owner = np.empty((len(indices), 256), dtype=np.int8)
    share = np.empty((len(indices), 256), dtype=np.float16)
    ranks = np.empty((len(indices), 256, 2), dtype=np.int8)
    tokens, category = [], []
    for first in range(0, len(indices), batch):
        some = [scene(split, seed, i) for i in indices[first : first + batch]]
        with torch.autocast("cpu", torch.bfloat16):
            hidden = tower(to_pixels([s.image for s in some])).last_hidden_state
        states[first : first + len(some)] = hidden[:, 1:].to(torch.bfloat16)
        for offset, one in enumerate(some):
            labels = label_patches(one.objects)
            owner[first + offset], share[first + offset] = labels.owner, labels.share
            ranks[first + offset] = np.stack([labels.shape_rank, labels.color_rank], axis=-1)
            tokens.append(tokenize(one.questions, tokenizer))
            category.append([q.category for q in one.questions])
    return Features(states, owner.astype(np.int64), ranks.astype(np.int64), share.astype(np.float32), tokens, category)


def start_language_side(model: LlavaForConditionalGeneration) -> None:
    """Initial scales: embeddings of 0.1, visual tokens of ``FEATURE_SCALE``, with nothing lost in the projector."""
    projector = model.model.multi_modal_projector
    # Around 2 the GELU is nearly linear, so the projector starts as a rotation.
    nn.init.orthogonal_(projector.linear_1.weight, gain=0.5)
    nn.init.constant_(projector.linear_1.bias, 2.0)
    nn.init.orthogonal_(projector.linear_2.weight, gain=2 * FEATURE_SCALE)
    with torch.no_grad():
        projector.linear_2.bias.copy_(-projector.linear_2.weight.sum(dim=1) * F.gelu(torch.tensor(2.0)))
    nn.init.normal_(model.model.language_model.embed_tokens.weight, std=0.1)


def take(states: Tensor, keep: Tensor) -> Tensor:
    """Gather kept tokens: (B, 256, D) and (B, K) to (B, K, D)."""
    return states.gather(1, keep[:, :, None].expand(-1, -1, states.shape[-1]))


@torch.no_grad()
def measure(
    model: LlavaForConditionalGeneration,
    data: Features,
    tokenizer: PreTrainedTokenizerFast,
    mode: str,
    keep: int = 14,
) -> dict[str, float]:
    """Accuracy per category with all tokens ("full"), or ``keep`` of them by "oracle" or "uniform" choice.

    Other modes: "oracle_renumbered" (as oracle, positions contiguous) and "none" (no visual token at all).
    ``data`` holds features that the projector can read, whitened or raw.
    """
    model.train(False)
    hits: dict[str, list[bool]] = {c: [] for c in CATEGORIES}
    for first in range(0, len(data.tokens), 16):
        rows = range(first, min(first + 16, len(data.tokens)))
        chosen = torch.from_numpy(np.stack([choose(mode, data.owner[i], data.share[i], keep) for i in rows]))
        packed = pack_scenes([data.tokens[i] for i in rows], chosen, mode == "oracle_renumbered", tokenizer)
        with torch.autocast("cpu", torch.bfloat16):
            visual = model.model.multi_modal_projector(take(data.states[rows.start : rows.stop], chosen).float())
            right = exact(answer_logits(model, packed, visual), packed).tolist()
        for category, hit in zip((c for i in rows for c in data.category[i]), right, strict=True):
            hits[category].append(hit)
    model.train()
    scores = {c: float(np.mean(h)) if h else float("nan") for c, h in hits.items()}
    return {"all": float(np.mean([hit for h in hits.values() for hit in h]))} | scores


def choose(mode: str, owner: NDArray[np.int64], share: NDArray[np.float32], keep: int) -> NDArray[np.int64]:
    """Kept indices of one scene in a mode of ``measure``."""
    if mode == "full":
        return np.arange(256)
    if mode == "none":
        return np.arange(0)
    if mode == "uniform":
        return uniform_subset(keep)
    return oracle_subset(owner, share, keep)


def place_loss(head: nn.Module, states: Tensor, packed: Packed, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Whether the corner that "where" asks for is known, half-way through the decoder, where the answer begins.

    The horizontal half is the answer's second word. Without this its retrieval is learnt late or never.

    Parameters
    ----------
    head : Module
        D to 4 corners.
    states : Tensor of shape (B, L, D)
    packed : Packed
    tokenizer : PreTrainedTokenizerFast

    Returns
    -------
    Tensor
        Mean cross-entropy over the batch's "where" questions.
    """
    top, bottom = token_ids(tokenizer, "top", "bottom")
    left, right = token_ids(tokenizer, "\u0120left", "\u0120right")
    word, following = packed.targets[:-1], packed.targets[1:]
    begins = ((word == top) | (word == bottom)) & ((following == left) | (following == right))
    corner = 2 * (word == bottom).long() + (following == right).long()
    found = states[packed.rows[:-1][begins], packed.columns[:-1][begins]]
    return F.cross_entropy(head(found), corner[begins]) if len(found) else states.sum() * 0


def tally_loss(
    predicted: Tensor, owner: NDArray[np.int64], ranks: NDArray[np.int64], keep: NDArray[np.int64]
) -> Tensor:
    """Whether visual tokens, half-way through the decoder, know their place in a count.

    Counting is what a decoder learns last, if at all, from answers alone. So each object's tokens also tell how many
    objects of its shape and of its colour come before it, and whether they are their glyph's first token kept.

    Parameters
    ----------
    predicted : Tensor of shape (B, K, 2 * RANKS + 2)
    owner : array of shape (B, 256)
    ranks : array of shape (B, 256, 2)
    keep : array of shape (B, K)

    Returns
    -------
    Tensor
        Mean cross-entropy over the tokens of objects.
    """
    kept = np.take_along_axis(owner, keep, axis=1)
    first = np.zeros_like(kept)
    for row, glyphs in enumerate(kept):
        first[row, np.unique(glyphs, return_index=True)[1]] = 1
    on_object = torch.from_numpy(kept >= 0)
    goals = np.concatenate([np.take_along_axis(ranks, keep[:, :, None], axis=1), first[:, :, None]], axis=2)
    wanted = torch.from_numpy(goals)[on_object]
    parts = torch.split(predicted[on_object], [RANKS, RANKS, 2], dim=-1)
    return torch.stack([F.cross_entropy(part, wanted[:, i]) for i, part in enumerate(parts)]).sum()


def instruct(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    train: Features,
    held_out: Features,
    config: InstructConfig,
    work: Path,
    log: Log,
) -> None:
    """Train projector and decoder in place on whitened features; resumes from ``work/instruct.pt``."""
    torch.manual_seed(config.seed)
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
    width = model.lm_head.in_features
    tally = nn.ModuleDict({"patch": nn.Linear(width, 2 * RANKS + 2), "scene": nn.Linear(width, 4)})
    optimizers = make_optimizers([model, tally], config.muon_lr, config.adam_lr)
    trained = [p for p in model.parameters() if p.requires_grad]
    probe = len(model.model.language_model.layers) // 2 + 1
    checkpoint, start = work / "instruct.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        tally.load_state_dict(saved["tally"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        start = saved["step"]
    began, total, counts, places = time.monotonic(), 0.0, 0.0, 0.0
    log_every = min(50, max(1, config.steps // 4))
    model.train()
    for step in range(start, config.steps):
        rng = np.random.default_rng([3, config.seed, step])
        schedule(optimizers, step, config.steps, config.warmup)
        rows = rng.integers(len(train.tokens), size=config.batch)
        # Early on, short sequences: binding words to objects is learnt there soonest, and cheaply.
        early = step < config.steps // 4
        budget = (
            256 if rng.random() < config.full_share and not early else int(rng.choice(BUDGETS[: 7 if early else None]))
        )
        if budget == 256:
            keep = torch.arange(256).expand(config.batch, -1)
        else:
            keep = torch.from_numpy(np.stack([covering_subset(train.owner[i], budget, rng) for i in rows]))
        packed = pack_scenes([train.tokens[i] for i in rows], keep, bool(rng.random() < 0.5), tokenizer)
        states = take(train.states[torch.from_numpy(rows)], keep)
        with torch.autocast("cpu", torch.bfloat16):
            visual = model.model.multi_modal_projector(states.float())
            logits, seen = run_decoder(model, packed, visual, layer=probe)
            answers = F.cross_entropy(logits.float(), packed.targets)
        seen = F.layer_norm(seen.float(), seen.shape[-1:])
        told = tally["patch"](seen[:, 2 : 2 + budget])
        counted = tally_loss(told, train.owner[rows], train.ranks[rows], keep.numpy())
        placed = place_loss(tally["scene"], seen, packed, tokenizer)
        loss = answers + config.tally_weight * counted + config.place_weight * placed
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        for optimizer in optimizers:
            optimizer.step()  # type: ignore[no-untyped-call]
            optimizer.zero_grad(set_to_none=True)
        total += answers.item()
        counts += counted.item()
        places += placed.item()
        if (step + 1) % log_every == 0 or step + 1 == config.steps:
            row: dict[str, float | int | str] = {
                "stage": "instruct",
                "step": step + 1,
                "loss": total / log_every,
                "tally": counts / log_every,
                "place": places / log_every,
            }
            row["seconds"] = time.monotonic() - began
            total = counts = places = 0.0
            if (step + 1) % config.every == 0 or step + 1 == config.steps:
                for mode in ("full", "oracle", "oracle_renumbered", "uniform"):
                    marks = measure(model, held_out, tokenizer, mode)
                    row |= {f"{mode}_{k}": v for k, v in marks.items() if mode == "full" or k == "all"}
                state = {
                    "model": model.state_dict(),
                    "tally": tally.state_dict(),
                    "optimizers": [o.state_dict() for o in optimizers],
                    "step": step + 1,
                }
                torch.save(state, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
            log(row)
