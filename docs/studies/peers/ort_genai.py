"""ONNX Runtime GenAI: a decoder by its own model builder."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docs.studies.peers.answers import Answer, Task, run_tool, size_of


class Decoder:
    """A model folder of its builder, loaded.

    Parameters
    ----------
    library : module
        ``onnxruntime_genai``.
    path : str
    threads : int
    """

    def __init__(self, library: Any, path: str, threads: int) -> None:
        self._library, self._path = library, path
        config = library.Config(path)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self._model = library.Model(config)

    def answer(self, ids: Sequence[int], new_tokens: int) -> Answer:
        params = self._library.GeneratorParams(self._model)
        params.set_search_options(
            max_length=len(ids) + new_tokens, min_length=len(ids) + new_tokens, do_sample=False, batch_size=1
        )
        begin = time.perf_counter()
        generator = self._library.Generator(self._model, params)
        generator.append_tokens(list(ids))
        generator.generate_next_token()
        times = [time.perf_counter()]
        for _ in range(new_tokens - 1):
            generator.generate_next_token()
            times.append(time.perf_counter())
        made = generator.token_count() - len(ids)
        if made != new_tokens:
            raise AssertionError(f"{new_tokens} tokens were asked for, and {made} came")
        steps = [1000 * (after - before) for before, after in itertools.pairwise(times)]
        return Answer(1000 * (times[0] - begin), steps, sees=len(ids))

    def answer_image(self, length: int, new_tokens: int, number: int) -> Answer:
        raise NotImplementedError("ONNX Runtime GenAI has no such model")

    def facts(self) -> Mapping[str, Any]:
        return size_of(self._path)


def load(task: Task, path: str) -> Decoder:
    """Load a model folder."""
    return Decoder(importlib.import_module("onnxruntime_genai"), path, task.threads)


def convert(checkpoint: Path, out: Path, precision: str, *options: str) -> None:
    """Run the builder, ``onnxruntime_genai.models.builder``, for a processor."""
    extra = ["--extra_options", *options] if options else []
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(out)]
    cache = out.with_name(f"{out.name}-cache")
    run_tool([*command, "-p", precision, "-e", "cpu", "-c", str(cache), *extra])
