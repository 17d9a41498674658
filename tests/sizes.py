"""Sizes of models, for tests that need no model."""

from __future__ import annotations

from dataclasses import replace

from vtc.facts.layout import single_view
from vtc.facts.model import DecoderFacts, EncoderFacts, ModelFacts

SMALL = ModelFacts(
    family="llava",
    model_type="llava",
    layout=single_view((224, 224), (16, 16)),
    encoder=EncoderFacts(layers=5, width=128, heads=4, ffn=512, patch_size=14, has_cls=True, feature_layer=4),
    decoder=DecoderFacts(
        layers=8,
        width=128,
        heads=4,
        kv_heads=2,
        head_dim=32,
        ffn=384,
        vocab=460,
        context=1024,
        gated_ffn=True,
    ),
    projector_params=128 * 128 * 2,
)
"""A model of the reference VLM's shape."""

LLAVA_15 = ModelFacts(
    family="llava",
    model_type="llava",
    layout=single_view((336, 336), (24, 24)),
    encoder=EncoderFacts(layers=24, width=1024, heads=16, ffn=4096, patch_size=14, has_cls=True, feature_layer=22),
    decoder=DecoderFacts(
        layers=32,
        width=4096,
        heads=32,
        kv_heads=32,
        head_dim=128,
        ffn=11008,
        vocab=32064,
        context=4096,
        gated_ffn=True,
    ),
    projector_params=1024 * 4096 + 4096 * 4096,
)
"""LLaVA-1.5-7B."""

WITHOUT_CLS = replace(SMALL, encoder=replace(SMALL.encoder, has_cls=False))
"""A model whose encoder has no CLS token, as SigLIP."""
