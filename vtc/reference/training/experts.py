"""Train the mixture of experts that the reference VLM was made into, with and without SMoES's regulariser.

Usage: ``python -m vtc.reference.training.experts --scores none|attention|gaussian -o DIR [--work DIR] [--smoke]``

Router and experts learn; all else stays as it is. Every choice of scores starts from the same weights and sees the
same questions in the same order, so that what comes out can be compared question by question. ``none`` has the usual
load-balance loss over all experts. The others balance inside of bins of experts alone, and raise the mutual information
between modality and bin (SMoES, arXiv 2604.23996), by soft modality scores from attention or from Gaussian statistics.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from vtc.experts.modality import GaussianScores, bin_mutual_information, intra_bin_balance_loss, load_balance_loss
from vtc.experts.specialisation import modality_bins, visual_share
from vtc.models import load_adapter
from vtc.models.base import VLMAdapter
from vtc.models.routers import Routed, Tokens, watching_routers
from vtc.reference import reference_dir
from vtc.reference.training.checkpoint import save_checkpoint
from vtc.reference.training.instruct import Features, cache_features, measure, take
from vtc.reference.training.optim import schedule
from vtc.reference.training.packing import pack_scenes
from vtc.reference.training.pretrain import Log
from vtc.reference.training.subsets import BUDGETS, covering_subset
from vtc.reference.training.train import HELD_OUT_SEED, TRAIN_SEED, CsvLog
from vtc.reference.training.upcycle import upcycle
from vtc.training.forward import answer_states
from vtc.training.packing import Packed

Scores = Literal["none", "attention", "gaussian"]


@dataclass(frozen=True)
class ExpertConfig:
    """Size of the training, and the weights of its losses."""

    scores: Scores = "none"
    scenes: int = 6000
    steps: int = 600
    batch: int = 24
    learning_rate: float = 1e-3
    router_rate: float = 2e-3
    warmup: int = 40
    full_share: float = 0.1
    bins: int = 4
    decay: float = 0.99
    balance_weight: float = 0.01
    information_weight: float = 0.3
    held_out: int = 160
    every: int = 100
    seed: int = 17


SMOKE = ExpertConfig(scenes=32, steps=4, batch=4, warmup=1, held_out=8, every=4)


class RoutingLoss:
    """What a step's loss gets for how its tokens were routed.

    Parameters
    ----------
    config : ExpertConfig
    layers, experts, width : int
        Of the decoder; `width` is its hidden size.
    """

    def __init__(self, config: ExpertConfig, layers: int, experts: int, width: int) -> None:
        self.config = config
        self.counts = torch.zeros(layers, 2, experts)
        self.gaussian = GaussianScores(layers, width, config.decay)
        self.balance: list[Tensor] = []
        self.information: list[Tensor] = []
        self.real = self.visual = torch.empty(0)

    def begin(self, packed: Packed, visual: Tensor) -> None:
        """Start a step; `visual` (B, S) says which tokens are visual."""
        self.balance, self.information = [], []
        self.real, self.visual = packed.block >= 0, visual

    def add(self, routed: Routed) -> None:
        """Take in what a layer's router decided."""
        config, real = self.config, self.real
        probabilities = routed.logits.float().softmax(dim=-1)
        chosen = F.one_hot(routed.chosen, probabilities.shape[-1]).sum(dim=2).to(probabilities) * real[..., None]
        self._count(routed.layer, chosen)
        if config.scores == "none":
            self.balance.append(load_balance_loss(probabilities[real], routed.chosen[real]))
            return
        bins = self.bins(routed.layer)
        scores = self._scores(routed)
        self.balance.append(intra_bin_balance_loss(probabilities[real], routed.chosen[real], bins))
        masked = scores * real[..., None]
        self.information.append(bin_mutual_information(masked, probabilities, bins).mean())

    def bins(self, layer: int) -> Tensor:
        """Bin of each expert (E), by the share of its choices that visual tokens made of late."""
        share = visual_share(self.counts[layer].numpy().astype(np.float64))
        return torch.from_numpy(modality_bins(share, self.config.bins))

    @torch.no_grad()
    def _count(self, layer: int, chosen: Tensor) -> None:
        of_text = (chosen * ~self.visual[..., None]).sum(dim=(0, 1))
        now = torch.stack([of_text, chosen.sum(dim=(0, 1)) - of_text])
        decay = self.config.decay if self.counts[layer].any() else 0.0
        self.counts[layer] = decay * self.counts[layer] + (1 - decay) * now

    @torch.no_grad()
    def _scores(self, routed: Routed) -> Tensor:
        if self.config.scores == "attention":
            return routed.scores
        self.gaussian.update(routed.layer, routed.hidden, self.visual, self.real)
        return self.gaussian.scores(routed.layer, routed.hidden)

    def total(self) -> Tensor:
        """The loss of the step."""
        loss = self.config.balance_weight * torch.stack(self.balance).mean()
        if self.information:
            loss = loss - self.config.information_weight * torch.stack(self.information).sum()
        return loss

    def told(self) -> dict[str, float]:
        """For the log: balance, and mutual information in nats, mean over layers."""
        told = {"balance": torch.stack(self.balance).mean().item()}
        if self.information:
            told["information"] = torch.stack(self.information).mean().item()
        return told

    def state(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return {"counts": self.counts, "gaussian": self.gaussian.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.counts = state["counts"]
        self.gaussian.load_state_dict(state["gaussian"])


def tune(
    adapter: VLMAdapter,
    tokenizer: PreTrainedTokenizerFast,
    train: Features,
    held_out: Features,
    config: ExpertConfig,
    work: Path,
    log: Log,
) -> None:
    """Train routers and experts in place; resumes from ``work/experts.pt``."""
    torch.manual_seed(config.seed)
    named = {name: p for name, p in adapter.model.named_parameters() if ".mlp." in name and "language_model" in name}
    routers = [p.requires_grad_(True) for name, p in named.items() if ".gate." in name]
    experts = [p.requires_grad_(True) for name, p in named.items() if ".experts." in name]
    groups = [{"params": experts, "lr": config.learning_rate}, {"params": routers, "lr": config.router_rate}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    decoder = adapter.facts.decoder
    routing = RoutingLoss(config, decoder.layers, decoder.experts, decoder.width)
    checkpoint, start = work / "experts.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        adapter.model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        routing.load(saved["routing"])
        start = saved["step"]
    began, total = time.monotonic(), 0.0
    log_every = min(50, max(1, config.steps // 4))
    with watching_routers(adapter, routing.add) as tell:
        for step in range(start, config.steps):
            schedule([optimizer], step, config.steps, config.warmup)
            packed, states = draw(train, tokenizer, config, step)
            visual = torch.zeros_like(packed.block, dtype=torch.bool)
            visual[:, packed.visual] = True
            routing.begin(packed, visual)
            tell(Tokens.of(visual, packed.position_ids))
            with torch.autocast("cpu", torch.bfloat16):
                predicted = answer_states(adapter, packed, adapter.projector(states.float()))
                answers = F.cross_entropy(adapter.head(predicted).float(), packed.targets)
            loss = answers + routing.total()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([*routers, *experts], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += answers.item()
            if (step + 1) % log_every == 0 or step + 1 == config.steps:
                row: dict[str, float | int | str] = {"stage": config.scores, "step": step + 1}
                row |= {"seconds": time.monotonic() - began, "loss": total / log_every, **routing.told()}
                total = 0.0
                if (step + 1) % config.every == 0 or step + 1 == config.steps:
                    state = {"model": adapter.model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save(state | {"routing": routing.state(), "step": step + 1}, checkpoint.with_suffix(".tmp"))
                    checkpoint.with_suffix(".tmp").replace(checkpoint)
                log(row)
    adapter.model.requires_grad_(False)
    for mode in ("full", "oracle", "uniform"):
        marks = measure(adapter.model, held_out, tokenizer, mode)
        log({"stage": config.scores, "step": config.steps, "seconds": 0.0, f"{mode}_all": marks["all"]})


def draw(data: Features, tokenizer: PreTrainedTokenizerFast, config: ExpertConfig, step: int) -> tuple[Packed, Tensor]:
    """The batch of a step: some scenes with all their questions, and all or some of their visual tokens."""
    rng = np.random.default_rng([5, config.seed, step])
    rows = rng.integers(len(data.tokens), size=config.batch)
    if rng.random() < config.full_share:
        keep = torch.arange(256).expand(config.batch, -1)
    else:
        budget = int(rng.choice(BUDGETS[:-1]))
        keep = torch.from_numpy(np.stack([covering_subset(data.owner[i], budget, rng) for i in rows]))
    packed = pack_scenes([data.tokens[i] for i in rows], keep, bool(rng.random() < 0.5), tokenizer)
    return packed, take(data.states[torch.from_numpy(rows)], keep)


def train(config: ExpertConfig, output: Path, work: Path) -> None:
    """Run what is left of the training and write the checkpoint."""
    work.mkdir(parents=True, exist_ok=True)
    log = CsvLog(work / "training_log.csv")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(reference_dir())
    dense = LlavaForConditionalGeneration.from_pretrained(reference_dir(), dtype=torch.float32)
    save_checkpoint(upcycle(dense, config.seed), tokenizer, work / "start")
    adapter = load_adapter(work / "start")
    tower = adapter.model.model.vision_tower
    held_out = cache_features(tower, tokenizer, "validation", HELD_OUT_SEED, range(config.held_out))
    data = cache_features(tower, tokenizer, "train", TRAIN_SEED, range(config.scenes))
    tune(adapter, tokenizer, data, held_out, config, work, log)
    save_checkpoint(adapter.model, tokenizer, output, torch.bfloat16)
    (output / "training_config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    (output / "training_log.csv").write_bytes(log.path.read_bytes())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the reference mixture of experts.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--scores", choices=get_args(Scores), default="none", help="soft modality scores of SMoES")
    parser.add_argument("--work", type=Path, help="resumable state (default: OUTPUT.work)")
    parser.add_argument("--steps", type=int, default=ExpertConfig.steps)
    parser.add_argument("--seed", type=int, default=ExpertConfig.seed)
    weight = ExpertConfig.information_weight
    parser.add_argument("--information-weight", type=float, default=weight, help="of SMoES's mutual information")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's choice)")
    parser.add_argument("--smoke", action="store_true", help="a few steps")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    whole = SMOKE if args.smoke else ExpertConfig(steps=args.steps)
    weight = args.information_weight
    config = dataclasses.replace(whole, scores=args.scores, seed=args.seed, information_weight=weight)
    train(config, args.output, args.work or args.output.with_name(args.output.name + ".work"))


if __name__ == "__main__":
    main()
