"""Times a compressed model in PyTorch on any device: for shapes that are unwieldy as ONNX graphs.

Every clock reading waits for the device first. Decoding reads the clock at its end only, as a generation loop would;
the time that launching kernels takes is in all figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vtc.benchmark.memory import Memory
from vtc.benchmark.replay import Steps, eager_steps
from vtc.benchmark.report import Runner, TimedAnswer
from vtc.benchmark.timing import BenchPrompt
from vtc.compressed.model import CompressedModel


def torch_runner(
    name: str, model: CompressedModel, question: BenchPrompt, new_tokens: int, steps: Steps | None = None
) -> Runner:
    """A model in memory, ready to be timed on one question; see :func:`vtc.benchmark.timing.runner`.

    Parameters
    ----------
    name : str
    model : CompressedModel
    question : BenchPrompt
    new_tokens : int
    steps : callable or None
        How it decodes; None is eagerly.
    """
    decoding = steps or eager_steps(model)
    images, prompts = [list(question.images)], [model.adapter.chat(question.text, len(question.images))]
    device = model.device

    @torch.inference_mode()
    def ask(_: int) -> TimedAnswer:
        start = clock(device)
        inputs = model.inputs(images, prompts)
        begin = clock(device)
        with _marks(model, device) as marks:
            logits, state = model.prefill(*inputs)
            token = logits[:, -1].argmax(dim=-1, keepdim=True)
            first = clock(device)
        lengths = tuple(int(mask.shape[1]) for mask in state.masks)
        cache = [tensor for segment in state.past for layer in segment for tensor in layer]
        kv_bytes = sum(tensor.numel() * tensor.element_size() for tensor in cache)
        del cache
        if new_tokens > 1:
            step = decoding(token, state)
            for _step in range(new_tokens - 1):
                step()
        end = clock(device)
        return TimedAnswer(
            ttft_ms=first - begin,
            tpot_ms=(end - first) / (new_tokens - 1) if new_tokens > 1 else None,
            e2e_ms=end - start,
            segment_lengths=lengths,
            kv_bytes=kv_bytes,
            new_tokens=new_tokens,
            vision_ms=marks["features"] - marks["pixels"],
            prefill_ms=first - marks["embeddings"],
        )

    return Runner(name, ask, {"visual_tokens": model.image_tokens, "layer_average": model.plan.layer_average})


@contextmanager
def _marks(model: CompressedModel, device: torch.device) -> Iterator[dict[str, float]]:
    """Times at which pixels enter the encoder, features leave it, and embeddings enter the decoder."""
    marks: dict[str, float] = {}

    def mark(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            marks[name] = clock(device)

        return hook

    handles = [
        model.vision.register_forward_pre_hook(mark("pixels")),
        model.vision.register_forward_hook(mark("features")),
        model.segments[0].register_forward_pre_hook(mark("embeddings")),
    ]
    try:
        yield marks
    finally:
        for handle in handles:
            handle.remove()


def clock(device: torch.device) -> float:
    """Milliseconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() * 1000


def device_memory(runner: Runner, device: torch.device) -> Memory | None:
    """Peak memory of a GPU while a model answers once, weights included; None on the CPU, whose models share a process.

    All models share the weights.
    """
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    runner.ask(0)
    return Memory(before / 2**20, torch.cuda.max_memory_allocated(device) / 2**20)
