"""Stage 3: a short finetuning of the whole model, tower included, on fresh scenes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vtc.reference.dense import label_patches
from vtc.reference.instruct import take
from vtc.reference.optim import make_optimizers, schedule
from vtc.reference.packing import answer_logits, pack, tokenize
from vtc.reference.pretrain import Log, to_pixels
from vtc.reference.scenes import scene
from vtc.reference.subsets import BUDGETS, covering_subset


@dataclass(frozen=True)
class FinetuneConfig:
    """Size of stage 3."""

    steps: int = 800
    batch: int = 16
    muon_lr: float = 0.001
    adam_lr: float = 2e-4
    warmup: int = 20
    full_share: float = 0.4
    seed: int = 13


def finetune(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    config: FinetuneConfig,
    work: Path,
    log: Log,
) -> None:
    """Train everything in place; resumes from ``work/finetune.pt``. The whitening must have been folded."""
    torch.manual_seed(config.seed)
    model.requires_grad_(True)
    optimizers = make_optimizers([model], config.muon_lr, config.adam_lr)
    checkpoint, start = work / "finetune.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        start = saved["step"]
    began, total = time.monotonic(), 0.0
    every = min(50, max(1, config.steps // 2))
    model.train()
    for step in range(start, config.steps):
        rng = np.random.default_rng([4, config.seed, step])
        schedule(optimizers, step, config.steps, config.warmup)
        scenes = [scene("train", 40_000 + config.seed, step * config.batch + i) for i in range(config.batch)]
        owners = [label_patches(s.objects).owner for s in scenes]
        budget = 256 if rng.random() < config.full_share else int(rng.choice(BUDGETS))
        if budget == 256:
            keep = torch.arange(256).expand(config.batch, -1)
        else:
            keep = torch.from_numpy(np.stack([covering_subset(owner, budget, rng) for owner in owners]))
        tokens = [tokenize(s.questions, tokenizer) for s in scenes]
        packed = pack(tokens, keep, bool(rng.random() < 0.5), tokenizer)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model.vision_tower(to_pixels([s.image for s in scenes])).last_hidden_state
            visual = model.model.multi_modal_projector(take(hidden[:, 1:], keep))
            loss = F.cross_entropy(answer_logits(model, packed, visual).float(), packed.targets)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()  # type: ignore[no-untyped-call]
            optimizer.zero_grad(set_to_none=True)
        total += loss.item()
        if (step + 1) % every == 0 or step + 1 == config.steps:
            log(
                {
                    "stage": "finetune",
                    "step": step + 1,
                    "loss": total / every,
                    "seconds": time.monotonic() - began,
                }
            )
            total = 0.0
        if (step + 1) % 200 == 0 or step + 1 == config.steps:
            state = {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "step": step + 1,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
