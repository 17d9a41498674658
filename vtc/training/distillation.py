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
from vtc.training.encoded import EncodedImages, Kept, Seen
from vtc.training.frozen import frozen
from vtc.training.job import TrainingJob
from vtc.training.learning_rate import learning_rate_factor, set_relative_rate
from vtc.training.log import write_log
from vtc.training.state import Row, load_state, save_state, state_path
from vtc.training.verdict import WARNING, check_finite, learned_nothing

LOG_FIELDS = (
    "step",
    "seconds",
    "loss",
    "lm",
    "kl",
    "learning_rate",
    "validation_loss",
    "validation_kl",
    "validation_agreement",
    "validation_accuracy",
)
LOGGED = 10
"""Log rows of a run; at each one the state is saved."""


@dataclass(frozen=True)
class _Prompt:
    """A question, its number and its image's, and the token ids of its answer, the end token included."""

    number: int
    image: int
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
        models, part = _models(job)
        pair = _Pair(models, original, [*train_on, *validate_on], int(config.memory_gb * 2**30))
        log = _train(job, config, pair, part, train_on, validate_on, run)
    write_log(log_path(job.path), log, LOG_FIELDS)
    last = {name: log[-1][name] for name in ("validation_kl", "validation_agreement", "validation_accuracy")}
    facts = {**config.model_dump(mode="json"), **last, "run": run, "data": job.source, "questions": len(train_on)}
    warning = learned_nothing(log, part.noun, "loss", "validation_loss", log[0]["untrained_loss"])
    facts |= {WARNING: warning} if warning else {}
    save_trained(job.path, part, job.model_digest, facts)
    state_path(job.path).unlink(missing_ok=True)


def _models(job: TrainingJob) -> tuple[list[CompressedModel], TrainedPart]:
    """The model with the stages up to the one that is trained, at each of its budgets; and that one's part.

    The part alone can change, and is one and the same in all.
    """
    recipe = job.recipe.model_copy(update={"stages": job.recipe.stages[: job.number + 1]})
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


