"""The study of budgets: what a policy comes to, from the answers at every budget."""

from __future__ import annotations

import numpy as np

from docs.studies.adaptive import TABLES, Asked


def test_policies_are_judged_on_the_answers_at_every_budget() -> None:
    right = np.array([[1.0, 1, 1], [0, 1, 1], [0, 0, 0], [0, 1, 0]])
    entropy = np.array([[0.1, 0.1, 0.1], [0.9, 0.2, 0.1], [0.9, 0.9, 0.9], [0.1, 0.1, 0.1]])
    prefill = np.tile([10.0, 20.0, 40.0], (4, 1))
    asked = Asked((4, 8, 16), right, entropy, prefill + 1, prefill)
    assert (asked.fixed(1)["entering"], asked.fixed(1)["prefilled"], asked.fixed(1)["accuracy"]) == (8, 8, 0.75)
    climbing = asked.climbing(0.5)  # 4, then 4 and 8, then all three, then 4
    assert climbing["entering"] == (4 + 8 + 16 + 4) / 4
    assert climbing["prefilled"] == (4 + 12 + 28 + 4) / 4
    assert climbing["passes"] == 7 / 4
    assert climbing["accuracy"] == 0.5
    assert climbing["p50_ms"] == (11 + 31) / 2  # 11, 10 + 21, 10 + 20 + 41, 11
    oracle = asked.oracle()
    assert (oracle["entering"], oracle["accuracy"]) == ((4 + 8 + 4 + 8) / 4, 0.75)
    found = {
        "fixed": {"4": asked.fixed(0), "8": asked.fixed(1), "16": asked.fixed(2)},
        "entropy": [climbing],
        "oracle": oracle,
        "repeats": {"4": 0.5},
    }
    _, make = TABLES["adaptive"]
    rows = make({"adaptive": found}).splitlines()
    assert "| fixed, 8 | 8.0 | 8.0 | 75.0 % | 21.0 | 21.0 |" in rows
    assert rows[-1].startswith("| any of 3 answers at one budget, the first greedy, the others drawn: 4 | 4 |")
