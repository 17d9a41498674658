"""Recipes: ``vtc check`` of shipped ones, with other values, keys, types, lines and overrides."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.fuzz.area import Area
from tests.fuzz.case import Case, Change
from tests.fuzz.hostile import TEXTS, file_change, near, odd, odd_key, places
from vtc.recipe import load_recipe
from vtc.recipe.loading import builtin_recipes

FILE = "recipe.yaml"
LINES = [
    *("keep: &a [*a]", "a: &a [x, x]\nb: [*a, *a]", "<<: {keep: 3}", "? [1, 2]\n: 3", "!!python/object:os.system x"),
    *(
        "!!binary aGFsbG8=",
        "x: !!int ''",
        "x: 2001-13-45",
        "x: 0x" + "f" * 6000,
        "x: " + "9" * 6000,
        "%YAML 9.9",
        "---",
    ),
    *(
        "...",
        "\t",
        "  - kind: prune",
        "- - - -",
        "x: |",
        "x: >",
        "'",
        '"',
        "{",
        "[",
        "}",
        ": :",
        "version: 1",
        "\x1b[2J: 1",
    ),
    *("[" * 5000, "x: " + "{a: " * 3000, "x: .inf", "x: .nan", "x: 1_000", "x: 0o17", "x: 1:30:00", "#", "\ufeff"),
]
RIGHT: list[Change] = [
    {"do": "insert", "file": FILE, "at": 0, "text": "# a comment", "is": "right"},
    {"do": "insert", "file": FILE, "at": 0, "text": "", "is": "right"},
    {"do": "replace", "file": FILE, "old": "version: 1\n", "new": "version:   1 # the first\n", "is": "right"},
]
"""Change nothing that a recipe says."""


def _build(bases: Path) -> None:
    for name, file in builtin_recipes().items():
        (bases / name).mkdir(exist_ok=True)
        (bases / name / FILE).write_bytes(file.read_bytes())


def _draw(random: Random, bases: Path) -> Case:
    base = random.choice(sorted(builtin_recipes()))
    data = yaml.safe_load((bases / base / FILE).read_text(encoding="utf-8"))
    args = ["check", FILE, "--json"]
    kind = random.randrange(10)
    if kind == 0:
        return Case("recipes", base, tuple(random.sample(RIGHT, random.randrange(len(RIGHT) + 1))), tuple(args))
    if kind == 1:
        return Case("recipes", base, (_wrong(random, data),), tuple(args))
    if kind == 2:
        for _ in range(random.randrange(1, 3)):
            args += ["--set", _override(random, data)]
        return Case("recipes", base, ({"do": "copy", "file": FILE, "to": "same.yaml"},), tuple(args))
    return Case("recipes", base, tuple(_change(random, data) for _ in range(random.randrange(1, 5))), tuple(args))


def _change(random: Random, data: Any) -> Change:
    kind = random.randrange(8)
    if kind == 0:
        return {"do": "insert", "file": FILE, "at": random.randrange(30), "text": random.choice(LINES)}
    if kind == 1:
        return {"do": "delete", "file": FILE, "at": random.randrange(30)}
    if kind == 2:
        return file_change(random, FILE)
    path, value = random.choice(places(data))
    if kind == 3:
        return {"do": "drop yaml", "file": FILE, "path": path}
    if kind == 4:
        return {"do": "set yaml", "file": FILE, "path": (*path[:-1], odd_key(random)), "value": odd(random)}
    return {"do": "set yaml", "file": FILE, "path": path, "value": near(random, value)}


def _wrong(random: Random, data: Any) -> Change:
    """Something that every recipe must be refused for."""
    whole: list[Change] = [
        {"do": "set yaml", "file": FILE, "path": ("version",), "value": random.choice([0, 2, "1", None, [1]])},
        {"do": "drop yaml", "file": FILE, "path": ("version",)},
        {"do": "set yaml", "file": FILE, "path": ("nome",), "value": odd(random)},
        {"do": "set yaml", "file": FILE, "path": ("stages",), "value": random.choice([3, "prune", {"kind": "prune"}])},
        {"do": "insert", "file": FILE, "at": 99, "text": "version: 1"},
        {"do": "insert", "file": FILE, "at": 99, "text": "x: !!python/name:os.system"},
        {"do": "write", "file": FILE, "text": ""},
        {"do": "extend", "file": FILE, "bytes": 3 * 2**30},
        {"do": "link", "file": FILE, "to": "/dev/zero"},
        {"do": "fifo", "file": FILE},
    ]
    if data["stages"]:
        number = random.randrange(len(data["stages"]))
        keys: list[tuple[str, Any]] = [
            ("kepe", 3),
            ("kind", "prunne"),
            ("kind", 3),
            (random.choice("xyz"), odd(random)),
        ]
        key, value = random.choice(keys)
        whole.append({"do": "set yaml", "file": FILE, "path": ("stages", number, key), "value": value})
    return {**random.choice(whole), "is": "wrong"}


def _override(random: Random, data: Any) -> str:
    path, _ = random.choice(places(data))
    key = ".".join(map(str, path)) if random.random() < 0.8 else random.choice(TEXTS)
    value = random.choice([*LINES, *TEXTS, str(odd(random))])
    return f"{key}={value}".replace("\0", "").encode("utf-8", "replace").decode()


def _result(case: Case, code: int, out: str, place: Path, bases: Path) -> str:
    """A recipe that says the same has the same digest."""
    if code or case.expects != "accepted":
        return ""
    digest = load_recipe(case.base).digest
    return "" if json.loads(out)["digest"] == digest else "another digest of the same recipe"


AREA = Area(_build, _draw, _result)