class _Pair:
    """The compressed model, at one budget or several, and the original; images are encoded once as memory allows.

    So long as there is memory, the original answers each question once, too.
    """

    def __init__(
        self, models: Sequence[CompressedModel], original: CompressedModel, prompts: Sequence[_Prompt], memory: int
    ) -> None:
        items = {prompt.image: prompt.item for prompt in prompts}
        weights = next(original.embed_tokens.parameters())

        def pixels(numbers: Sequence[int]) -> Tensor:
            return original.adapter.preprocess([items[number].load() for number in numbers]).to(weights)

        ours, theirs = models[0].vision, original.vision
        images = EncodedImages(ours, pixels, memory // 2)
        same = ours.layers == theirs.layers
        for model in models:
            model.vision = Seen(images, model.vision)
        original.vision = Seen(images if same else EncodedImages(theirs, pixels, memory // 4), theirs)
        self.models = models
        numbered = {prompt.number: prompt for prompt in prompts}

        @torch.no_grad()
        def said(numbers: Sequence[int]) -> list[Tensor]:
            asked = [numbered[number] for number in numbers]
            return [own.clone() for own in _by_prompt(_answers(original, asked), asked)]

        self._said = Kept(said, lambda own: own.nbytes, memory // 4)

    def wanted(self, prompts: Sequence[_Prompt]) -> Tensor:
        """What the original says at each of the T tokens of all answers, log probabilities (T, V)."""
        return torch.cat(self._said.get([prompt.number for prompt in prompts]))


def _train(
    job: TrainingJob,
    config: DistillationTraining,
    pair: _Pair,
    part: TrainedPart,
    train_on: Sequence[_Prompt],
    validate_on: Sequence[_Prompt],
    run: str,
) -> list[Row]:
    """All steps that are still to be done; returns the whole log."""
    optimizer = torch.optim.AdamW([{"params": [own]} for own in part.parameters()], weight_decay=0.0)
    done, log = load_state(state_path(job.path), part, optimizer, run)
    spent, began = (log[-1]["seconds"] if log else 0.0), time.monotonic()
    every = max(1, config.steps // LOGGED)
    untrained = log[0]["untrained_loss"] if log else _validate(pair, validate_on, config)["validation_loss"]
    sums: dict[str, float] = {}
    for step in range(done, config.steps):
        rng = np.random.default_rng([config.seed, step])
        batch = [train_on[number] for number in rng.integers(len(train_on), size=config.batch)]
        rate = config.learning_rate * learning_rate_factor(step, config.steps)
        set_relative_rate(optimizer, rate)
        model = pair.models[int(rng.integers(len(pair.models)))]
        learner = trained_part(model.vision)
        assert learner is not None
        learner.train().prepare(config, step / config.steps)
        wanted, ours = pair.wanted(batch), _answers(model, batch)
        targets = _targets(batch).to(ours.device)
        lm, kl = F.nll_loss(ours, targets), F.kl_div(ours, wanted, reduction="batchmean", log_target=True)
        loss = config.lm_weight * lm + config.kl_weight * kl
        if (penalty := learner.eval().penalty()) is not None:
            loss = loss + penalty
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for name, value in (("loss", loss), ("lm", lm), ("kl", kl)):
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        job.report(f"training the {job.entry.stem}", step + 1, config.steps)
        if (step + 1) % every == 0 or step + 1 == config.steps:
            since = step + 1 - (int(log[-1]["step"]) if log else 0)
            row = {"step": step + 1.0, "seconds": round(spent + time.monotonic() - began, 1), "learning_rate": rate}
            row |= {name: total / since for name, total in sums.items()}
            log.append(row | _validate(pair, validate_on, config))
            check_finite(log[-1], part.noun)
            log[-1]["untrained_loss"] = untrained
            sums = {}
            save_state(state_path(job.path), part, optimizer, step + 1, log, run)
    return log


@torch.no_grad()
def _validate(pair: _Pair, prompts: Sequence[_Prompt], config: DistillationTraining) -> Row:
    """Over all tokens of answers the loss, the KL divergence, and how often both models say the same.

    And the share of answers that the compressed model gives, token by token to their end. Budgets take turns.
    """
    divergences, losses, same, right = [], [], [], []
    for turn, first in enumerate(range(0, len(prompts), config.batch)):
        some = prompts[first : first + config.batch]
        ours, theirs = _answers(pair.models[turn % len(pair.models)], some), pair.wanted(some)
        divergences.append(F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1))
        said, targets = ours.argmax(dim=-1), _targets(some).to(ours.device)
        losses.append(F.nll_loss(ours, targets, reduction="none"))
        same.append((said == theirs.argmax(dim=-1)).float())
        right += [bool(hit.all()) for hit in _by_prompt(said == targets, some)]
    lm, kl = (float(torch.cat(values).mean()) for values in (losses, divergences))
    return {
        "validation_loss": config.lm_weight * lm + config.kl_weight * kl,
        "validation_kl": kl,
        "validation_agreement": float(torch.cat(same).mean()),
        "validation_accuracy": float(np.mean(right)),
    }


def _answers(model: CompressedModel, prompts: Sequence[_Prompt]) -> Tensor:
    """Log probabilities (T, V) of the next token at each of the T tokens of all answers.

    Parameters
    ----------
    model : CompressedModel
        Whose vision module takes numbers of images.
    prompts : sequence of _Prompt
    """
    device = next(model.embed_tokens.parameters()).device
    asked = [model.adapter.chat(prompt.item.question) for prompt in prompts]
    ids, mask = model.adapter.tokenize(asked, [1] * len(asked), model.keep_per_span)
    images = torch.tensor([[prompt.image] for prompt in prompts])
    encoded = model.encode(model.embed_tokens(ids.to(device)), ids.numpy(), mask.numpy(), images)
    rows = [
        [*row[real.bool()].tolist(), *prompt.answer[:-1]] for row, real, prompt in zip(ids, mask, prompts, strict=True)
    ]
    longest = max(map(len, rows))
    padded = [[model.adapter.pad_token_id] * (longest - len(row)) + row for row in rows]
    real = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    given = torch.tensor(padded, device=device), torch.tensor(real, device=device)
    most = max(len(prompt.answer) for prompt in prompts)
    answered = [len(prompt.answer) - 1 for prompt in prompts]
    logits, _ = model.prefill(*given, None, encoded=encoded, wanted=most, answered=answered)
    own = [row[most - len(prompt.answer) :] for row, prompt in zip(logits, prompts, strict=True)]
    return F.log_softmax(torch.cat(own).float(), dim=-1)


def _by_prompt(values: Tensor, prompts: Sequence[_Prompt]) -> Sequence[Tensor]:
    """Values (T, ...) at the tokens of all answers, those of each answer by themselves."""
    return torch.split(values, [len(prompt.answer) for prompt in prompts])


def _targets(prompts: Sequence[_Prompt]) -> Tensor:
    """The T tokens of all answers."""
    return torch.tensor([token for prompt in prompts for token in prompt.answer])


def _prompts(job: TrainingJob, config: DistillationTraining) -> tuple[list[_Prompt], list[_Prompt]]:
    """Questions to train on, and others, about other images, to check on; at random, as files are often sorted."""
    items = load_dataset(job.source, config.questions + config.validation, config.seed, split="train").items
    answers = job.adapter.tokenizer([item.answers[0] for item in items], add_special_tokens=False)["input_ids"]
    end = job.adapter.eos_token_ids[:1]
    images = {image: number for number, image in enumerate(dict.fromkeys(item.image_id for item in items))}
    prompts = [
        _Prompt(number, images[item.image_id], item, (*answer, *end))
        for number, (item, answer) in enumerate(zip(items, answers, strict=True))
    ]
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
