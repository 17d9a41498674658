"""What a policy spends is counted pass by pass, and found again in the notes of an interrupted run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.evaluate.fakes import FakePredictor, dataset
from vtc.evaluate.answers import Contestant, ask_all
from vtc.evaluate.asking import Asking
from vtc.evaluate.notes import Notes
from vtc.evaluate.one_by_one import OneByOne
from vtc.inputs.generation import GenerationRules
from vtc.runtime.budgets import Entropy, Keep


@dataclass(frozen=True)
class Answer:
    token_ids: list[int]
    text: str
    budgets: tuple[int, ...]


@dataclass
class Climber:
    """Of budgets 4 and 8; by a policy, odd questions take both."""

    budgets: tuple[int, ...] = (4, 8)
    generation_rules: GenerationRules = field(default_factory=GenerationRules)
    asked: list[str] = field(default_factory=list)

    def at_budget(self, keep: int) -> FakePredictor:
        return FakePredictor({}, image_tokens=keep, sharpness=float(keep))

    def generate(
        self,
        images: object,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        sampler: None = None,
        keep: Keep = None,
    ) -> list[Answer]:
        (prompt,) = prompts
        self.asked.append(prompt)
        odd = int(prompt[1:]) % 2 == 1
        passes = (keep,) if isinstance(keep, int) else self.budgets if odd else self.budgets[:1]
        return [Answer([3], prompt, passes)]


def chat(question: str) -> str:
    return question


def test_tokens_of_all_passes_are_counted() -> None:
    data, model = dataset(4), Climber()
    asked = OneByOne(model, Entropy(1.0))
    climbing = Contestant("climbing", asked, chat)
    found = ask_all(climbing, data.items, Asking(), "climbing")
    assert model.asked == ["q0", "q0", "q0", "q1", "q2", "q3"]  # each budget is warmed up
    spent = asked.spent(data.items, found)
    assert spent["answered_at"] == {"4": 2, "8": 2}
    assert (spent["visual_tokens"], spent["tokens_answered"], spent["passes"]) == (8, 6, 1.5)
    fixed = OneByOne(model, 8)
    assert fixed.spent(data.items, ask_all(Contestant("8", fixed, chat), data.items, Asking(), "8"))["passes"] == 1


def test_continuations_are_scored_at_the_budget_that_answers() -> None:
    images = [[dataset(1).items[0].load()]] * 2
    even, odd = OneByOne(Climber(), Entropy(1.0)).score(images, ["q0", "q1"], [[3], [3]])
    assert (np.max(even), np.max(odd)) == (4, 8)


@pytest.mark.parametrize("spoilt", [{"ms": None}, {"budgets": []}, {"budgets": None}])
def test_a_note_without_what_was_spent_is_asked_again(spoilt: dict[str, object]) -> None:
    item = dataset(1).items[0]
    whole = {"text": "noted", "token_ids": [3], "budgets": [4], "ms": 1.0}
    for note, text in ((whole, "noted"), (whole | spoilt, "q0")):
        notes = Notes()
        notes._known["climbing", item.id] = ([], note)
        asking = Asking(notes=notes)
        climbing = Contestant("climbing", OneByOne(Climber(), Entropy(1.0)), chat)
        assert ask_all(climbing, [item], asking, "climbing")[item.id]["text"] == text
