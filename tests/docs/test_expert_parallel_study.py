"""The study of expert parallelism: what it runs, without running it."""

from __future__ import annotations

import numpy as np

from docs.studies.expert_parallel import FITTED, cases_of, drawn_routes, first_prompts


def test_cases() -> None:
    routes = first_prompts(drawn_routes(layers=2, experts=8, active=2, prompts=4), 3)
    assert routes.chosen.shape == (2, 3 * 64, 2)
    assert np.bincount(routes.modality).tolist() == [48, 144]
    cases = cases_of(routes, experts=8, devices=2)
    judged = {name.split(" / ")[0] for name in cases} - set(FITTED)
    assert {"eplb", "by modality", "solved, modality", "solved, prompt"} <= judged
    assert all(case.placement.layers == 2 and case.homes.max() == 1 for case in cases.values())
