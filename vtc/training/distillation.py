"""Train any part by distillation: the compressed model is to say what the original says, and what the answers are.

At each token of a question's answer the original model says which is likely next. The part learns to let the compressed
model say the same (KL divergence), and the answer itself (cross-entropy). Both run as they run later: nothing here
knows a family, a kind of stage or a layout of images, and what looks at the question sees it without its answer.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from vtc.artifact import sha256
from vtc.compressed.build import apply_recipe, assemble, build_modules
from vtc.compressed.model import CompressedModel
from vtc.errors import InputError
from vtc.plan import plan
from vtc.progress import silent
from vtc.recipe import NONE
from vtc.recipe.training import DistillationTraining
from vtc.selectors.trained import TrainedPart, log_path, read_metadata, save_trained, trained_part
from vtc.training.answers import Pair, Prompt, answers, by_prompt, load_prompts, targets
from vtc.training.frozen import frozen
from vtc.training.job import TrainingJob
from vtc.training.learning_rate import learning_rate_factor, set_relative_rate
from vtc.training.log import write_log
from vtc.training.state import Row, load_state, save_state, state_path
from vtc.training.verdict import WARNING, check_finite, learned_nothing

MEASURED = ("loss", "lm", "kl")
LOG_FIELDS = (
    "step",
    "seconds",
    *MEASURED,
    "learning_rate",
    "validation_loss",
    "validation_kl",
    "validation_agreement",
    "validation_accuracy",
)
LOGGED = 10
"""Log rows of a run; at each one the state is saved."""


def train_by_distillation(job: TrainingJob) -> None:
    """Train, or go on training, the part of a stage whose ``training`` is a :class:`DistillationTraining`.

    Parameters
    ----------
    job : TrainingJob
        Its stage and those before it make up the compressed model; later stages are left out.

    Raises
    ------
    InputError
        If there are too few questions to train on some and check on others, or a batch has fewer than there are
        processes.
    """
    config: DistillationTraining = job.entry.training or DistillationTraining()
    train_on, validate_on = load_prompts(job, config)
    run = _fingerprint(job, config, [*train_on, *validate_on])
    if read_metadata(job.path).get("run") == run:
        return
    accelerator = Accelerator()
    processes = accelerator.num_processes
    if config.batch < processes:
        raise InputError(f"a batch of {config.batch} questions cannot be shared by {processes} processes; start fewer")
    device = accelerator.device if processes > 1 else job.adapter.model.device
    job = job if accelerator.is_main_process else replace(job, report=silent)
    with frozen(job.adapter, "grouped", device):
        original = apply_recipe(job.adapter, NONE)
        torch.manual_seed(config.seed)
        models, part = _models(job)
        memory = int(config.memory_gb * 2**30) // processes
        pair = Pair(models, original, [*train_on, *validate_on], memory)
        log = _train(job, config, pair, part, train_on, validate_on, run, accelerator)
    if accelerator.is_main_process:
        write_log(log_path(job.path), log, LOG_FIELDS)
        last = {name: log[-1][name] for name in ("validation_kl", "validation_agreement", "validation_accuracy")}
        trained_as = {"run": run, "data": job.source, "questions": len(train_on), "processes": processes}
        facts = {**config.model_dump(mode="json"), **last, **trained_as}
        warning = learned_nothing(log, part.noun, "loss", "validation_loss", log[0]["untrained_loss"])
        facts |= {WARNING: warning} if warning else {}
        save_trained(job.path, part, job.model_digest, facts)
        state_path(job.path).unlink(missing_ok=True)
    accelerator.wait_for_everyone()


def _models(job: TrainingJob) -> tuple[list[CompressedModel], TrainedPart]:
    """The model with the stages up to the one that is trained, at each of its budgets; and that one's part.

    The part alone can change, and is one and the same in all.
    """
    recipe = job.recipe.first(job.number + 1)
    at = [*(recipe.at_budget(keep) for keep in recipe.budgets[:-1]), recipe]  # with several, planned at the largest
    models, parts = [], []
    for one in at:
        token_plan = plan(one, job.adapter.facts)
        modules = build_modules(job.adapter, one, token_plan, job.model_digest, empty=(job.number,))
        models.append(assemble(job.adapter, token_plan, modules))
        part = trained_part(modules[job.number])
        if part is None:
            raise AssertionError("a stage that is trained has a trained part")
        parts.append(part.requires_grad_(True))
    for other in parts[:-1]:
        other.load_state_dict(parts[-1].state_dict(keep_vars=True), assign=True)
    return models, parts[-1]


def _train(
    job: TrainingJob,
    config: DistillationTraining,
    pair: Pair,
    part: TrainedPart,
    train_on: Sequence[Prompt],
    validate_on: Sequence[Prompt],
    run: str,
    accelerator: Accelerator,
) -> list[Row]:
    """All steps that are still to be done; returns the whole log.

    Processes share each batch, so that several do what one does.
    """
    optimizer = torch.optim.AdamW([{"params": [own]} for own in part.parameters()], weight_decay=0.0)
    done, log = load_state(state_path(job.path), part, optimizer, run)
    spent, began = (log[-1]["seconds"] if log else 0.0), time.monotonic()
    every = max(1, config.steps // LOGGED)
    untrained = (
        log[0]["untrained_loss"] if log else _validate(pair, validate_on, config, accelerator)["validation_loss"]
    )
    sums = torch.zeros(len(MEASURED), device=pair.device)
    for step in range(done, config.steps):
        rng = np.random.default_rng([config.seed, step])
        batch = [train_on[number] for number in rng.integers(len(train_on), size=config.batch)]
        rate = config.learning_rate * learning_rate_factor(step, config.steps)
        set_relative_rate(optimizer, rate)
        model = pair.models[int(rng.integers(len(pair.models)))]
        optimizer.zero_grad()
        sums += _backward(pair, model, batch, config, step, accelerator)
        _add_up_gradients(part, accelerator)
        optimizer.step()
        job.report(f"training the {job.entry.stem}", step + 1, config.steps)
        if (step + 1) % every == 0 or step + 1 == config.steps:
            since = step + 1 - (int(log[-1]["step"]) if log else 0)
            row = {"step": step + 1.0, "seconds": round(spent + time.monotonic() - began, 1), "learning_rate": rate}
            row |= dict(zip(MEASURED, (accelerator.reduce(sums) / since).tolist(), strict=True))
            log.append(row | _validate(pair, validate_on, config, accelerator))
            check_finite(log[-1], part.noun)
            log[-1]["untrained_loss"] = untrained
            sums.zero_()
            if accelerator.is_main_process:
                save_state(state_path(job.path), part, optimizer, step + 1, log, run)
    return log


def _backward(
    pair: Pair,
    model: CompressedModel,
    batch: Sequence[Prompt],
    config: DistillationTraining,
    step: int,
    accelerator: Accelerator,
) -> Tensor:
    """Add the gradients of this process's share of a batch; returns its share of what is `MEASURED`."""
    learner = trained_part(model.vision)
    if learner is None:
        raise AssertionError("what is trained is before the decoder")
    own = batch[accelerator.process_index :: accelerator.num_processes]
    tokens = sum(len(prompt.answer) for prompt in batch)
    learner.train().prepare(config, step / config.steps)
    wanted, ours = pair.wanted(own), answers(model, own)
    penalty = learner.eval().penalty()
    lm = F.nll_loss(ours, targets(own).to(ours.device), reduction="sum") / tokens
    kl = F.kl_div(ours, wanted, reduction="sum", log_target=True) / tokens
    loss = config.lm_weight * lm + config.kl_weight * kl
    if penalty is not None:
        loss = loss + penalty / accelerator.num_processes
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.stack([loss, lm, kl]).detach()


