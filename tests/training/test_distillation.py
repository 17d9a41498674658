"""Training by distillation, of a kind of stage that it has never heard of."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.tiny import RECIPES, compressed, recipe
from tests.training.conftest import QUESTIONS
from vtc.errors import InputError
from vtc.models import load_adapter
from vtc.models.base import VLMAdapter
from vtc.models.random.tiny_families import write_tiny
from vtc.plan.stages import NUMBERS, Numbers
from vtc.plan.state import Step
from vtc.recipe import Recipe
from vtc.recipe.stages import Place, StageEntry
from vtc.recipe.trained import Trained
from vtc.recipe.training import DistillationTraining
from vtc.selectors.trained import TrainedPart, fits, log_path, read_metadata
from vtc.stages import MODULES
from vtc.stages.base import TokenStage
from vtc.training import answers
from vtc.training.distillation import LOG_FIELDS, train_by_distillation
from vtc.training.frozen import tensors_digest
from vtc.training.job import TrainingJob, new_part
from vtc.training.state import state_path
from vtc.visual_tokens import VisualTokens

# The toy stands in no recipe's union.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")

CONFIG = DistillationTraining(steps=6, questions=100, validation=4, batch=4, learning_rate=0.1, lm_weight=0.0)
FAR = 2.0
"""Factor by which the toy stage spoils features before it is trained."""


class GainEntry(StageEntry, Trained):
    """Multiply features by a trained factor; a toy."""

    summary = "a toy"
    acts = Place.TOKENS
    stem = "gain"
    kind: Literal["gain"] = "gain"
    training: DistillationTraining | None = None


class Gain(TokenStage, TrainedPart):
    """Every second value of a feature times a factor, which no layer norm can undo."""

    noun = "gain"

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.full((1,), FAR))

    @property
    def made_for(self) -> Mapping[str, str]:
        return {}

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        odd = torch.arange(tokens.features.shape[-1]) % 2
        return replace(tokens, features=tokens.features * torch.where(odd == 1, self.factor, 1.0))


@pytest.fixture(autouse=True)
def gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the toy a kind of stage."""
    monkeypatch.setitem(NUMBERS, GainEntry, Numbers(lambda entry, state, context: Step(state, "a toy")))
    monkeypatch.setitem(MODULES, GainEntry, lambda entry, context: Gain())


def with_gain(config: DistillationTraining, before: Recipe | None = None) -> Recipe:
    """A recipe with the toy after other stages."""
    stages = () if before is None else before.stages
    return recipe().model_copy(update={"stages": (*stages, GainEntry(training=config))})


Train = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture
def train(adapter: VLMAdapter, source: Path, tmp_path: Path) -> Train:
    """Train the toy into a directory, and load what was written."""

    def run(name: str, config: DistillationTraining = CONFIG, model: VLMAdapter = adapter) -> dict[str, torch.Tensor]:
        path = tmp_path / name / "gain.safetensors"
        path.parent.mkdir(exist_ok=True)
        train_by_distillation(TrainingJob(model, "abc", with_gain(config), 0, path, str(source)))
        return load_file(path)

    return run


def log_of(directory: Path) -> list[dict[str, float]]:
    with log_path(directory / "gain.safetensors").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_the_compressed_model_comes_closer_to_the_original(train: Train, tmp_path: Path) -> None:
    train("long", CONFIG.model_copy(update={"steps": 60}))
    log = log_of(tmp_path / "long")
    assert log[-1]["validation_kl"] < 0.1 * log[0]["validation_kl"]
    assert log[-1]["kl"] < 0.5 * log[0]["kl"]
    assert log[-1]["validation_agreement"] >= log[0]["validation_agreement"]


def test_trains_the_part_and_nothing_else(train: Train, adapter: VLMAdapter) -> None:
    before = tensors_digest(adapter.model)
    first = train("a")
    assert tensors_digest(adapter.model) == before
    assert not any(parameter.requires_grad for parameter in adapter.model.parameters())
    assert first.keys() == {"factor"}
    assert bool((first["factor"] != FAR).any())
    assert torch.equal(first["factor"], train("b")["factor"])
    assert not torch.equal(first["factor"], train("c", CONFIG.model_copy(update={"seed": 1}))["factor"])


def test_file_and_log_say_how_it_was_trained(train: Train, adapter: VLMAdapter, tmp_path: Path, source: Path) -> None:
    train("a")
    path = tmp_path / "a" / "gain.safetensors"
    metadata = read_metadata(path)
    assert (metadata["steps"], metadata["seed"], metadata["data"]) == ("6", "0", str(source))
    assert 10 < int(metadata["questions"]) < 20  # of 24 that there are, and not about the images of the 4 others
    assert {"validation_kl", "validation_agreement", "vtc_version"} <= metadata.keys()
    assert fits(path, new_part(adapter, with_gain(CONFIG), 0), "abc")
    log = log_of(tmp_path / "a")
    assert tuple(log[0]) == LOG_FIELDS
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5, 6]
    assert all(0 <= row["validation_agreement"] <= 1 and row["kl"] >= 0 for row in log)
    assert not state_path(path).exists()


