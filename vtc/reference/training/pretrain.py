"""Stage 1: teach the vision tower, on crowded scenes, what each patch shows and what the whole scene holds.

End-to-end training on sparse scenes never gets to read digits; a loss on every patch of a crowded scene
does within minutes. Each patch tells its object's class, colour, role in a number and centre, and its own
row and column, so that the language model finds all of that in single tokens. The CLS token tells what the
scene contains; that gives its attention, by which many pruning methods choose, something to mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel

from vtc.reference.glyphs import COLORS
from vtc.reference.training.dense import CLASSES, GRID, RANKS, ROLES, dense_scene, label_patches, scene_summary
from vtc.reference.training.optim import make_optimizers, schedule

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Log = Callable[[dict[str, float | int | str]], None]


@dataclass(frozen=True)
class PretrainConfig:
    """Size of stage 1."""

    steps: int = 3000
    batch: int = 16
    muon_lr: float = 0.01
    adam_lr: float = 1.5e-3
    warmup: int = 100
    crowded: float = 2 / 3
    seed: int = 7


class PatchHeads(nn.Module):
    """Read-outs of the tower, used in stage 1 only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.sizes = (len(CLASSES), len(COLORS), len(ROLES), 2, GRID, GRID, 4, RANKS, RANKS)
        self.patch = nn.Linear(width, sum(self.sizes))
        self.scene = nn.Linear(width, len(CLASSES) - 1 + len(COLORS) * 9)


def to_pixels(images: list[np.ndarray]) -> Tensor:
    """Normalise uint8 images as the processor does: (B, 224, 224, 3) to float (B, 3, 224, 224)."""
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255.0
    mean, std = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1), torch.tensor(CLIP_STD).view(1, 3, 1, 1)
    return (batch - mean) / std


def dense_batch(
    seed: int, first: int, count: int, split: str = "train", crowded: float = 2 / 3
) -> tuple[Tensor, dict[str, Tensor]]:
    """Pixels and stacked labels of ``count`` pretraining scenes."""
    scenes = [dense_scene(seed, first + i, split, crowded) for i in range(count)]
    labels = [label_patches(s.objects) for s in scenes]
    stacked = {
        name: torch.from_numpy(np.stack([getattr(one, name) for one in labels]))
        for name in ("kind", "color", "role", "center", "corner", "shape_rank", "color_rank")
    }
    stacked["scene"] = torch.from_numpy(np.stack([scene_summary(s.objects) for s in scenes]))
    return to_pixels([s.image for s in scenes]), stacked


def pretrain_loss(
    tower: CLIPVisionModel, heads: PatchHeads, pixels: Tensor, labels: dict[str, Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """Sum of the patch and scene losses, and accuracies on object patches."""
    hidden = tower(pixels).last_hidden_state
    states = heads.norm(hidden.float())
    kind, color, role, center, row, column, corner, shape_rank, color_rank = heads.patch(states[:, 1:]).split(
        heads.sizes, dim=-1
    )
    where = torch.arange(GRID * GRID).expand(len(pixels), -1)
    on_object = labels["color"] >= 0
    on_digit = on_object & (labels["kind"] >= 6) & (labels["kind"] <= 15)
    weight = torch.ones(len(CLASSES))
    weight[0] = 0.3
    losses = {
        "kind": F.cross_entropy(kind.flatten(0, 1), labels["kind"].flatten(), weight, ignore_index=-1),
        "color": F.cross_entropy(color.flatten(0, 1), labels["color"].flatten(), ignore_index=-1),
        "role": F.cross_entropy(role[on_digit], labels["role"][on_digit]),
        "center": 20.0 * F.mse_loss(center[on_object], labels["center"][on_object]),
        "place": 0.15
        * (
            F.cross_entropy(row.flatten(0, 1), (where // GRID).flatten())
            + F.cross_entropy(column.flatten(0, 1), (where % GRID).flatten())
        ),
        "corner": 0.5 * F.cross_entropy(corner.flatten(0, 1), labels["corner"].flatten(), ignore_index=-1),
        "shape_rank": 1.0 * F.cross_entropy(shape_rank.flatten(0, 1), labels["shape_rank"].flatten(), ignore_index=-1),
        "color_rank": 1.0 * F.cross_entropy(color_rank.flatten(0, 1), labels["color_rank"].flatten(), ignore_index=-1),
        "scene": F.binary_cross_entropy_with_logits(heads.scene(states[:, 0]), labels["scene"]),
    }
    with torch.no_grad():
        hit = kind.argmax(-1) == labels["kind"]
        other = on_object & ~on_digit
        marks = {
            "digit": hit[on_digit].float().mean().item(),
            "other": hit[other].float().mean().item(),
            "empty": hit[labels["kind"] == 0].float().mean().item(),
            "color": (color.argmax(-1) == labels["color"])[on_object].float().mean().item(),
            "role": (role.argmax(-1) == labels["role"])[on_digit].float().mean().item(),
            "center_px": 224 * (center - labels["center"])[on_object].abs().mean().item(),
            "corner": (corner.argmax(-1) == labels["corner"])[on_object].float().mean().item(),
            "shape_rank": (shape_rank.argmax(-1) == labels["shape_rank"])[on_object].float().mean().item(),
            "color_rank": (color_rank.argmax(-1) == labels["color_rank"])[on_object].float().mean().item(),
            "scene": losses["scene"].item(),
        }
    return torch.stack(list(losses.values())).sum(), marks


def pretrain(tower: CLIPVisionModel, heads: PatchHeads, config: PretrainConfig, checkpoint: Path, log: Log) -> None:
    """Train tower and read-outs in place; resumes from ``checkpoint`` where it exists.

    Parameters
    ----------
    tower : CLIPVisionModel
    heads : PatchHeads
    config : PretrainConfig
    checkpoint : Path
        Its stem names the stage in the log.
    log : callable
        Takes one row of measurements.
    """
    torch.manual_seed(config.seed)
    optimizers = make_optimizers([tower, heads], config.muon_lr, config.adam_lr)
    start = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        tower.load_state_dict(saved["tower"])
        heads.load_state_dict(saved["heads"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        start = saved["step"]
    began, total = time.monotonic(), 0.0
    every = min(100, max(1, config.steps // 4))
    tower.train()
    for step in range(start, config.steps):
        schedule(optimizers, step, config.steps, config.warmup)
        pixels, labels = dense_batch(config.seed, step * config.batch, config.batch, crowded=config.crowded)
        with torch.autocast("cpu", torch.bfloat16):
            loss, marks = pretrain_loss(tower, heads, pixels, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*tower.parameters(), *heads.parameters()], 1.0)
        for optimizer in optimizers:
            optimizer.step()  # type: ignore[no-untyped-call]
            optimizer.zero_grad(set_to_none=True)
        total += loss.item()
        if (step + 1) % every == 0 or step + 1 == config.steps:
            row: dict[str, float | int | str] = {
                "stage": checkpoint.stem,
                "step": step + 1,
                "loss": total / every,
                "seconds": time.monotonic() - began,
            }
            log(row | {f"train_{k}": v for k, v in marks.items()})
            total = 0.0
        if (step + 1) % 500 == 0 or step + 1 == config.steps:
            state = {
                "tower": tower.state_dict(),
                "heads": heads.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "step": step + 1,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
