"""Train any part by distillation: the compressed model's next token is to be the original's.

For a question about an image and the first tokens of its answer, cut at a random length, the original model says which
token is likely next. The part learns to let the compressed model say the same (KL divergence). Both run as they run
later: nothing here knows a family, a kind of stage or a layout of images.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vtc.artifact import sha256
from vtc.compressed.build import apply_recipe, assemble, build_modules
from vtc.compressed.model import CompressedModel
from vtc.data.datasets import Item, load_dataset
from vtc.errors import InputError
from vtc.plan import plan
from vtc.recipe import Recipe
from vtc.recipe.training import DistillationTraining
from vtc.selectors.trained import TrainedPart, log_path, read_metadata, save_trained, trained_part
from vtc.training.frozen import frozen
from vtc.training.job import TrainingJob
from vtc.training.learning_rate import learning_rate_factor
from vtc.training.log import write_log
from vtc.training.state import Row, load_state, save_state, state_path
from vtc.training.verdict import WARNING, check_finite, learned_nothing

LOG_FIELDS = ("step", "seconds", "kl", "learning_rate", "validation_kl", "validation_agreement")
LOGGED = 10
"""Log rows of a run; at each one the state is saved."""


@dataclass(frozen=True)
class _Prompt:
    """A question with the token ids of its answer, the end token included."""

    item: Item
    answer: tuple[int, ...]


def train_by_distillation(job: TrainingJob) -> None:
    """Train, or go on training, the part of a stage whose ``training`` is a :class:`DistillationTraining`.

    Parameters
    ----------
    job : TrainingJob
        Its stage and those before it make up the compressed model; later stages are left out.

    Raises
    ------
    InputError
        If there are too few questions to train on some and check on others.
    """
    config: DistillationTraining = job.entry.training or DistillationTraining()
    train_on, validate_on = _prompts(job, config)
    run = _fingerprint(job, config, [*train_on, *validate_on])
    if read_metadata(job.path).get("run") == run:
        return
    with frozen(job.adapter, "grouped", job.adapter.model.device):
        original = apply_recipe(job.adapter, Recipe(version=1, name="none", stages=()))
        torch.manual_seed(config.seed)
        model, part = _model(job)
        log = _train(job, config, model, original, part, train_on, validate_on, run)
    write_log(log_path(job.path), log, LOG_FIELDS)
    last = {name: log[-1][name] for name in ("validation_kl", "validation_agreement")}
    facts = {**config.model_dump(mode="json"), **last, "run": run, "data": job.source, "questions": len(train_on)}
    warning = learned_nothing(log, part.noun, "kl", "validation_kl", log[0]["untrained_kl"])
    facts |= {WARNING: warning} if warning else {}
    save_trained(job.path, part, job.model_digest, facts)
    state_path(job.path).unlink(missing_ok=True)


def _model(job: TrainingJob) -> tuple[CompressedModel, TrainedPart]:
    """The model with the stages up to the one that is trained, and that one's part, which alone can change."""
    recipe = job.recipe.model_copy(update={"stages": job.recipe.stages[: job.number + 1]})
    token_plan = plan(recipe, job.adapter.facts)
    modules = build_modules(job.adapter, recipe, token_plan, job.model_digest, empty=(job.number,))
    model = assemble(job.adapter, token_plan, modules)
    part = trained_part(modules[job.number])
    if part is None:
        raise AssertionError("a stage that is trained has a trained part")
    part.requires_grad_(True)
    return model, part


