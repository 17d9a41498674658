"""Qwen3-VL whose decoder has a mixture of experts in every layer (arXiv 2511.21631); all else is as in Qwen3-VL."""

from __future__ import annotations

from transformers import Qwen3VLMoeForConditionalGeneration

from vtc.models.qwen3_vl import Qwen3VLAdapter


class Qwen3VLMoeAdapter(Qwen3VLAdapter):
    """`Qwen3VLMoeForConditionalGeneration` with the same number of experts in all layers."""

    family = "qwen3_vl_moe"
    model_class = Qwen3VLMoeForConditionalGeneration
