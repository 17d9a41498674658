"""Threads that ask one loaded bundle at once get the answers that one thread gets."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from tests.runtime.conftest import picture
from tests.runtime.nvidia import nvidia, write_engine_set
from tests.runtime.toy import Toy
from vtc.runtime.quiet import quiet_stderr
from vtc.runtime.vlm import VLM

THREADS = 8
QUESTIONS = [
    (picture(number, (16 + number % 5 * 7, 24 + number % 3 * 9)), " ".join(["what is red"] * (1 + number % 3)))
    for number in range(THREADS)
]
NEW_TOKENS = 6


@pytest.fixture(autouse=True)
def many_switches() -> Iterator[None]:
    """Threads give way to each other all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def asked_at_once(model: VLM, rounds: int) -> list[list[str]]:
    """Answers of threads that all put all questions, each in an order of its own."""
    together = Barrier(THREADS)

    def ask_all(first: int) -> list[str]:
        together.wait()
        answers = {}
        for turn in range(rounds * len(QUESTIONS)):
            number = (first + turn) % len(QUESTIONS)
            image, question = QUESTIONS[number]
            streamed = turn % 2  # a streamed answer is left for other work between its tokens
            pieces = model.stream if streamed else model.ask
            answers[number] = "".join(pieces(image, question, NEW_TOKENS))
        return [answers[number] for number in range(len(QUESTIONS))]

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(ask_all, range(THREADS)))


def test_onnx_runtime_answers_threads_as_it_answers_one(toy_and_bundle: tuple[Toy, Path]) -> None:
    model = VLM.load(toy_and_bundle[1], provider="cpu", threads=1)
    wanted = [model.ask(image, question, NEW_TOKENS) for image, question in QUESTIONS]
    assert len(set(wanted)) > 1
    fresh = VLM.load(toy_and_bundle[1], provider="cpu", threads=1)  # graphs that are opened when they are wanted
    assert asked_at_once(fresh, 1) == [wanted] * THREADS


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
def test_engines_answer_threads_as_they_answer_one(
    toy_bundles: dict[str, Path], library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(toy_bundles["visual exit"], tmp_path / "bundle"))
    nvidia(monkeypatch)
    write_engine_set(bundle, library=library)
    wanted = [VLM.load(bundle, provider="cpu").ask(image, question, NEW_TOKENS) for image, question in QUESTIONS]
    assert asked_at_once(VLM.load(bundle, backend="tensorrt"), 1) == [wanted] * THREADS


def test_a_run_is_timed_in_the_thread_that_runs_it(toy_bundle: Path) -> None:
    model = VLM.load(toy_bundle, provider="cpu", threads=1)
    model.ask(*QUESTIONS[0], 1)
    assert model.embedding.run_ms > 0
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: model.embedding.run_ms).result() == 0


def test_stderr_comes_back_after_threads_that_silence_it() -> None:
    before = os.fstat(2)

    def silence(_: int) -> None:
        for _ in range(50):
            with quiet_stderr():
                pass

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(silence, range(THREADS)))
    assert os.path.samestat(os.fstat(2), before)
