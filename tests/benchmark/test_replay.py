from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import RECIPES, recipe
from vtc.benchmark.replay import Constants, cuda_graph, replay_prefill, replayed, replayed_steps, run_again
from vtc.benchmark.shape import recipes
from vtc.benchmark.shape_models import question_about, random_models
from vtc.models.random.shapes import TINY


def recording(run: Callable[..., Any], inputs: Sequence[Any]) -> tuple[Callable[[], None], Any]:
    """Stands in for a CUDA graph: the same memory comes in and goes out, and Python is not asked again."""
    output = run(inputs)
    given = inputs[0]

    def repeat() -> None:
        output.copy_(given * 2)

    return repeat, output


def test_a_run_is_recorded_once_for_each_shape_and_replayed_with_the_new_values() -> None:
    runs: list[tuple[int, ...]] = []

    def double(values: torch.Tensor, _: None) -> torch.Tensor:
        runs.append(tuple(values.shape))
        return values * 2

    ask = replayed(double, recording, lambda values, _: values.shape[0] < 5)
    for values in (torch.ones(2), torch.full((2,), 3.0), torch.ones(4), torch.zeros(2)):
        assert torch.equal(ask(values, None), values * 2)
    assert runs == [(2,), (4,)]


def test_what_is_not_to_be_replayed_is_run() -> None:
    ask = replayed(lambda values: values + 1, recording, lambda values: False)
    assert torch.equal(ask(torch.ones(7)), torch.full((7,), 2.0))


def test_constants_of_a_run_are_handed_out_in_the_recording() -> None:
    def run() -> list[torch.Tensor]:
        return [torch.tensor([1, 2]), torch.tensor(3.0)]

    constants = Constants()
    with constants:
        made = run()
    constants.rewind()
    with constants:
        assert all(again is first for again, first in zip(run(), made, strict=True))


DEVICES = [pytest.param("cpu", run_again, id="cpu"), pytest.param("cuda", cuda_graph, marks=pytest.mark.gpu, id="cuda")]


@pytest.mark.parametrize(("device", "recording"), DEVICES)
@torch.inference_mode()
def test_what_is_replayed_answers_as_the_model_itself(device: str, recording: Any, tmp_path: Path) -> None:
    built = random_models(TINY, recipes(recipe(*RECIPES["everything"])), tmp_path, torch.float32, device)
    # A second prompt of the same lengths and other content: what is replayed must not be what was recorded.
    questions = [question_about(TINY, built.adapter, length) for length in (20, 20, 26)]
    first = questions[0].images[0]
    images = [first, first.rotate(90), first]
    for model in built.models:
        asked = [
            model.inputs([[image]], [built.adapter.chat(question.text)])
            for image, question in zip(images, questions, strict=True)
        ]
        wanted = []
        for inputs in asked:
            logits, state = model.prefill(*inputs)
            tokens, scores = [logits.argmax(dim=-1)], [logits]
            for _ in range(6):
                scores.append(model.decode(tokens[-1], state))
                tokens.append(scores[-1].argmax(dim=-1))
            wanted.append((tokens, scores, [mask.shape[1] for mask in state.masks]))
        assert any(not torch.equal(a, b) for a, b in zip(wanted[0][1], wanted[1][1], strict=True))
        own = type(model.vision).forward
        steps = replayed_steps(model, 6, recording)
        with replay_prefill(model, recording):
            for inputs, (tokens, scores, lengths) in zip(asked, wanted, strict=True):
                logits, state = model.prefill(*inputs)
                torch.testing.assert_close(logits, scores[0], rtol=1e-4, atol=1e-4)
                step = steps(logits.argmax(dim=-1), state)
                assert [step().item() for _ in range(6)] == [token.item() for token in tokens[1:]]
                assert [mask.shape[1] + 6 for mask in state.masks] == lengths
        assert model.vision.forward.__func__ is own


def test_more_steps_than_there_is_room_for_are_refused(tmp_path: Path) -> None:
    built = random_models(TINY, recipes(recipe(*RECIPES["exit"])), tmp_path, torch.float32, "cpu")
    question, model = question_about(TINY, built.adapter, 20), built.models[1]
    logits, state = model.prefill(*model.inputs([list(question.images)], [built.adapter.chat(question.text)]))
    step = replayed_steps(model, 3, run_again)(logits.argmax(dim=-1), state)
    for _ in range(3):
        step()
    with pytest.raises(IndexError, match="3 steps"):
        step()