def _add_up_gradients(part: TrainedPart, accelerator: Accelerator) -> None:
    """Give every process the gradients of all."""
    if accelerator.num_processes == 1:
        return
    gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
    flat = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, whole in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(whole.view_as(gradient))


@torch.no_grad()
def _validate(pair: Pair, prompts: Sequence[Prompt], config: DistillationTraining, accelerator: Accelerator) -> Row:
    """Over all tokens of answers the loss, the KL divergence, and how often both models say the same.

    And the share of answers that the compressed model gives, token by token to their end. Budgets take turns.
    """
    sums = torch.zeros(6, dtype=torch.float64, device=pair.device)
    for turn, first in enumerate(range(0, len(prompts), config.batch)):
        if turn % accelerator.num_processes != accelerator.process_index:
            continue
        some = prompts[first : first + config.batch]
        ours, theirs = answers(pair.models[turn % len(pair.models)], some), pair.wanted(some)
        wanted = targets(some).to(ours.device)
        said = ours.argmax(dim=-1)
        right = [hit.all() for hit in by_prompt(said == wanted, some)]
        of_tokens = (
            F.nll_loss(ours, wanted, reduction="none"),
            F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1),
            said == theirs.argmax(dim=-1),
            torch.ones_like(wanted),
        )
        own = [*(values.double().sum() for values in of_tokens), torch.stack(right).double().sum()]
        sums += torch.stack([*own, own[0].new_tensor(len(some))])
    lm, kl, same, tokens, hits, asked = accelerator.reduce(sums).tolist()
    return {
        "validation_loss": (config.lm_weight * lm + config.kl_weight * kl) / tokens,
        "validation_kl": kl / tokens,
        "validation_agreement": same / tokens,
        "validation_accuracy": hits / asked,
    }


def _fingerprint(job: TrainingJob, config: DistillationTraining, prompts: Sequence[Prompt]) -> str:
    """What makes two runs the same run."""
    stages = job.recipe.canonical()["stages"][: job.number + 1]
    asked = [[prompt.item.id, prompt.item.question, prompt.answer] for prompt in prompts]
    parts = [sha256(job.recipe.checkpoint(number)) for number, *_ in job.recipe.trained() if number < job.number]
    body = [job.model_digest, stages, parts, config.model_dump(), asked]
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()
