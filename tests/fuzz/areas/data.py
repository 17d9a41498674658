"""Data sets: ``data.jsonl`` with other values, lines and images."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from PIL import Image

from tests.fuzz.area import Area
from tests.fuzz.case import Case, Change
from tests.fuzz.hostile import file_change, near, odd, odd_key, places

FILE = "set/data.jsonl"
ROWS = 4
LINES = [
    *(
        "{",
        "[]",
        "null",
        "3",
        '"x"',
        "{}",
        "[" * 50_000,
        '{"a":' * 20_000,
        '{"id": ' + "9" * 10_000 + "}",
        "\x00",
        "\ud800",
    ),
    *('{"id": 1, "id": 2}', "// a comment", "'id': 1", '{"id": NaN}', "\x1b[2J", "é" * 3000),
]


def _row(number: int) -> dict[str, object]:
    return {
        "id": str(number),
        "image": f"{number % 2}.png",
        "question": "what is it?",
        "answers": ["a cat", "cat"],
        "category": "things",
        "evidence": [[0, 0, 4, 4]],
        "chance": 0.5,
    }


def _build(bases: Path) -> None:
    place = bases / "plain" / "set"
    place.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        Image.new("RGB", (8, 8), (number * 200, 9, 9)).save(place / f"{number}.png")
    Image.new("RGB", (8, 8)).save(place.parent / "outside.png")
    (place / "data.jsonl").write_text("".join(json.dumps(_row(n)) + "\n" for n in range(ROWS)), encoding="utf-8")


def _draw(random: Random, bases: Path) -> Case:
    kind = random.randrange(6)
    if kind == 0:
        changes = [{**_right(random), "is": "right"}]
    elif kind == 1:
        changes = [{**_wrong(random), "is": "wrong"}]
    else:
        changes = [_change(random) for _ in range(random.randrange(1, 5))]
    return Case("data", "plain", tuple(changes), ("read_data", "set"))


def _change(random: Random) -> Change:
    kind, line = random.randrange(8), random.randrange(ROWS)
    if kind == 0:
        return {"do": "insert", "file": FILE, "at": line, "text": random.choice(LINES)}
    if kind == 1:
        return file_change(random, random.choice([FILE, "set/0.png"]))
    path, value = random.choice(places(_row(line)))
    if kind == 2:
        return {"do": "drop row", "file": FILE, "line": line, "path": path}
    if kind == 3:
        path, value = (odd_key(random),), odd(random)
    ascii_only = random.random() < 0.5
    return {
        "do": "set row",
        "file": FILE,
        "line": line,
        "path": path,
        "value": near(random, value),
        "ascii": ascii_only or kind == 3,
    }


def _right(random: Random) -> Change:
    line = random.randrange(ROWS)
    question = random.choice(["a\u2028b", "a\x85b", "a\u2029b", "猫?", "é", "a\x1cb", "a\x0bb", "is it \\n ?"])
    return random.choice(
        [
            {"do": "set row", "file": FILE, "line": line, "path": ("question",), "value": question, "ascii": False},
            {"do": "insert", "file": FILE, "at": line, "text": ""},
            {"do": "replace", "file": FILE, "old": "\n", "new": "\r\n"},
            {"do": "replace", "file": FILE, "old": '{"id": "0"', "new": '\ufeff{"id": "0"'},
            {"do": "drop row", "file": FILE, "line": line, "path": ("evidence",)},
            {"do": "drop row", "file": FILE, "line": line, "path": ("chance",)},
        ]
    )


def _wrong(random: Random) -> Change:
    line = random.randrange(ROWS)
    field, value = random.choice(
        [
            ("image", "../outside.png"),
            ("image", "nowhere.png"),
            ("image", "/etc/passwd"),
            ("image", 3),
            ("id", "0" if line else "1"),
            ("id", None),
            ("question", ["x"]),
            ("answers", []),
            ("answers", "cat"),
            ("answers", [3]),
            ("category", 3),
            ("chance", 1.5),
            ("chance", float("nan")),
            ("evidence", [[0, 0, float("inf"), 4]]),
            ("evidence", [[float("nan")] * 4]),
            ("evidence", [[0, 0, 10**400, 4]]),
            ("evidence", [[0, 0, 4]]),
            ("evidence", "box"),
        ]
    )
    return random.choice(
        [
            {"do": "set row", "file": FILE, "line": line, "path": (field,), "value": value},
            {"do": "drop row", "file": FILE, "line": line, "path": (random.choice(["id", "image", "question"]),)},
            {"do": "insert", "file": FILE, "at": line, "text": random.choice(LINES[:10])},
            {"do": "link", "file": "set/0.png", "to": "../outside.png"},
            {"do": "link", "file": FILE, "to": "/dev/zero"},
            {"do": "fifo", "file": FILE},
            {"do": "fifo", "file": "set/0.png"},
            {"do": "write", "file": FILE, "text": ""},
            {"do": "write", "file": FILE, "hex": "ff" * 9},
        ]
    )


def _result(case: Case, code: int, out: str, place: Path, bases: Path) -> str:
    """No line is lost, and questions are what the file says."""
    if code or case.expects != "accepted":
        return ""
    asked = json.loads(out)["questions"]
    changed = [change["value"] for change in case.changes if list(change.get("path", ())) == ["question"]]
    if len(asked) != ROWS:
        return f"{len(asked)} questions of {ROWS}"
    return "" if all(question in asked for question in changed) else "another question than the file's"


AREA = Area(_build, _draw, _result)
