"""The report on models of known accuracy."""

import json
import math

import pytest

from tests.evaluate.fakes import VOCABULARY, contestant, dataset
from vtc.errors import ModelError
from vtc.evaluate.asking import Effort
from vtc.evaluate.validate import Thresholds, validate
from vtc.inputs.generation import GenerationRules


def test_figures_of_models_of_known_accuracy() -> None:
    data = dataset(200)
    original = contestant("original", data, wrong=set(range(20)), image_tokens=256)
    compressed = contestant("small", data, wrong=set(range(56)) - {0, 1})
    report = validate(original, compressed, [], data)
    result = report["results"]["small"]
    assert result["base"] == pytest.approx(0.9)
    assert result["accuracy"] == pytest.approx(0.73)
    assert result["retention"] == pytest.approx(146 / 180)
    assert (result["lost"], result["gained"], result["n"]) == (36, 2, 200)
    assert result["ci95"][0] < 146 / 180 < result["ci95"][1]
    assert result["visual_tokens"] == 16
    assert report["original"]["visual_tokens"] == 256


def test_capabilities_are_reported_apart_and_add_up() -> None:
    data = dataset(100, categories=2)
    wrong = {n for n in range(100) if n % 2}
    report = validate(contestant("o", data), contestant("c", data, wrong=wrong), [], data)
    parts = report["results"]["c"]["by_capability"]
    assert parts["capability0"]["accuracy"] == 1.0
    assert parts["capability1"]["retention"] == 0.0
    assert sum(part["n"] for part in parts.values()) == 100


def test_the_same_model_retains_everything_and_passes() -> None:
    data = dataset(100)
    report = validate(contestant("o", data), contestant("c", data), [], data, limits=Thresholds(0.95, 0.99, 0.01))
    assert report["gate"]["status"] == "pass"
    assert [check["name"] for check in report["gate"]["checks"]] == [
        "retention",
        "top1_agreement",
        "kld_mean",
    ]
    assert report["results"]["c"]["ci95"] == [1.0, 1.0]
    assert report["fidelity"]["kld_mean"] == 0.0
    assert report["fidelity"]["top1_agreement"] == 1.0
    assert report["fidelity"]["answer_agreement"] == 1.0


@pytest.mark.parametrize(("wrong", "status"), [(0, "pass"), (20, "inconclusive"), (80, "fail")])
def test_gate_outcomes(wrong: int, status: str) -> None:
    data = dataset(400)
    report = validate(contestant("o", data), contestant("c", data, wrong=set(range(wrong))), [], data)
    assert report["gate"]["status"] == status


def test_one_image_asked_many_times_is_inconclusive() -> None:
    data = dataset(400, per_image=400)
    report = validate(contestant("o", data), contestant("c", data), [], data)
    assert report["gate"]["status"] == "inconclusive"


def test_divergence_is_the_analytic_value_on_the_astray_items() -> None:
    data = dataset(40)
    astray = frozenset(f"<image>q{n}" for n in range(10))
    report = validate(
        contestant("o", data, sharpness=4.0), contestant("c", data, sharpness=4.0, astray=astray), [], data
    )
    mass = math.exp(4) + VOCABULARY - 1
    moved = 4.0 * (math.exp(4) - 1) / mass
    fidelity = report["fidelity"]
    assert fidelity["kld_mean"] == pytest.approx(moved / 4, rel=1e-5)
    assert fidelity["kld_p99"] == pytest.approx(moved, rel=1e-5)
    assert fidelity["top1_agreement"] == pytest.approx(0.75)
    assert fidelity["tokens"] == 40 * 3  # two answer tokens and the end


def test_baselines_stand_beside_and_are_compared_in_pairs() -> None:
    data = dataset(100)
    rival = contestant("random", data, wrong=set(range(50)), image_tokens=16)
    report = validate(contestant("o", data), contestant("c", data, wrong=set(range(10))), [rival], data)
    entry = report["baselines"]["random"]
    assert entry["accuracy"] == 0.5
    assert entry["after_by"] == pytest.approx(0.4)
    low, high = entry["after_by_ci95"]
    assert low < 0.4 < high


def test_the_original_alone_can_be_measured() -> None:
    data = dataset(30)
    report = validate(contestant("o", data, wrong={0, 1, 2}), None, [], data)
    assert report["results"]["o"]["accuracy"] == pytest.approx(0.9)
    assert report["gate"] == {"status": "pass", "checks": []}


def test_the_report_says_what_rules_answers_follow() -> None:
    data = dataset(4)
    ruled = contestant("o", data, generation_rules=GenerationRules(repetition_penalty=1.1, suppress_tokens=(5, 6)))
    report = validate(ruled, None, [], data)
    assert report["protocol"]["decoding"] == "greedy, repetition_penalty 1.1, suppress_tokens of 2"


def test_an_original_that_gets_nothing_right_cannot_be_retained() -> None:
    data = dataset(100)
    report = validate(contestant("o", data, wrong=set(range(100))), contestant("c", data), [], data)
    assert report["results"]["c"]["retention"] is None
    assert report["gate"]["status"] == "inconclusive"


def test_questions_are_asked_in_batches_and_progress_is_told() -> None:
    data = dataset(10)
    told: list[tuple[str, int, int]] = []
    original = contestant("o", data)
    validate(original, None, [], data, effort=Effort(batch_size=4), progress=lambda *step: told.append(step))
    assert original.predictor.batches == [4, 4, 2]  # type: ignore[attr-defined]
    assert told[-1] == ("o: answers", 10, 10)


def test_report_is_plain_json_and_repeats_itself() -> None:
    data = dataset(50)
    reports = [
        json.dumps(validate(contestant("o", data), contestant("c", data, wrong={1, 5}), [], data), allow_nan=False)
        for _ in range(2)
    ]
    assert reports[0] == reports[1]


def test_a_model_of_another_vocabulary_is_refused() -> None:
    data = dataset(5)
    with pytest.raises(ModelError, match="vocabulary"):
        validate(contestant("o", data), contestant("c", data, vocabulary=13), [], data)
