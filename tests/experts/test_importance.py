"""Scores of experts, enumeration and skipping, against the numbers of their authors' code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.experts.uses import use_of
from vtc.errors import InputError
from vtc.experts.enumeration import enumerate_drops, layer_output
from vtc.experts.importance import Of, Rule, expert_scores, keep_sets, modality_aware
from vtc.experts.skipping import skip_thresholds, skipped_share
from vtc.experts.statistics import ExpertUse, Floats, Numbers, Routes

GOLDENS = Path(__file__).parents[1] / "goldens"
REAP = np.load(GOLDENS / "reap.npz")
NAEE = np.load(GOLDENS / "naee.npz")
MODES = np.load(GOLDENS / "modes.npz")
RULES: dict[str, Rule] = {
    "expert_frequency": "frequency",
    "weighted_expert_frequency_sum": "weighted_frequency",
    "ean_sum": "ean_sum",
    "ean_mean": "ean_mean",
    "weighted_ean_sum": "weighted_ean_sum",
    "reap": "reap",
}
OF: dict[str, Of] = {"all": "both", "vision": "visual", "text": "text"}


def reap_use(renormalised: bool) -> ExpertUse:
    chosen = REAP["selected_experts"]
    logits = REAP["router_logits"].astype(np.float64)
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    weight = np.take_along_axis(probability, chosen, 1)
    if renormalised:
        weight /= weight.sum(axis=1, keepdims=True)
    norm = np.linalg.norm(REAP["activations"].astype(np.float64), axis=2).T
    routes = Routes(chosen[None], REAP["is_visual"].astype(np.int64), np.zeros(96, np.int64))
    return use_of(routes, 8, weight[None], np.take_along_axis(norm, chosen, 1)[None])


@pytest.mark.parametrize("renormalised", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_scores_of_each_modality(name: str, renormalised: bool) -> None:
    use = reap_use(renormalised)
    for theirs, ours in OF.items():
        expected = REAP[f"renorm{int(renormalised)}_{theirs}_{name}"]
        np.testing.assert_allclose(expert_scores(use, RULES[name], ours)[0], expected, rtol=1e-5)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(InputError, match="no rule 'best'"):
        expert_scores(reap_use(True), "best")  # type: ignore[arg-type]


def test_each_modality_keeps_its_best() -> None:
    """Both together, the 64 visual tokens outvote the 32 of text; with ranks, text keeps its best three of six."""
    use = reap_use(True)
    visual, text = (set(keep_sets(expert_scores(use, "reap", of), 3)[0]) for of in ("visual", "text"))
    assert set(keep_sets(modality_aware(use, "reap"), 6)[0]) >= visual | text
    plain = set(keep_sets(expert_scores(use, "weighted_ean_sum"), 4)[0])
    aware = set(keep_sets(modality_aware(use, "weighted_ean_sum"), 4)[0])
    best_of_text = set(keep_sets(expert_scores(use, "weighted_ean_sum", "text"), 2)[0])
    assert best_of_text <= aware
    assert not best_of_text <= plain


def test_an_expert_that_a_modality_never_chose_gets_no_rank_of_it() -> None:
    routes = Routes(np.array([[[0], [1], [2], [2]]]), np.array([0, 1, 1, 1]), np.zeros(4, np.int64))
    assert keep_sets(modality_aware(use_of(routes, 4), "frequency"), 3).tolist() == [[0, 1, 2]]


def test_the_lowest_index_wins_a_tie() -> None:
    scores = np.array([[1.0, 2, 1, 2, 1], [0, 0, 0, 0, 0]])
    assert keep_sets(scores, 3).tolist() == [[0, 1, 3], [0, 1, 2]]
    with pytest.raises(InputError, match="cannot keep 6 of 5 experts"):
        keep_sets(scores, 6)


def naee_layer() -> tuple[Floats, Floats]:
    tokens = NAEE["hidden"].reshape(-1, 12).astype(np.float64)
    inner = np.einsum("nd,efd->enf", tokens, NAEE["w1"])
    return np.einsum("enf,edf->end", inner / (1 + np.exp(-inner)), NAEE["w2"]), tokens @ NAEE["gate"].T


@pytest.mark.parametrize("keep", [3, 4, 5])
def test_enumeration_finds_what_the_authors_find(keep: int) -> None:
    outputs, logits = naee_layer()

    def reduced(dropped: Numbers) -> Floats:
        return layer_output(outputs, logits, 2, dropped).reshape(2, 48, 12)

    full = layer_output(outputs, logits, 2).reshape(2, 48, 12)
    np.testing.assert_allclose(full, NAEE["full_out"], atol=1e-4)
    found = enumerate_drops(reduced, full, 6, 6 - keep)
    np.testing.assert_array_equal(found.dropped, NAEE[f"keep{keep}_combos"])
    np.testing.assert_allclose(found.loss, NAEE[f"keep{keep}_loss"], rtol=1e-4)
    np.testing.assert_array_equal(found.best, NAEE[f"keep{keep}_dropped"])
    np.testing.assert_allclose(reduced(found.best), NAEE[f"keep{keep}_out"], atol=1e-4)
    assert found.excess(found.best[::-1]) == 0
    assert found.excess(found.dropped[0]) == pytest.approx(found.loss[0] / found.loss.min() - 1)


def test_too_many_sets_are_refused() -> None:
    with pytest.raises(InputError, match=r"32 of 64 experts are 1\.83e\+18 sets"):
        enumerate_drops(lambda dropped: np.zeros((1, 1)), np.zeros((1, 1)), 64, 32)
    with pytest.raises(InputError, match="cannot drop 4 of 4"):
        enumerate_drops(lambda dropped: np.zeros((1, 1)), np.zeros((1, 1)), 4, 4)


def modes_tables(text: float, visual: float) -> tuple[float, float]:
    i, j = np.searchsorted(MODES["text_tau_grid"], text), np.searchsorted(MODES["visual_tau_grid"], visual)
    return float(MODES["loss_table"][i, j]), float(MODES["skip_table"][i, j])


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7, 0.8])
def test_the_frontier_is_walked_as_by_the_authors(target: float) -> None:
    found = skip_thresholds(modes_tables, MODES["text_tau_grid"], MODES["visual_tau_grid"], target)
    np.testing.assert_allclose([found.text, found.visual, found.loss], MODES[f"skip{target}_tau"], rtol=1e-6)
    assert found.evaluations == MODES[f"skip{target}_evaluations"]
    feasible = MODES["skip_table"] >= target
    assert found.loss == MODES["loss_table"][feasible].min()


def test_skipped_share() -> None:
    importance = np.stack([MODES["layer_importance_text"], MODES["layer_importance_visual"]]).astype(np.float64)
    modality = MODES["is_visual"].astype(np.int64)
    for i, j in ((0, 0), (3, 5), (20, 20)):
        thresholds = float(MODES["text_tau_grid"][i]), float(MODES["visual_tau_grid"][j])
        share = skipped_share(MODES["topk_weight"].astype(np.float64), modality, importance, thresholds)
        assert share == pytest.approx(MODES["skip_table"][i, j], abs=2e-3)


def test_a_target_out_of_reach_is_refused() -> None:
    with pytest.raises(InputError, match=r"skip 50\.0% of the expert calls, not 90\.0%"):
        skip_thresholds(lambda i, j: (0.0, 0.5), np.array([0.1]), np.array([0.1]), 0.9)
