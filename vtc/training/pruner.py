"""Train a learned pruner on a frozen model.

The pruner rates encoder outputs; a hard mask with a soft gradient decides what the decoder sees; the answers' loss, and
how far they move from the unpruned model's, tell which tokens were worth seeing.

Based on LearnPruner (arXiv 2604.23950): per-token MLP, straight-through mask, frozen model. The exact top-k mask is
VisionSelector's (arXiv 2510.16598).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn import functional as F

from vtc.models.base import VLMAdapter
from vtc.progress import Report, silent
from vtc.recipe.selectors.learned import LearnedEntry, PrunerTraining
from vtc.selectors.learned import Learned
from vtc.selectors.trained import log_path, read_metadata, save_trained
from vtc.training.evaluation import right_answers
from vtc.training.examples import Data, EncodedExamples, visual_tokens
from vtc.training.forward import answer_states
from vtc.training.frozen import frozen
from vtc.training.learning_rate import learning_rate_factor
from vtc.training.log import write_log
from vtc.training.masks import soft_top_k, straight_through
from vtc.training.state import Row, load_state, save_state, state_path
from vtc.training.verdict import WARNING, check_finite, learned_nothing
from vtc.training.whitening import Whitening
from vtc.visual_tokens import VisualTokens

LOG_FIELDS = (
    "step",
    "seconds",
    "loss",
    "lm",
    "kl",
    "budget",
    "kept_ratio",
    "learning_rate",
    "validation_accuracy",
)
LOGGED = 30
"""Log rows of a run; at each one the state is saved."""
IMITATION_RATE = 0.01
IMITATION_BATCH = 32
WHITENED_ON = 256
BELOW = 10.0
"""Log-odds of keeping padding, below those of all other tokens."""


@dataclass(frozen=True)
class PrunerSubject:
    """What a pruner is trained for.

    Attributes
    ----------
    adapter : VLMAdapter
    model_digest : str
    layers : tuple of int
        Encoder layers that run.
    keep : int
        Visual tokens that the stage keeps of each run of placeholders.
    diversity : float
        Share of them that the selector fills by dissimilarity, in validation as later.
    """

    adapter: VLMAdapter
    model_digest: str
    layers: tuple[int, ...]
    keep: int
    diversity: float

    def selector(self) -> Learned:
        """A new pruner."""
        return Learned(LearnedEntry(diversity=self.diversity), self.adapter.facts.token_width, self.layers)


def train_pruner(
    subject: PrunerSubject,
    data: Data,
    config: PrunerTraining,
    path: Path,
    source: str,
    report: Report = silent,
    encoded: tuple[EncodedExamples, EncodedExamples] | None = None,
) -> None:
    """Train, or go on training, a pruner.

    Parameters
    ----------
    subject : PrunerSubject
    data : Data
    config : PrunerTraining
    path : Path
        The pruner's file. The log goes beside it, and so does, under a hidden name, the state of the run. A state of
        the same run is taken up, a finished pruner of it is left as it is.
    source : str
        What the data are called.
    report : callable
    encoded : (EncodedExamples, EncodedExamples) or None
        Training and held-out examples, by a caller that trains several pruners on the same ones in one process; None
        encodes them here.
    """
    fingerprint = _fingerprint(subject, data, config)
    if read_metadata(path).get("run") == fingerprint:
        return
    accelerator = Accelerator()
    report = report if accelerator.is_main_process else silent
    with frozen(subject.adapter, "grouped", accelerator.device):
        run = _Run(subject, data, config, accelerator, state_path(path), fingerprint, report, encoded)
        log = run.train()
        selector, spread = run.selector(), run.spread()
    if accelerator.is_main_process:
        write_log(log_path(path), log, LOG_FIELDS)
        facts = {
            "run": fingerprint,
            "data": source,
            "images": len(data.train),
            "validation_images": len(data.validation),
            "validation_accuracy": log[-1]["validation_accuracy"],
            "unpruned_accuracy": log[-1]["unpruned_accuracy"],
            "keep": subject.keep,
            "processes": accelerator.num_processes,
            "spread_over_processes": spread,
            **config.model_dump(mode="json", exclude={"images"}),
        }
        warning = learned_nothing(
            log,
            Learned.noun,
            "loss",
            "validation_accuracy",
            log[0]["untrained_accuracy"],
            higher_is_better=True,
            best=run.unpruned,
        )
        facts |= {WARNING: warning} if warning else {}
        save_trained(path, selector, subject.model_digest, facts)
        state_path(path).unlink(missing_ok=True)
    accelerator.wait_for_everyone()


class _Run:
    """One process of a training run."""

    def __init__(
        self,
        subject: PrunerSubject,
        data: Data,
        config: PrunerTraining,
        accelerator: Accelerator,
        state: Path,
        fingerprint: str,
        report: Report,
        encoded: tuple[EncodedExamples, EncodedExamples] | None = None,
    ) -> None:
        self.subject, self.config, self.accelerator = subject, config, accelerator
        self.adapter, self.state, self.fingerprint, self.report = subject.adapter, state, fingerprint, report
        self.tokens = self.adapter.facts.layout.selectable
        device = accelerator.device
        memory = int(config.memory_gb * 2**30) // accelerator.num_processes

        # Each process has images of its own, and starts from the same statistics and parameters.
        def own(examples: Sequence[object]) -> slice:
            return slice(min(accelerator.process_index, len(examples) - 1), None, accelerator.num_processes)

        self.train_on, self.validate_on = encoded or (
            EncodedExamples(self.adapter, subject.layers, data.beginning, examples[own(examples)], memory, report)
            for examples in (data.train, data.validation)
        )
        some = self.train_on.get(range(min(WHITENED_ON, len(self.train_on))))
        whitening = Whitening.of(visual_tokens(some, torch.device("cpu")).features)
        self.whitening = Whitening(*broadcast([whitening.mean.to(device), whitening.matrix.to(device)]))
        torch.manual_seed(config.seed)
        mlp = subject.selector().mlp
        optimizer = torch.optim.AdamW(mlp.parameters(), lr=config.learning_rate, weight_decay=0.0)
        self.mlp, self.optimizer = accelerator.prepare(mlp, optimizer)
        self.began = time.monotonic()
        self.unpruned = self._accuracy(None, self.tokens)

    def train(self) -> list[Row]:
        """All steps that are still to be done; returns the whole log."""
        config = self.config
        step, log = load_state(self.state, self._plain_mlp(), self.optimizer.optimizer, self.fingerprint)
        untrained = log[0]["untrained_accuracy"] if log else self._accuracy(self.selector(), self.subject.keep)
        if step == 0:
            self._imitate()
        spent = log[-1]["seconds"] if log else 0.0
        every = math.ceil(config.steps / LOGGED)
        sums: dict[str, float] = {}
        label = "training the pruner"
        while step < config.steps:
            rate = config.learning_rate * learning_rate_factor(step, config.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            for name, value in self._step(step).items():
                sums[name] = sums.get(name, 0.0) + value
            step += 1
            self.report(label, step, config.steps)
            if step % every == 0 or step == config.steps:
                since = step - (int(log[-1]["step"]) if log else 0)
                row = self._row(step, {name: total / since for name, total in sums.items()}, rate, spent)
                log.append(row | {"untrained_accuracy": untrained})
                check_finite(row, Learned.noun)
                sums = {}
                label = (
                    f"training the pruner (loss {row['loss']:.3f}, kept {row['kept_ratio']:.1%}, "
                    f"validation {row['validation_accuracy']:.1%} of {self.unpruned:.1%})"
                )
                if self.accelerator.is_main_process:
                    save_state(self.state, self._plain_mlp(), self.optimizer.optimizer, step, log, self.fingerprint)
        return log

    def selector(self) -> Learned:
        """The pruner as it is now, for raw features."""
        selector = self.subject.selector().to(self.accelerator.device)
        selector.mlp.load_state_dict(self._plain_mlp().state_dict())
        first = selector.mlp[0]
        if not isinstance(first, nn.Linear):
            raise AssertionError("the pruner begins with a linear layer")
        self.whitening.fold(first)
        return selector

    def spread(self) -> float:
        """Largest difference of a parameter between processes: 0 as long as they are in step."""
        flat = torch.cat([parameter.detach().flatten() for parameter in self._plain_mlp().parameters()])
        everyone: Tensor = self.accelerator.gather(flat[None])
        return float((everyone.amax(dim=0) - everyone.amin(dim=0)).max())

    def _imitate(self) -> None:
        """Begin as an imitation of the encoder's CLS attention, where it has any: a start that costs seconds.

        Cross-entropy between an image's attention, as a distribution over its tokens, and the softmax of the scores.

        Based on CoViPAL (arXiv 2508.17243), whose first stage learns attention too, a deep decoder layer's.
        """
        device = self.accelerator.device
        optimizer = torch.optim.AdamW(self._plain_mlp().parameters(), lr=IMITATION_RATE, weight_decay=0.0)
        for step in range(self.config.imitation_steps):
            rng = np.random.default_rng([self.config.seed, step, 1])
            encoded = self.train_on.get(rng.integers(len(self.train_on), size=IMITATION_BATCH).tolist())
            guides = [one.attention for one in encoded if one.attention is not None]
            if not guides:
                return
            wanted = torch.cat(guides).to(device)
            logits: Tensor = self._plain_mlp()(self.whitening(visual_tokens(encoded, device).features))
            scores = F.log_softmax(logits[..., 1] - logits[..., 0], dim=-1)
            loss = -(wanted / wanted.sum(dim=-1, keepdim=True) * scores).sum(dim=-1).mean()
            for group in optimizer.param_groups:
                group["lr"] = IMITATION_RATE * learning_rate_factor(step, self.config.imitation_steps)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            self.report("imitating CLS attention", step + 1, self.config.imitation_steps)
        # Each process has imitated on images of its own; all go on from the first one's result.
        for parameter in self._plain_mlp().parameters():
            parameter.data = broadcast(parameter.data)

    def _step(self, step: int) -> dict[str, float]:
        """One update; returns what it measured."""
        config, device = self.config, self.accelerator.device
        shared = np.random.default_rng([config.seed, step])
        keep = self._budget(shared)
        rng = np.random.default_rng([config.seed, step, self.accelerator.process_index])
        count = max(1, config.batch // self.accelerator.num_processes)
        numbers = rng.integers(len(self.train_on), size=count).tolist()
        encoded = self.train_on.get(numbers)
        tokens = visual_tokens(encoded, device)
        teacher = torch.cat([one.states for one in encoded]).to(device).float()

        logits = self._logits(tokens)
        if config.mask == "top_k":
            policy = soft_top_k(logits[..., 1] - logits[..., 0], keep)
        else:
            policy = straight_through(logits)
        there = _participants(policy.detach(), config.dropped, rng)
        taking_part = tokens.keep(there)
        packed = self.train_on.pack(numbers, taking_part.indices)
        visual = self.train_on.encoder.in_decoder_space(taking_part)
        states = answer_states(self.adapter, packed, visual, policy.gather(1, there))
        answers = F.log_softmax(self.adapter.head(states), dim=-1)
        with torch.no_grad():
            wanted = F.log_softmax(self.adapter.head(teacher), dim=-1)
        lm = F.nll_loss(answers, packed.targets)
        kl = F.kl_div(answers, wanted, reduction="batchmean", log_target=True)
        budget = (policy.mean(dim=-1) - keep / self.tokens).square().mean()
        loss = config.lm_weight * lm + config.kl_weight * kl + config.budget_weight * budget
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.mlp.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        measured = {"loss": loss, "lm": lm, "kl": kl, "budget": budget, "kept_ratio": policy.mean()}
        return {name: float(value.detach()) for name, value in measured.items()}

    def _logits(self, tokens: VisualTokens) -> Tensor:
        """What the pruner says of tokens as training has them, (rows, N, 2); padding is dropped before all others."""
        logits: Tensor = self.mlp(self.whitening(tokens.features))
        if tokens.padding is None:
            return logits
        lowest = (logits[..., 1] - logits[..., 0]).detach().amin().clamp(max=0.0)
        dropped = torch.stack([torch.zeros_like(lowest), lowest - BELOW])
        return torch.where(tokens.padding.unsqueeze(-1), dropped, logits)

    def _budget(self, rng: np.random.Generator) -> int:
        keep, (low, high) = self.subject.keep, self.config.budgets
        if self.config.mask == "straight_through":
            return keep
        drawn = keep * math.exp(rng.uniform(math.log(low), math.log(high)))
        return min(max(1, round(drawn)), self.tokens)

    def _row(self, step: int, means: dict[str, float], rate: float, spent: float) -> Row:
        names = sorted(means)
        local = torch.tensor([means[name] for name in names], device=self.accelerator.device)
        everywhere = self.accelerator.reduce(local, reduction="mean")
        return {
            "step": step,
            "seconds": round(spent + time.monotonic() - self.began, 1),
            "learning_rate": rate,
            "validation_accuracy": self._accuracy(self.selector(), self.subject.keep),
            "unpruned_accuracy": self.unpruned,
            **dict(zip(names, everywhere.tolist(), strict=True)),
        }

    def _accuracy(self, selector: Learned | None, keep: int) -> float:
        right = [
            right_answers(self.adapter, self.validate_on, numbers, selector, keep)
            for numbers in self.validate_on.batches()
        ]
        asked = torch.cat(right).float()
        counts = torch.stack([asked.sum(), torch.ones_like(asked).sum()])
        hits, total = self.accelerator.reduce(counts, reduction="sum").tolist()
        return float(hits / total)

    def _plain_mlp(self) -> nn.Module:
        mlp: nn.Module = self.accelerator.unwrap_model(self.mlp)
        return mlp


def _participants(policy: Tensor, dropped: int, rng: np.random.Generator) -> Tensor:
    """Places (B, K) that take part in a step: all kept tokens and `dropped` random others (at least; 0: everything).

    Every row has as many as the one that keeps most, so that they stack.
    """
    batch, tokens = policy.shape
    if not dropped:
        return torch.arange(tokens, device=policy.device).expand(batch, -1)
    count = min(tokens, int(policy.sum(dim=1).max()) + dropped)
    luck = torch.from_numpy(rng.random((batch, tokens))).to(policy.device)
    return torch.topk(luck + policy, count, dim=1).indices.sort(dim=1).values


def _fingerprint(subject: PrunerSubject, data: Data, config: PrunerTraining) -> str:
    """What makes two runs the same run."""
    asked = [[item.id, item.question, list(item.answers)] for e in (*data.train, *data.validation) for item in e.items]
    layout = str(subject.adapter.facts.layout)
    body = [subject.model_digest, layout, subject.layers, subject.keep, subject.diversity, config.model_dump(), asked]
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()