def _train(
    job: TrainingJob,
    config: DistillationTraining,
    model: CompressedModel,
    original: CompressedModel,
    part: TrainedPart,
    train_on: Sequence[_Prompt],
    validate_on: Sequence[_Prompt],
    run: str,
) -> list[Row]:
    """All steps that are still to be done; returns the whole log."""
    optimizer = torch.optim.AdamW(part.parameters(), lr=config.learning_rate, weight_decay=0.0)
    done, log = load_state(state_path(job.path), part, optimizer, run)
    spent, began = (log[-1]["seconds"] if log else 0.0), time.monotonic()
    every = max(1, config.steps // LOGGED)
    before = log[0] if log else {"untrained_kl": _validate(model, original, validate_on, config.batch)["validation_kl"]}
    losses: list[float] = []
    for step in range(done, config.steps):
        rng = np.random.default_rng([config.seed, step])
        batch = [train_on[number] for number in rng.integers(len(train_on), size=config.batch)]
        lengths = [int(rng.integers(len(prompt.answer))) for prompt in batch]
        rate = config.learning_rate * learning_rate_factor(step, config.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.no_grad():
            wanted = _next_token(original, batch, lengths)
        loss = F.kl_div(_next_token(model, batch, lengths), wanted, reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
        job.report(f"training the {job.entry.stem}", step + 1, config.steps)
        if (step + 1) % every == 0 or step + 1 == config.steps:
            row = {"step": step + 1.0, "seconds": round(spent + time.monotonic() - began, 1), "learning_rate": rate}
            log.append(row | {"kl": float(np.mean(losses))} | _validate(model, original, validate_on, config.batch))
            check_finite(log[-1], part.noun)
            log[-1]["untrained_kl"] = before["untrained_kl"]
            losses = []
            save_state(state_path(job.path), part, optimizer, step + 1, log, run)
    return log


@torch.no_grad()
def _validate(model: CompressedModel, original: CompressedModel, prompts: Sequence[_Prompt], batch: int) -> Row:
    """Mean KL divergence at the first token of each answer, and how often both find the same token most likely."""
    divergences, same = [], []
    for first in range(0, len(prompts), batch):
        some = prompts[first : first + batch]
        lengths = [0] * len(some)
        ours, theirs = (_next_token(one, some, lengths) for one in (model, original))
        divergences.append(F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1))
        same.append((ours.argmax(dim=-1) == theirs.argmax(dim=-1)).float())
    return {
        "validation_kl": float(torch.cat(divergences).mean()),
        "validation_agreement": float(torch.cat(same).mean()),
    }


def _next_token(model: CompressedModel, prompts: Sequence[_Prompt], lengths: Sequence[int]) -> Tensor:
    """Log probabilities (B, V) of the token that follows each prompt and the first tokens of its answer."""
    images = [[prompt.item.load()] for prompt in prompts]
    ids, mask, pixels = model.inputs(images, [model.adapter.chat(prompt.item.question) for prompt in prompts])
    rows = [
        [*row[real.bool()].tolist(), *prompt.answer[:length]]
        for row, real, prompt, length in zip(ids, mask, prompts, lengths, strict=True)
    ]
    longest = max(map(len, rows))
    padded = [[model.adapter.pad_token_id] * (longest - len(row)) + row for row in rows]
    real = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    logits, _ = model.prefill(torch.tensor(padded, device=ids.device), torch.tensor(real, device=ids.device), pixels)
    return F.log_softmax(logits[:, -1].float(), dim=-1)


def _prompts(job: TrainingJob, config: DistillationTraining) -> tuple[list[_Prompt], list[_Prompt]]:
    """Questions to train on, and others, about other images, to check on; at random, as files are often sorted."""
    items = load_dataset(job.source, config.questions + config.validation, config.seed, split="train").items
    answers = job.adapter.tokenizer([item.answers[0] for item in items], add_special_tokens=False)["input_ids"]
    end = job.adapter.eos_token_ids[:1]
    prompts = [_Prompt(item, (*answer, *end)) for item, answer in zip(items, answers, strict=True)]
    order = np.random.default_rng(config.seed).permutation(len(prompts))
    drawn = [prompts[number] for number in order]
    check_on = drawn[: max(1, min(config.validation, len(drawn) // 2))]
    seen = {prompt.item.image_id for prompt in check_on}
    train_on = [prompt for prompt in drawn if prompt.item.image_id not in seen]
    if not train_on:
        raise InputError(f"{job.source}: a part is trained on some images and checked on others; give at least two")
    return train_on, check_on


def _fingerprint(job: TrainingJob, config: DistillationTraining, prompts: Sequence[_Prompt]) -> str:
    """What makes two runs the same run."""
    stages = job.recipe.canonical()["stages"][: job.number + 1]
    asked = [[prompt.item.id, prompt.item.question, prompt.answer] for prompt in prompts]
    parts = [sha256(job.recipe.checkpoint(number)) for number, *_ in job.recipe.trained() if number < job.number]
    body = [job.model_digest, stages, parts, config.model_dump(), asked]
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()
