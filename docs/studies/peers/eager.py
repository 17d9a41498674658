"""transformers, eager, with a hook that drops visual tokens: what a user would do by hand.

The hook stands after the projector and keeps evenly spaced tokens, so choosing them costs nothing; the prompt has as
many placeholders as are left.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, LlavaForConditionalGeneration
from transformers.initialization import no_init_weights

from docs.studies.peers.answers import Answer, Task, size_of
from vtc.runtime.generation import milliseconds_since


class Eager:
    """A LLaVA checkpoint, loaded.

    Parameters
    ----------
    model : LlavaForConditionalGeneration
    task : Task
    checkpoint : str
    """

    def __init__(self, model: Any, task: Task, checkpoint: str) -> None:
        self._model, self._task, self._checkpoint = model, task, checkpoint
        self._vision_ms = 0.0
        model.model.multi_modal_projector.register_forward_hook(self._drop)
        model.model.vision_tower.register_forward_pre_hook(self._begin)

    def _begin(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _drop(self, _module: Any, _inputs: Any, features: Tensor) -> Tensor:
        self._vision_ms = milliseconds_since(self._began)
        keep = np.linspace(0, features.shape[1] - 1, self._task.kept).round().astype(int)
        return features[:, keep]

    def answer(self, ids: Sequence[int], new_tokens: int) -> Answer:
        return self._answer(torch.tensor([list(ids)]), None, new_tokens)

    def answer_image(self, length: int, new_tokens: int, number: int) -> Answer:
        ids = torch.tensor([self._task.prompt(length, number)])
        ids[:, 5 : 5 + self._task.kept] = self._model.config.image_token_id
        pixels = torch.tensor(self._task.image(number)).permute(2, 0, 1)[None] / 127.5 - 1
        return self._answer(ids, pixels.to(self._model.dtype), new_tokens)

    @torch.inference_mode()
    def _answer(self, ids: Tensor, pixels: Tensor | None, new_tokens: int) -> Answer:
        images = {} if pixels is None else {"pixel_values": pixels}
        cache = DynamicCache()
        begin = time.perf_counter()
        said = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **images)
        token = said.logits[:, -1].argmax(-1)
        first_ms, steps = milliseconds_since(begin), []
        for _ in range(new_tokens - 1):
            begin = time.perf_counter()
            said = self._model(input_ids=token[:, None], past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = said.logits[:, -1].argmax(-1)
            steps.append(milliseconds_since(begin))
        sees = int(cache.get_seq_length()) - new_tokens + 1
        return Answer(first_ms, steps, None if pixels is None else self._vision_ms, sees=sees)

    def facts(self) -> Mapping[str, Any]:
        return {"attention": self._model.config._attn_implementation, **size_of(self._checkpoint)}


def load(task: Task, checkpoint: str, dtype: str) -> Eager:
    """Load a checkpoint."""
    torch.set_num_threads(task.threads)
    with no_init_weights():
        model: Any = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
    return Eager(model.eval(), task, checkpoint)
