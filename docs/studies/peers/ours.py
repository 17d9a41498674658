"""Our bundles, in any variant and backend."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from docs.studies.peers.answers import Answer, Task
from vtc.bundle.manifest import load_manifest
from vtc.runtime.backends import open_backend
from vtc.runtime.generation import Batch, milliseconds_since
from vtc.runtime.options import RuntimeOptions
from vtc.runtime.vlm import VLM

WORD = "what"


class Bundle:
    """A bundle, loaded.

    Parameters
    ----------
    vlm : VLM
    task : Task
    """

    def __init__(self, vlm: VLM, task: Task) -> None:
        self._vlm, self._task = vlm, task

    def answer(self, ids: Sequence[int], new_tokens: int) -> Answer:
        given = np.array([ids], dtype=np.int64)
        return self._answer(Batch(self._vlm.manifest.images[0], None, given, np.ones_like(given), new_tokens))

    def answer_image(self, length: int, new_tokens: int, number: int) -> Answer:
        preprocess_ms, batch = self._batch(length, new_tokens, number)
        return replace(self._answer(batch), preprocess_ms=preprocess_ms)

    def _batch(self, length: int, new_tokens: int, number: int) -> tuple[float, Batch]:
        """A question about an image of noise whose prompt has so many tokens, visual ones included."""
        images = [[Image.fromarray(self._task.image(number))]]
        words = 1
        while True:  # a word more is a token more
            took, batch = self._vlm.inputs(images, [self._vlm.chat(" ".join([WORD] * words))], new_tokens)
            missing = length - batch.input_ids.shape[1]
            if missing <= 0:
                return took, batch
            words += missing

    def _answer(self, batch: Batch) -> Answer:
        begin = time.perf_counter()
        prefilled = self._vlm.prefill(batch)
        token = prefilled.logits.argmax(axis=-1)
        first_ms = milliseconds_since(begin)
        steps, inside = [], []
        for _ in range(batch.new_tokens - 1):
            begin = time.perf_counter()
            token = self._vlm.step(token, prefilled.cache).argmax(axis=-1)
            steps.append(milliseconds_since(begin))
            inside.append(self._inside_ms())
        vision_ms = None if batch.pixels is None else prefilled.vision_ms
        return Answer(first_ms, steps, vision_ms, inside, batch.input_ids.shape[1])

    def _inside_ms(self) -> float:
        """What the last step's graphs took."""
        decoder = self._vlm.decoder
        return decoder.embedding.run_ms + sum(segment.graph.run_ms for segment in decoder.segments)

    def facts(self) -> Mapping[str, Any]:
        vlm, manifest = self._vlm, self._vlm.manifest
        graphs = ["embed_tokens", *(segment.graph for segment in manifest.segments)]
        files = {name: entry for graph in graphs for name, entry in manifest.graph_files(graph, vlm.variant).items()}
        size = sum(entry.bytes for entry in files.values())
        if self._task.image_side:
            size = manifest.graph_bytes(vlm.variant)
        return {"variant": vlm.variant, "provider": vlm.provider, "bytes": size}


def load(task: Task, bundle: str, **options: Any) -> Bundle:
    """Load a bundle; `options` are those of :class:`~vtc.runtime.options.RuntimeOptions`.

    Files are not hashed: no peer does that. Without an image the vision graph is not loaded.
    """
    settings = RuntimeOptions(threads=task.threads, verify=False, **options)
    manifest = load_manifest(bundle, verify=False)
    vlm = VLM(manifest, open_backend(manifest, settings))
    if task.image_side == 0:
        _ = vlm.embedding, vlm.decoder
    elif vlm.image_tokens == task.kept:
        vlm.open()
    else:
        raise AssertionError(f"the bundle keeps {vlm.image_tokens} visual tokens, not {task.kept}")
    return Bundle(vlm, task)
