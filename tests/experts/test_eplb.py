"""EPLB places experts as its authors' code does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from vtc.errors import InputError
from vtc.experts.eplb import balanced_packing, rebalance_experts, replicate_experts

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "eplb.npz")
WEIGHT = GOLDEN["weight"].astype(np.float64)
CASES = sorted(name.removesuffix("_phy2log") for name in GOLDEN if re.match(r"rep\d+_.*_phy2log", name))


@pytest.mark.parametrize("case", CASES)
def test_rebalance(case: str) -> None:
    slots, groups, nodes, devices = (int(number) for number in re.findall(r"\d+", case))
    expert, where, copies = rebalance_experts(WEIGHT, slots, devices, groups, nodes)
    np.testing.assert_array_equal(copies, GOLDEN[f"{case}_logcnt"])
    for layer, slot_expert in enumerate(expert):  # the inverse
        for slot, one in enumerate(slot_expert):
            assert slot in where[layer, one]
    theirs = GOLDEN[f"{case}_phy2log"]
    if slots // (nodes if groups % nodes == 0 else 1) > 16:
        # Copies have equal loads, and torch's sort keeps no order of equals above 16: what each slot carries is equal.
        load = WEIGHT / copies
        np.testing.assert_array_equal(np.take_along_axis(load, expert, 1), np.take_along_axis(load, theirs, 1))
    else:
        np.testing.assert_array_equal(expert, theirs)
        np.testing.assert_array_equal(where, GOLDEN[f"{case}_log2phy"])


@pytest.mark.parametrize("packs", [2, 4, 8])
def test_packing(packs: int) -> None:
    pack, place = balanced_packing(WEIGHT, packs)
    np.testing.assert_array_equal(pack, GOLDEN[f"pack{packs}_index"])
    np.testing.assert_array_equal(place, GOLDEN[f"pack{packs}_rank"])


def test_replication() -> None:
    for name, value in zip(("phy2log", "rank", "logcnt"), replicate_experts(WEIGHT, 21), strict=True):
        np.testing.assert_array_equal(value, GOLDEN[f"replicate21_{name}"])


@pytest.mark.parametrize(
    ("slots", "devices", "groups", "nodes", "words"),
    [
        (18, 4, 1, 1, "4 devices do not divide 18 slots"),
        (16, 4, 3, 1, "3 groups do not divide 16 experts"),
        (18, 3, 4, 2, "2 nodes do not divide 3 devices"),
        (8, 4, 1, 1, "8 slots are too few for 16 experts"),
    ],
)
def test_what_does_not_divide_is_refused(slots: int, devices: int, groups: int, nodes: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        rebalance_experts(WEIGHT, slots, devices, groups, nodes)
