"""Placements: what makes one, files, solvers, and the traffic that they cause."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.experts.uses import synthetic_routes, use_of
from vtc.errors import InputError
from vtc.experts.placement import (
    ExpertMap,
    place_balanced,
    place_by_modality,
    place_contiguous,
    place_eplb,
    place_on_devices,
    place_shuffled,
)
from vtc.experts.placement_files import (
    expert_order,
    load_placement,
    save_for_sglang,
    save_for_tensorrt_llm,
    save_placement,
)
from vtc.experts.placing import place
from vtc.experts.solving import align_devices, place_near_homes, place_together
from vtc.experts.specialisation import visual_share
from vtc.experts.statistics import Floats, Numbers, Routes, use_digest
from vtc.experts.traffic import (
    calls_by_home,
    expected_calls,
    homes_by_modality,
    homes_by_sample,
    replay,
    slots_of_calls,
)
from vtc.recipe.experts import METHODS, ExpertPlacement, Method

ROUTES = synthetic_routes()
USE = use_of(ROUTES, 16)
LOAD = USE.chosen.sum(axis=1)
LEAVES_OUT = json.dumps(
    {"format": "vtc-expert-placement-1", "model": "", "statistics": "", "method": "", "experts": 2, "devices": 2}
    | {"physical_to_logical_map": [[0, 0]]}
)


def devices_of(placement: ExpertMap, layer: int = 0) -> Numbers:
    return placement.slots_of(layer)[:, 0] // placement.room


def most_load(placement: ExpertMap) -> Floats:
    loads = np.take_along_axis(LOAD, placement.expert_of_slot, 1).reshape(placement.layers, placement.devices, -1)
    return np.asarray(loads.sum(axis=2).max(axis=1) / loads.sum(axis=2).mean(axis=1))


def test_every_builder_places_every_expert() -> None:
    placements = [
        place_contiguous(2, 16, 4),
        place_shuffled(2, 16, 4, seed=3),
        place_balanced(LOAD, 4),
        place_eplb(LOAD, 4, copies=4),
        place_by_modality(visual_share(USE.chosen), 4),
    ]
    assert devices_of(placements[0]).tolist() == np.repeat(np.arange(4), 4).tolist()
    assert (placements[1].expert_of_slot[0] != placements[1].expert_of_slot[1]).any()
    assert (most_load(placements[2]) <= most_load(placements[1])).all()
    assert placements[3].slots == 20
    assert (placements[3].slots_of(0) >= 0).sum() == 20
    share = visual_share(USE.chosen)[0][placements[4].expert_of_slot[0]].reshape(4, 4)
    assert (share.max(axis=1)[:-1] <= share.min(axis=1)[1:]).all()


@pytest.mark.parametrize(
    ("slots", "experts", "devices", "words"),
    [
        ([[0, 1, 2, 2]], 4, 2, "layer 0: expert 3 has no slot"),
        ([[0, 1, 2, 4]], 4, 2, "layer 0: a slot holds expert 4; the experts are 0 to 3"),
        ([[0, 1, 2, 3]], 4, 3, "3 devices do not divide 4 slots"),
    ],
)
def test_a_placement_that_cannot_work_is_refused(
    slots: list[list[int]], experts: int, devices: int, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        ExpertMap(np.array(slots), experts, devices)


def test_uneven_devices_are_refused() -> None:
    with pytest.raises(InputError, match="4 experts are not shared out evenly to 2 devices"):
        place_on_devices(np.array([[0, 0, 0, 1]]), 2, "mine")


def test_files(tmp_path: Path) -> None:
    eplb = place_eplb(LOAD, 2, copies=2)
    placement = ExpertMap(eplb.expert_of_slot, 16, 2, eplb.method, model="a" * 64, statistics="b" * 64)
    path = tmp_path / "placement.json"
    save_placement(path, placement)
    loaded = load_placement(path)
    np.testing.assert_array_equal(loaded.expert_of_slot, placement.expert_of_slot)
    assert (loaded.model, loaded.statistics, loaded.devices, loaded.method) == ("a" * 64, "b" * 64, 2, "eplb, 2 copies")
    loaded.check_model("a" * 64, 2, 16, path)
    with pytest.raises(InputError, match=r"placement\.json: a placement for model aaaaaaaaaaaa, not cccccccccccc"):
        loaded.check_model("c" * 64, 2, 16, path)
    with pytest.raises(InputError, match="2 layers of 16 experts, but the model has 3 of 16"):
        loaded.check_model("a" * 64, 3, 16, path)
    save_for_sglang(path, placement)
    assert json.loads(path.read_text()) == {"physical_to_logical_map": placement.expert_of_slot.tolist()}
    save_for_sglang(path, placement, decoder_layers=[1, 3])
    rows = json.loads(path.read_text())["physical_to_logical_map"]
    assert rows[1::2] == placement.expert_of_slot.tolist()
    assert rows[0] == rows[2] == [*range(16), 0, 1]
    with pytest.raises(InputError, match=r"2 layers is not of decoder layers \[1\]"):
        save_for_sglang(path, placement, decoder_layers=[1])
    save_for_tensorrt_llm(path, placement, decoder_layers=[1, 2])
    llm = yaml.safe_load(path.read_text())
    assert llm["num_slots"] == 18
    assert llm["initial_global_assignments"] == {1: eplb.expert_of_slot[0].tolist(), 2: eplb.expert_of_slot[1].tolist()}
    with pytest.raises(InputError, match="2 copies of experts cannot be put into an order"):
        expert_order(placement)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "not a placement of experts"),
        ('{"physical_to_logical_map": [[0]]}', "not a placement of experts"),
        (LEAVES_OUT, r"p\.json: layer 0: expert 1 has no slot"),
    ],
)
def test_a_file_that_holds_none_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "p.json"
    with pytest.raises(InputError, match="no such file"):
        load_placement(path)
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        load_placement(path)


def test_traffic_by_hand() -> None:
    """Experts 0 and 1 are on device 0, experts 2 and 3 on device 1; two text tokens, two visual ones."""
    chosen = np.array([[[0, 1], [0, 2], [2, 3], [2, 3]]])
    routes = Routes(chosen, np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]))
    placement = place_contiguous(1, 4, 2)
    by_modality = replay(routes, placement, homes_by_modality(routes, 2))
    assert (by_modality.text.tokens_with_any_remote_expert, by_modality.text.remote_calls) == (0.5, 0.25)
    assert (by_modality.visual.tokens_with_any_remote_expert, by_modality.visual.load_max_over_mean) == (0, 2)
    assert by_modality.all.remote_devices_per_token == 0.25
    assert by_modality.calls.tolist() == [[3, 5]]
    assert by_modality.sent.tolist() == [[[0, 1], [0, 0]]]
    assert by_modality.experts.tolist() == [[2, 2]]
    homes = homes_by_sample(routes, 2)
    assert homes.tolist() == [0, 0, 0, 1]
    by_sample = replay(routes, placement, homes)
    assert by_sample.all.tokens_with_any_remote_expert == 0.5
    assert by_sample.all.remote_calls == 3 / 8
    assert by_sample.sent.tolist() == [[[0, 2], [0, 0]]]
    assert json.loads(json.dumps(by_sample.to_json()))["visual"]["tokens"] == 2


def test_homes_on_four_devices() -> None:
    modality, sample = np.array([0, 1] * 4), np.repeat([3, 5, 7, 9], 2)
    routes = Routes(np.zeros((1, 8, 1), np.int64), modality, sample)
    assert homes_by_modality(routes, 4).tolist() == [0, 2, 1, 3, 0, 2, 1, 3]
    assert homes_by_modality(routes, 4, visual_devices=3).tolist() == [0, 1, 0, 2, 0, 3, 0, 1]
    with pytest.raises(InputError, match="2 of 2 devices for visual tokens"):
        homes_by_modality(routes, 2, visual_devices=2)


def test_a_copy_at_home_answers_and_others_share() -> None:
    """Expert 0 has a copy on devices 0, 1 and 2; device 3 calls them in turn."""
    placement = ExpertMap(np.array([[0, 1, 0, 2, 0, 3, 4, 5]]), 6, 4)
    chosen = np.zeros((8, 1), np.int64)
    slots = slots_of_calls(placement, 0, chosen, np.array([0, 1, 2, 3, 3, 3, 3, 3]))
    assert slots[:3, 0].tolist() == [0, 2, 4]
    assert np.bincount(slots[3:, 0] // 2, minlength=4).tolist() == [2, 2, 1, 0]


def test_the_solver_finds_what_enumeration_finds() -> None:
    homes = homes_by_modality(ROUTES, 2)
    pairs = calls_by_home(ROUTES, homes, 16, 2)
    solved = place_near_homes(pairs, 2, tolerance=0.1)
    assert (solved.gap < 1e-3).all()
    best = 0.0
    limit = solved.limit[0] * LOAD[0].sum() / 2
    for group in combinations(range(16), 8):
        first = np.isin(np.arange(16), group)
        if max(LOAD[0][first].sum(), LOAD[0][~first].sum()) <= limit:
            best = max(best, pairs[0][first, 0].sum() + pairs[0][~first, 1].sum())
    found = pairs[0][np.arange(16), devices_of(solved.placement)].sum()
    assert found == pytest.approx(best, rel=1e-3)
    assert (most_load(solved.placement) <= 1.1 + 1e-6).all()


def test_solved_placements_send_less_at_the_same_load() -> None:
    pairs = calls_by_home(ROUTES, homes := homes_by_modality(ROUTES, 4), 16, 4)
    balanced = align_devices(place_balanced(LOAD, 4), pairs)
    solved = place_near_homes(pairs, 4, tolerance=0.1).placement
    traffic = [replay(ROUTES, one, homes).all for one in (place_balanced(LOAD, 4), balanced, solved)]
    assert traffic[0].remote_calls > traffic[1].remote_calls > traffic[2].remote_calls
    assert traffic[0].load_max_over_mean == traffic[1].load_max_over_mean
    together = place_together(USE.together.sum(axis=1), LOAD, 4, tolerance=0.1)
    assert np.isnan(together.gap).all()
    assert (most_load(together.placement) <= together.limit).all()
    homes = homes_by_sample(ROUTES, 4)
    sent = [
        sum(replay(ROUTES, one, (homes + turn) % 4).all.remote_devices_per_token for turn in range(4))
        for one in (balanced, together.placement)
    ]
    assert sent[1] < sent[0]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_places_from_use(method: Method) -> None:
    copies = 4 if method == "eplb" else 0
    placement = place(USE, ExpertPlacement(devices=4, placement=method, homes="modality", copies=copies), "a" * 64)
    assert (placement.model, placement.statistics) == ("a" * 64, use_digest(USE))
    assert (placement.layers, placement.slots) == (2, 16 + copies)
    if method == "solved":
        assert "gap at most 0.0" in placement.method
        assert "no bound known" in place(USE, ExpertPlacement(devices=4, placement="solved")).method
    with pytest.raises(InputError, match="3 devices do not divide 16 experts"):
        place(USE, ExpertPlacement(devices=3, placement=method))


def test_copies_are_made_by_eplb_alone() -> None:
    with pytest.raises(ValueError, match="copies of experts are for placement: eplb"):
        ExpertPlacement(devices=4, placement="modality", copies=4)


def test_digests_tell_uses_apart() -> None:
    assert use_digest(USE) == use_digest(use_of(ROUTES, 16))
    assert use_digest(USE) != use_digest(use_of(synthetic_routes(seed=1), 16))


def test_calls_that_sums_expect() -> None:
    """Eight prompts of one length on four devices: what sums expect is what routes count, on average over devices."""
    counted = calls_by_home(ROUTES, homes_by_modality(ROUTES, 4), 16, 4)
    expected = expected_calls(USE.chosen, 4)
    np.testing.assert_allclose(expected[..., :2].sum(axis=2), counted[..., :2].sum(axis=2))
    np.testing.assert_allclose(expected[..., 2], counted[..., 2:].mean(axis=2))
