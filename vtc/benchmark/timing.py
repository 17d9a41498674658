"""Times one bundle on one question, with answers of a fixed length."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vtc.benchmark.report import Runner, TimedAnswer
from vtc.bundle.facts import precision_and_form
from vtc.plan.stored import plans_of
from vtc.runtime.sampling import Sampler
from vtc.runtime.vlm import VLM


@dataclass(frozen=True)
class BenchPrompt:
    """What is asked while the clock runs."""

    images: tuple[Image.Image, ...]
    text: str


class EndlessSampler(Sampler):
    """Greedy, but never takes an end token, so that every answer has the length asked for.

    Parameters
    ----------
    end_tokens : sequence of int
    """

    def __init__(self, end_tokens: Sequence[int]) -> None:
        super().__init__()
        self._end_tokens = list(end_tokens)

    def __call__(self, logits: NDArray[np.float32]) -> NDArray[np.int64]:
        """Choose the likeliest other token of each row of (B, V)."""
        allowed = logits.copy()
        allowed[:, self._end_tokens] = -np.inf
        return np.asarray(allowed.argmax(axis=-1), dtype=np.int64)


def runner(name: str, vlm: VLM, questions: Sequence[BenchPrompt], new_tokens: int) -> Runner:
    """A bundle, ready to be timed.

    Parameters
    ----------
    name : str
    vlm : VLM
    questions : sequence of BenchPrompt
    new_tokens : int
        Length of every answer, less where the model's context ends sooner.
    """
    plan, _ = plans_of(vlm.manifest)
    facts = {
        "visual_tokens": vlm.image_tokens,
        "layer_average": plan.layer_average,
        "flops": plan.flops["exact"] if precision_and_form(vlm.variant)[1] == "ort" else plan.executed,
        "flops_text_tokens": plan.text_tokens,
        "precision": vlm.precision,
        "variant": vlm.variant,
        "run_as": vlm.run_as,
        "provider": vlm.provider,
    }
    return Runner(name, _timed(vlm, questions, new_tokens), facts)


def _timed(vlm: VLM, questions: Sequence[BenchPrompt], new_tokens: int) -> Callable[[int], TimedAnswer]:
    sampler = EndlessSampler(vlm.manifest.generation.eos_token_ids)
    prompts = [vlm.chat(question.text, len(question.images)) for question in questions]

    def ask(number: int) -> TimedAnswer:
        images = [list(questions[number].images)]
        begin = time.perf_counter()
        generation = vlm.generate(images, [prompts[number]], new_tokens, sampler)[0]
        e2e_ms = (time.perf_counter() - begin) * 1000
        timings = generation.timings
        return TimedAnswer(
            ttft_ms=timings.ttft_ms,
            tpot_ms=float(np.mean(timings.step_ms)) if timings.step_ms else None,
            e2e_ms=e2e_ms,
            segment_lengths=timings.segment_lengths,
            kv_bytes=timings.kv_bytes,
            new_tokens=len(generation.token_ids),
            vision_ms=timings.vision_ms,
            prefill_ms=timings.prefill_ms,
            selector_ms=sum(selector.run_ms for selector in vlm.decoder.selectors),
        )

    return ask
