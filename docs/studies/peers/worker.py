"""One visit to one contestant, in a process of its own: ``python -m docs.studies.peers.worker``.

The request comes as JSON on stdin, figures go as the last line of stdout; what libraries print there goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from docs.studies.peers.answers import Answer, Engine, Task
from vtc.benchmark.memory import peak_rss_mb


def measured(engine: Engine, task: Task) -> dict[str, list[float]]:
    """All figures of a visit: milliseconds by name, a value for each answer."""
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(value)

    for length in task.contexts:
        for answer in _answers(engine, task, length):
            image = task.image_side > 0
            note(f"{'ttft' if image else 'prefill'}_{length}", answer.first_ms)
            note(f"tpot_{length}", statistics.fmean(answer.step_ms))
            if answer.vision_ms is not None:
                note("vision", answer.vision_ms)
            if answer.preprocess_ms is not None:
                note("preprocess", answer.preprocess_ms)
            if answer.inside_ms:
                pairs = zip(answer.step_ms, answer.inside_ms, strict=True)
                note(f"overhead_{length}", statistics.median((step - inside) / inside for step, inside in pairs))
            if answer.sees and answer.sees != length:
                raise AssertionError(f"{length} tokens were asked for, and {answer.sees} were prefilled")
    return figures


def _answers(engine: Engine, task: Task, length: int) -> Iterator[Answer]:
    for number in range(1 + task.repeats):
        tokens = task.new_tokens if number else 2
        if task.image_side:
            answer = engine.answer_image(length, tokens, number)
        else:
            answer = engine.answer(task.prompt(length, number), tokens)
        if number:
            yield answer


def visit(request: dict[str, Any], load: Callable[..., Engine] | None = None) -> dict[str, Any]:
    """Load a contestant and measure it.

    Parameters
    ----------
    request : dict
        ``engine`` names the module in this package, ``options`` goes to its ``load``, ``task`` is a :class:`Task`.
    load : callable or None
        Stands in for the module's.
    """
    task = Task(**request["task"])
    loader: Callable[..., Engine] = load or importlib.import_module(f"docs.studies.peers.{request['engine']}").load
    before = peak_rss_mb()
    begin = time.perf_counter()
    engine = loader(task, **request["options"])
    load_ms = 1000 * (time.perf_counter() - begin)
    figures = measured(engine, task)
    figures |= {"load": [load_ms], "before_load_mb": [before or 0.0], "peak_mb": [peak_rss_mb() or 0.0]}
    return {"figures": figures, "facts": dict(engine.facts())}


def main() -> None:
    """Serve one request."""
    request = json.load(sys.stdin)
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(visit(request)), file=told, flush=True)
    os._exit(0)  # libraries that crash as they are taken down have told their figures


if __name__ == "__main__":
    main()
