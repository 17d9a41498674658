"""Data files are read strictly; the reference scenes are balanced, independent and repeatable."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vtc.data.datasets import load_dataset
from vtc.errors import InputError

GOOD: dict[str, Any] = {
    "id": "1",
    "image": "a.png",
    "question": "q?",
    "answers": ["yes"],
    "category": "presence",
}


def write(directory: Path, *records: Any) -> Path:
    Image.new("RGB", (4, 4)).save(directory / "a.png")
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (directory / "data.jsonl").write_text("\n".join(lines) + "\n")
    return directory


def test_a_directory_is_read(tmp_path: Path) -> None:
    write(
        tmp_path,
        GOOD | {"evidence": [[0, 0, 2, 2]], "chance": 0.5},
        "",
        GOOD | {"id": 2, "category": "detail"},
    )
    data = load_dataset(tmp_path, None, seed=0)
    assert [item.id for item in data.items] == ["1", "2"]
    assert data.items[0].evidence == ((0, 0, 2, 2),)
    assert (data.images, data.categories) == (1, ["presence", "detail"])
    assert load_dataset(tmp_path / "data.jsonl", None, seed=0).sha256 == data.sha256


@pytest.mark.parametrize("field", ["id", "image", "question", "answers", "category"])
def test_a_missing_field_is_named_with_file_and_line(tmp_path: Path, field: str) -> None:
    write(tmp_path, GOOD, {key: value for key, value in GOOD.items() if key != field})
    with pytest.raises(InputError, match=rf"data\.jsonl:2: missing field '{field}'"):
        load_dataset(tmp_path, None, seed=0)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        (GOOD | {"answers": "yes"}, "'answers'"),
        (GOOD | {"answers": []}, "'answers'"),
        (GOOD | {"question": 3}, "'question'"),
        (GOOD | {"image": "b.png"}, "b.png"),
        (GOOD | {"chance": 2}, "'chance'"),
        (GOOD | {"evidence": [[1, 2]]}, "'evidence'"),
    ],
)
def test_bad_lines_are_one_clear_error(tmp_path: Path, record: Any, message: str) -> None:
    write(tmp_path, record, record)
    with pytest.raises(InputError) as caught:
        load_dataset(tmp_path, None, seed=0)
    text = str(caught.value)
    assert "data.jsonl:1: " in text
    assert message in text
    assert "1 more" in text
    assert "\n" not in text


def test_no_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.jsonl"):
        load_dataset(tmp_path, None, seed=0)
    with pytest.raises(InputError, match="no items"):
        load_dataset(write(tmp_path), None, seed=0)


def test_a_limit_draws_a_subset_by_seed_and_keeps_the_order(tmp_path: Path) -> None:
    write(tmp_path, *[GOOD | {"id": str(n)} for n in range(50)])
    draws = [[item.id for item in load_dataset(tmp_path, 10, seed).items] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] == sorted(draws[0], key=int)
    assert len(set(draws[0])) == 10
    assert draws[0] != [str(n) for n in range(10)]


def test_reference_scenes_are_balanced_independent_and_repeatable() -> None:
    data = load_dataset("reference", 24, seed=3)
    counts = [sum(item.category == category for item in data.items) for category in data.categories]
    assert len(data.items) == 24 == data.images
    assert len(counts) == 6
    assert max(counts) - min(counts) <= 1
    assert data.sha256 == load_dataset("reference", 24, seed=3).sha256 != load_dataset("reference", 24, seed=4).sha256
    assert all(item.evidence and item.chance for item in data.items)


def test_calibration_draws_from_the_training_writers() -> None:
    train, test = (load_dataset("reference", 3, seed=0, split=split) for split in ("train", "test"))
    assert all(item.id.startswith("train-") for item in train.items)
    assert train.items[0].load().tobytes() != test.items[0].load().tobytes()
