"""OpenVINO GenAI: models that optimum-intel converted, in LLMPipeline and VLMPipeline."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from docs.studies.peers.answers import Answer, Task, run_tool, size_of

WORD, MARKS = "what", 2
"""What prompts are made of, each a token, and tokens that stand around an image."""


class Language:
    """A decoder in an LLMPipeline.

    Parameters
    ----------
    library, openvino : module
    pipeline : LLMPipeline
    path : str
    """

    def __init__(self, library: Any, openvino: Any, pipeline: Any, path: str) -> None:
        self._library, self._openvino, self._pipeline, self._path = library, openvino, pipeline, path

    def answer(self, ids: Sequence[int], new_tokens: int) -> Answer:
        given = self._openvino.Tensor(np.array([ids], dtype=np.int64))
        said = self._pipeline.generate(given, _settings(self._library, new_tokens))
        if len(said.tokens[0]) != new_tokens:
            raise AssertionError(f"{new_tokens} tokens were asked for, and {len(said.tokens[0])} came")
        return _timed(said.perf_metrics)

    def answer_image(self, length: int, new_tokens: int, number: int) -> Answer:
        raise NotImplementedError("an LLMPipeline takes no image")

    def facts(self) -> Mapping[str, Any]:
        return size_of(self._path)


class Vision:
    """A vision-language model in a VLMPipeline.

    Parameters
    ----------
    library, openvino : module
    pipeline : VLMPipeline
    path : str
    task : Task
    pruned : int
        Percent of the visual tokens that its CDPruner drops; 0 leaves it off.
    """

    def __init__(self, library: Any, openvino: Any, pipeline: Any, path: str, task: Task, pruned: int) -> None:
        self._library, self._openvino, self._pipeline, self._path = library, openvino, pipeline, path
        self._task, self._pruned = task, pruned

    def answer(self, ids: Sequence[int], new_tokens: int) -> Answer:
        raise NotImplementedError("a VLMPipeline takes no token ids")

    def answer_image(self, length: int, new_tokens: int, number: int) -> Answer:
        image = self._openvino.Tensor(self._task.image(number)[None])
        settings = _settings(self._library, new_tokens)
        if self._pruned:
            settings.pruning_ratio = self._pruned
        settings.apply_chat_template = False
        words = " ".join([WORD] * (length - self._task.kept - MARKS))
        said = self._pipeline.generate(words, images=[image], generation_config=settings)
        return _timed(said.perf_metrics, said.perf_metrics.get_prepare_embeddings_duration().mean)

    def facts(self) -> Mapping[str, Any]:
        return size_of(self._path)


def _settings(library: Any, new_tokens: int) -> Any:
    settings = library.GenerationConfig()
    settings.max_new_tokens = settings.min_new_tokens = new_tokens
    settings.ignore_eos = True
    settings.do_sample = False
    return settings


def _timed(metrics: Any, vision_ms: float | None = None) -> Answer:
    steps = [one / 1000 for one in metrics.raw_metrics.m_durations]  # from microseconds
    return Answer(metrics.get_ttft().mean, steps, vision_ms, sees=int(metrics.get_num_input_tokens()))


def load(task: Task, path: str, kind: str, precision: str, pruned: int = 0) -> Language | Vision:
    """Load a folder that optimum-intel wrote; `precision` is the one that it computes in."""
    openvino, library = importlib.import_module("openvino"), importlib.import_module("openvino_genai")
    hints = {"INFERENCE_NUM_THREADS": task.threads, "INFERENCE_PRECISION_HINT": precision}
    if kind == "llm":
        return Language(library, openvino, library.LLMPipeline(path, "CPU", **hints), path)
    return Vision(library, openvino, library.VLMPipeline(path, "CPU", **hints), path, task, pruned)


def convert(checkpoint: Path, out: Path, task: str, weights: str) -> None:
    """Convert by ``optimum-cli export openvino``."""
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino", "-m", str(checkpoint)]
    run_tool([*command, "--task", task, "--weight-format", weights, str(out)])
