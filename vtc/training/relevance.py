"""Train a relevance network on a frozen model: from how the first layer attends to what mattered in the end.

The labels and what is known of the paper (Lei et al. 2025, arXiv 2506.01097) are in :mod:`vtc.training.explanations`.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from vtc.progress import Report, silent
from vtc.recipe.selectors.decoder.relevance import RelevanceTraining
from vtc.selectors.base import top_k
from vtc.selectors.decoder.relevance import Relevance
from vtc.selectors.trained import log_path, read_metadata, save_trained
from vtc.training.examples import Data
from vtc.training.explanations import Explained, Explainer, RelevanceSubject
from vtc.training.frozen import frozen
from vtc.training.learning_rate import learning_rate_factor
from vtc.training.log import write_log
from vtc.training.state import Row, load_state, save_state, state_path
from vtc.training.verdict import WARNING, check_finite, learned_nothing

LOG_FIELDS = ("epoch", "seconds", "kl", "learning_rate", "validation_kl", "validation_overlap")
OVERLAP = 0.25
"""Share of the tokens of which validation counts how many the network and the label have in common."""


def train_relevance(
    subject: RelevanceSubject, data: Data, config: RelevanceTraining, path: Path, source: str, report: Report = silent
) -> None:
    """Train, or go on training, a relevance network; of several processes one does the work.

    Parameters
    ----------
    subject : RelevanceSubject
    data : Data
    config : RelevanceTraining
    path : Path
        The network's file. The log goes beside it, and so do, under hidden names, the explanations and the state of
        the run. Those of the same run are taken up, a finished network of it is left as it is.
    source : str
        What the data are called.
    report : callable
    """
    fingerprint = _fingerprint(subject, data, config)
    if read_metadata(path).get("run") == fingerprint:
        return
    accelerator = Accelerator()
    if accelerator.is_main_process:
        notes = {name: path.with_name(f".{path.stem}-{name}.safetensors") for name in ("training", "validation")}
        with frozen(subject.adapter, "eager", accelerator.device):
            explainer = Explainer(subject, data.beginning, config, fingerprint, report)
            train_on = explainer(data.train, notes["training"], "training")
            validate_on = explainer(data.validation, notes["validation"], "validation")
            network, log = fit(subject, train_on, validate_on, config, state_path(path), fingerprint, report)
        write_log(log_path(path), log, LOG_FIELDS)
        facts = {
            "run": fingerprint,
            "data": source,
            "images": len(data.train),
            "training_questions": len(train_on) // subject.adapter.facts.layout.spans,
            "validation_images": len(data.validation),
            "validation_kl": log[-1]["validation_kl"],
            "validation_overlap": log[-1]["validation_overlap"],
            **config.model_dump(mode="json", exclude={"images"}),
        }
        warning = learned_nothing(log, network.noun, "kl", "validation_kl", log[0]["untrained_kl"])
        facts |= {WARNING: warning} if warning else {}
        save_trained(path, network, subject.model_digest, facts)
        for note in (*notes.values(), state_path(path)):
            note.unlink(missing_ok=True)
    accelerator.wait_for_everyone()


def fit(
    subject: RelevanceSubject,
    train_on: Explained,
    validate_on: Explained,
    config: RelevanceTraining,
    state: Path,
    fingerprint: str,
    report: Report = silent,
) -> tuple[Relevance, list[Row]]:
    """Draw a new network's softmax to labels.

    Parameters
    ----------
    subject : RelevanceSubject
    train_on, validate_on : Explained
    config : RelevanceTraining
    state : Path
        Where the state of the run is kept, one file.
    fingerprint : str
        What makes it the same run.
    report : callable

    Returns
    -------
    Relevance
    list of rows
        The log, a row an epoch.
    """
    device = subject.adapter.model.device
    torch.manual_seed(config.seed)
    network = subject.network().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    epochs, log = load_state(state, network, optimizer, fingerprint)
    spent, began = (log[-1]["seconds"] if log else 0.0), time.monotonic()
    batches = -(-len(train_on) // config.batch)
    before = log[0] if log else {"untrained_kl": validate(network, validate_on, config.batch)["validation_kl"]}
    words = "training the relevance network"
    for epoch in range(epochs, config.epochs):
        order = torch.from_numpy(np.random.default_rng([config.seed, epoch]).permutation(len(train_on)))
        total = rate = 0.0
        for number, chosen in enumerate(torch.split(order, config.batch)):
            step = epoch * batches + number
            rate = config.learning_rate * learning_rate_factor(step, config.epochs * batches)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = _kl(network, train_on.rows[chosen].to(device), train_on.labels[chosen].to(device)).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(loss.detach()) * len(chosen)
            report(words, step + 1, config.epochs * batches)
        row = {"epoch": epoch + 1.0, "seconds": round(spent + time.monotonic() - began, 1), "learning_rate": rate}
        log.append(row | {"kl": total / len(train_on)} | validate(network, validate_on, config.batch))
        check_finite(log[-1], network.noun)
        log[-1]["untrained_kl"] = before["untrained_kl"]
        words = f"training the relevance network (KL {log[-1]['kl']:.3f}, validation {log[-1]['validation_kl']:.3f})"
        save_state(state, network, optimizer, epoch + 1, log, fingerprint)
    return network, log


@torch.no_grad()
def validate(network: Relevance, explained: Explained, batch: int) -> Row:
    """KL divergence from labels to a network's softmax, and how many of the best tokens they have in common.

    Returns
    -------
    dict
        ``validation_kl`` in nats; ``validation_overlap``, of the share `OVERLAP` of the tokens that each ranks first.
    """
    device = next(network.parameters()).device
    keep = max(1, round(OVERLAP * explained.rows.shape[1]))
    divergences, common = [], []
    for rows, labels in zip(torch.split(explained.rows, batch), torch.split(explained.labels, batch), strict=True):
        rows, labels = rows.to(device), labels.to(device)
        divergences.append(_kl(network, rows, labels))
        found, wanted = top_k(network.logits(rows), keep), top_k(labels, keep)
        common.append((found.unsqueeze(2) == wanted.unsqueeze(1)).any(dim=2).float().mean(dim=1))
    return {
        "validation_kl": float(torch.cat(divergences).mean()),
        "validation_overlap": float(torch.cat(common).mean()),
    }


def _kl(network: Relevance, rows: Tensor, labels: Tensor) -> Tensor:
    """KL divergence (M,) of a network's softmax from labels (M, N)."""
    return F.kl_div(network.logits(rows).log_softmax(dim=-1), labels, reduction="none").sum(dim=-1)


def _fingerprint(subject: RelevanceSubject, data: Data, config: RelevanceTraining) -> str:
    """What makes two runs the same run."""
    asked = [[item.id, item.question] for e in (*data.train, *data.validation) for item in e.items]
    layout = str(subject.adapter.facts.layout)
    body = [subject.model_digest, layout, subject.after, subject.before, config.model_dump(), asked]
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()
