"""Data files are read strictly; the reference scenes are balanced, independent and repeatable."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vtc.data.datasets import load_dataset, read_jsonl
from vtc.data.records import images_outside
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
        ("{", "is not JSON"),
        ("[]", "JSON object"),
        (GOOD | {"answers": "yes"}, "'answers'"),
        (GOOD | {"answers": []}, "'answers'"),
        (GOOD | {"question": 3}, "'question'"),
        (GOOD | {"image": "b.png"}, "b.png"),
        (GOOD | {"chance": 2}, "'chance'"),
        (GOOD | {"evidence": [[1, 2]]}, "'evidence'"),
        (GOOD | {"evidence": [[0, 0, True, 2]]}, "'evidence'"),
        (GOOD | {"evidence": [[3, 0, 2, 2]]}, "ends before it begins"),
        (GOOD | {"evidence": [[0, 0, 10**30, 2]]}, "'evidence'"),
        (GOOD | {"evidence": [[0, 0, 10**400, 2]]}, "401 digits"),
        (json.dumps(GOOD)[:-1] + ', "evidence": [[0, 0, 1e999, 2]]}', "not finite"),
        (json.dumps(GOOD)[:-1] + ', "evidence": [[0, 0, Infinity, 2]]}', "not finite (Infinity)"),
        (json.dumps(GOOD)[:-1] + ', "chance": NaN}', "not finite (NaN)"),
        (json.dumps(GOOD)[:-1] + ', "other": ' + "9" * 5000 + "}", "5000 digits"),
        ("[" * 200_000, "nested more than"),
        (GOOD | {"question": "\ud800"}, "surrogate"),
        (GOOD | {"answers": ["\ud800"]}, "surrogate"),
        (GOOD | {"answers": ["", " "]}, "only blanks"),
        (GOOD | {"id": "i" * 300}, "300 characters"),
        (GOOD | {"id": 10**300}, "301 digits"),
        (GOOD | {"category": "c" * 300}, "300 characters"),
        (GOOD | {"image": "a" * 300 + ".png"}, "File name too long"),
        (GOOD | {"image": "a\0.png"}, "does not exist"),
        ("x" * (2**20 + 1), "1 MiB"),
        ('{"id": "2",', "a line is one whole JSON object"),
        (json.dumps(GOOD)[:-1] + ', "id": "9"}', "gives 'id' twice"),
        (GOOD | {"id": " "}, "'id' is blank"),
        (GOOD | {"category": ""}, "'category' is blank"),
        (GOOD | {"question": "\n"}, "asks nothing"),
        (GOOD | {"image": "."}, "is a directory"),
        (GOOD | {"image": "https://example.com/a.png"}, "is a URL"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "record",
)
def test_bad_lines_are_one_clear_error(tmp_path: Path, record: Any, message: str) -> None:
    write(tmp_path, record, record)
    with pytest.raises(InputError) as caught:
        load_dataset(tmp_path, None, seed=0)
    text = str(caught.value)
    assert "data.jsonl:1: " in text
    assert message in text
    assert "1 more" in text or "MiB" in message
    assert len(text) < 600
    assert "\n" not in text


def test_lines_end_with_a_line_feed_alone(tmp_path: Path) -> None:
    odd = "a\u2028b\u2029c\x85d"
    write(tmp_path)
    text = json.dumps(GOOD | {"question": odd}, ensure_ascii=False) + "\r\n" + json.dumps(GOOD | {"id": 2})
    (tmp_path / "data.jsonl").write_bytes(text.encode("utf-8-sig"))
    items = load_dataset(tmp_path, None, seed=0).items
    assert [(item.id, item.question) for item in items] == [("1", odd), ("2", "q?")]
    assert [item.where for item in items] == [f"{tmp_path / 'data.jsonl'}:{line}" for line in (1, 2)]
    (tmp_path / "data.jsonl").write_bytes(b"\xff\xfe" + text.encode("utf-16-le"))
    with pytest.raises(InputError, match="1: is not UTF-8"):
        load_dataset(tmp_path, None, seed=0)


def test_an_id_is_one_items_alone(tmp_path: Path) -> None:
    write(tmp_path, GOOD, GOOD | {"id": 2}, GOOD | {"id": "2"})
    with pytest.raises(InputError, match=r"data\.jsonl:3: has the id '2' of line 2"):
        load_dataset(tmp_path, None, seed=0)


@pytest.mark.parametrize("way", ["absolute", "up", "link", "linked directory"])
def test_images_lie_in_the_files_directory(tmp_path: Path, way: str) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    data.mkdir()
    other.mkdir()
    Image.new("RGB", (4, 4)).save(other / "b.png")
    (data / "l.png").symlink_to(other / "b.png")
    (data / "l").symlink_to(other)
    names = {"absolute": str(other / "b.png"), "up": "../other/b.png", "link": "l.png", "linked directory": "l/b.png"}
    write(data, GOOD | {"image": names[way]})
    with pytest.raises(InputError, match=r"data\.jsonl:1: image '.*' lies outside .* --images-outside"):
        load_dataset(data, None, seed=0)
    with images_outside():
        assert load_dataset(data, None, seed=0).items[0].load().size == (4, 4)


@pytest.mark.parametrize("name", ["./a.png", "x/../a.png", "in.png", "in/a.png", "{}/a.png"])
def test_images_in_it_may_be_named_in_any_way(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "in.png").symlink_to("a.png")
    (tmp_path / "in").symlink_to(".")
    linked = tmp_path.with_name(tmp_path.name + "-linked")
    linked.symlink_to(tmp_path)
    write(tmp_path, GOOD | {"image": name.format(tmp_path)})
    assert load_dataset(linked, None, seed=0).items[0].load().size == (4, 4)


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge.jsonl").write_text("")
    os.truncate(tmp_path / "huge.jsonl", 3 * 2**30)
    for name, words in (("pipe", "no such file"), ("huge.jsonl", "GiB"), ("d" * 300, "File name too long")):
        with pytest.raises(InputError, match=words):
            load_dataset(tmp_path / name, None, seed=0)
        if name != "d" * 300:
            with pytest.raises(InputError, match=r"GiB|named pipe"):
                read_jsonl(tmp_path / name)


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


@pytest.mark.parametrize(("limit", "seed"), [(0, 0), (-1, 0), (None, -1), (2, -1)])
@pytest.mark.parametrize("name", ["reference", "directory"])
def test_no_samples_and_seeds_below_0_are_refused(tmp_path: Path, name: str, limit: int | None, seed: int) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(InputError, match="give 1 or more, and a seed of 0 or more"):
        load_dataset("reference" if name == "reference" else tmp_path, limit, seed)
