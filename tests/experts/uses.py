"""Expert use made from routes, for tests."""

from __future__ import annotations

import numpy as np

from vtc.experts.statistics import ExpertUse, Floats, Numbers, Routes


def use_of(routes: Routes, experts: int, weight: Floats | None = None, norm: Floats | None = None) -> ExpertUse:
    """Sums over routes; `weight` and `norm` (L, T, k) are 1 where none are given."""
    chosen: Numbers = routes.chosen
    layers = chosen.shape[0]
    weight = np.ones(chosen.shape) if weight is None else weight
    norm = np.ones(chosen.shape) if norm is None else norm
    ones = np.eye(experts)[chosen]  # (L, T, k, E)
    modality = np.eye(2)[routes.modality]

    def sums(values: Floats) -> Floats:
        return np.einsum("ltk,ltke,tm->lme", values, ones, modality)

    hot = ones.sum(axis=2)
    nothing = np.zeros((layers, 2, experts))
    return ExpertUse(
        tokens=modality.sum(axis=0),
        chosen=sums(np.ones(chosen.shape)),
        weight=sums(weight),
        norm=sums(norm),
        weighted_norm=sums(weight * norm),
        together=np.einsum("lte,ltf,tm->lmef", hot, hot, modality),
        confidence=np.zeros((layers, 2)),
        attention=nothing,
        gaussian=nothing,
        routes=routes,
    )


def synthetic_routes(
    layers: int = 2,
    experts: int = 16,
    active: int = 2,
    prompts: int = 8,
    visual: int = 24,
    text: int = 8,
    specialised: float = 2.0,
    seed: int = 0,
) -> Routes:
    """Routes of a router that prefers, by `specialised`, some experts for visual tokens and others for text."""
    generator = np.random.default_rng(seed)
    modality = np.tile(np.repeat([1, 0], [visual, text]), prompts)
    sample = np.repeat(np.arange(prompts), visual + text)
    taste = generator.normal(size=(layers, 2, experts))
    popular = generator.normal(size=(layers, 1, experts)) * 0.5
    logits = specialised * taste[:, modality] + popular + generator.gumbel(size=(layers, len(modality), experts))
    return Routes(np.argsort(-logits, axis=2)[:, :, :active], modality, sample)