def test_interrupted_training_ends_as_an_uninterrupted_one(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.model_copy(update={"steps": 25})  # logged, and saved, every second step
    whole, log = train("a", config), log_of(tmp_path / "a")
    step = torch.optim.AdamW.step
    done: list[int] = []

    def interrupted(optimizer: torch.optim.AdamW) -> None:
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(1)
        step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("b", config)
    path = tmp_path / "b" / "gain.safetensors"
    assert read_metadata(state_path(path))["step"] == "6"
    assert not path.exists()

    def counted(optimizer: torch.optim.AdamW) -> None:
        done.append(1)
        step(optimizer)

    done.clear()
    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    # Images are encoded with others than before, which changes last bits.
    torch.testing.assert_close(train("b", config)["factor"], whole["factor"], rtol=1e-6, atol=0)
    assert len(done) == 19
    for mine, theirs in zip(log_of(tmp_path / "b"), log, strict=True):
        assert {**mine, "seconds": 0.0} == pytest.approx({**theirs, "seconds": 0.0}, rel=1e-4, abs=1e-6)
    train("b", config)  # finished: nothing is done again
    assert len(done) == 19


def test_another_recipe_or_model_is_another_run(adapter: VLMAdapter, source: Path, tmp_path: Path) -> None:
    path = tmp_path / "gain.safetensors"
    runs = []
    pruned = recipe({"kind": "prune", "keep": 4, "selector": "uniform"})
    for digest, before in (("abc", recipe()), ("abd", recipe()), ("abc", pruned)):
        number = len(before.stages)
        train_by_distillation(TrainingJob(adapter, digest, with_gain(CONFIG, before), number, path, str(source)))
        runs.append(read_metadata(path)["run"])
    assert len(set(runs)) == 3


def test_questions_to_check_on_are_about_other_images(adapter: VLMAdapter, source: Path, tmp_path: Path) -> None:
    job = TrainingJob(adapter, "abc", with_gain(CONFIG), 0, tmp_path / "gain.safetensors", str(source))
    train_on, check_on = answers.load_prompts(job, CONFIG)
    assert len(check_on) == CONFIG.validation
    assert not {one.item.image_id for one in train_on} & {one.item.image_id for one in check_on}
    assert all(one.answer[-1] == adapter.eos_token_ids[0] for one in train_on)


@pytest.mark.parametrize("name", ["none", "text_aware", "cuts", "visual_only"])
@torch.inference_mode()
def test_answers_are_scored_as_they_are_generated(name: str, adapter: VLMAdapter, source: Path, tmp_path: Path) -> None:
    """In one pass instead of token by token, and what reads the question reads it without its answer."""
    job = TrainingJob(adapter, "abc", with_gain(CONFIG), 0, tmp_path / "gain.safetensors", str(source))
    prompts = answers.load_prompts(job, CONFIG)[0][:5]
    model = compressed(adapter, *RECIPES[name])
    images = [[prompt.item.load()] for prompt in prompts]
    questions = [adapter.chat(prompt.item.question) for prompt in prompts]
    logits = model.score(images, questions, [prompt.answer for prompt in prompts])
    expected = torch.cat([torch.from_numpy(row) for row in logits]).log_softmax(dim=-1)
    for memory in (0, 2**30):
        pair = answers.Pair([model], compressed(adapter), prompts, memory)
        found = answers.answers(model, prompts)
        for again in (answers.answers(model, prompts[::-1]), pair.wanted(prompts)):
            assert again.shape == found.shape
        if name != "cuts":  # whose selectors inside the decoder look at all text that there is
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        if name == "none":
            torch.testing.assert_close(pair.wanted(prompts), expected, atol=1e-4, rtol=0)
        model = compressed(adapter, *RECIPES[name])
    assert answers.targets(prompts).tolist() == [token for prompt in prompts for token in prompt.answer]


def test_too_few_images_are_refused(adapter: VLMAdapter, source: Path, tmp_path: Path) -> None:
    lines = [line for line in (source / "data.jsonl").read_text().splitlines() if '"2.png"' in line]
    assert len(lines) == len(QUESTIONS)
    (tmp_path / "2.png").write_bytes((source / "2.png").read_bytes())
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    job = TrainingJob(adapter, "abc", with_gain(CONFIG), 0, tmp_path / "gain.safetensors", str(tmp_path))
    with pytest.raises(InputError, match="give at least two"):
        train_by_distillation(job)
    assert not job.path.exists()


def test_a_family_with_features_of_several_encoder_layers(train: Train, tmp_path: Path) -> None:
    model = load_adapter(write_tiny("qwen3_vl", tmp_path / "model"))
    config = CONFIG.model_copy(update={"steps": 4})
    assert bool((train("a", config, model)["factor"] != FAR).any())


@torch.inference_mode()
def test_an_answer_is_not_seen_by_what_sees_the_whole_prompt(source: Path, tmp_path: Path) -> None:
    model = compressed(load_adapter(write_tiny("paligemma", tmp_path / "model", encoder_layers=1, decoder_layers=2)))
    job = TrainingJob(model.adapter, "abc", with_gain(CONFIG), 0, tmp_path / "gain.safetensors", str(source))
    prompts = answers.load_prompts(job, CONFIG)[0][:4]
    asked = (
        [[prompt.item.load()] for prompt in prompts],
        [model.adapter.chat(prompt.item.question) for prompt in prompts],
    )
    logits = model.score(*asked, [prompt.answer for prompt in prompts])
    answers.Pair([model], compressed(model.adapter), prompts, 0)
    expected = torch.cat([torch.from_numpy(row) for row in logits]).log_softmax(dim=-1)
    torch.testing.assert_close(answers.answers(model, prompts), expected, atol=1e-4, rtol=0)
