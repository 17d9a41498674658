"""Values, texts and bytes that programs stumble over."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.case import Change

NUMBERS: list[Any] = [
    *(0, 1, -1, 2, 3, 7, 255, 256, 65535, 2**31 - 1, 2**31, -(2**31), 2**32, 2**63 - 1, 2**63, -(2**63), 2**64),
    *(10**12, 10**30, 10**400, -(10**4000), 0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, 1.5, 0.9999999999999999),
    *(float("inf"), float("-inf"), float("nan")),
]
TEXTS = [
    *("", " ", "\n", "\t", "0", "1", "-1", "1e9", "nan", "null", "true", "~", "none", "auto", "all"),
    *("a" * 300, "a" * 5000, "é" * 200, "猫", "\u202e", "\u2028", "\x85", "\ufeff", "\U0001f600", "a\u0301"),
    *(
        "\x1b[31mred\x1b[0m",
        "\x1b]0;title\x07",
        "\x00",
        "\x7f",
        "\x9b2J",
        "a\rb",
        "[/x]",
        "[bold]",
        "%s%n",
        "{0.__class__}",
    ),
    *(
        "../x",
        "/etc/passwd",
        "/dev/zero",
        "./x",
        "a/../../x",
        "..",
        ".",
        "C:\\x",
        "\\\\host\\x",
        "~",
        "file:///etc/passwd",
    ),
    *("<image>", "<|image_pad|>", "</s>", "{{ 1/0 }}", "${HOME}", "$(id)", "`id`", "__import__('os')", "\ud800"),
]


def odd(random: Random, depth: int = 2) -> Any:
    """A JSON value of any type."""
    kind = random.randrange(9 if depth else 5)
    if kind < 2:
        return random.choice(NUMBERS)
    if kind < 4:
        return random.choice(TEXTS)
    if kind == 4:
        return random.choice([None, True, False])
    if kind == 5:
        return [odd(random, depth - 1) for _ in range(random.randrange(4))]
    if kind == 6:
        return {odd_key(random): odd(random, depth - 1) for _ in range(random.randrange(4))}
    if kind == 7:
        return [odd(random, 0)] * random.choice([1, 2, 1000])
    return nested(random.choice([5, 50, 400]))


def odd_key(random: Random) -> str:
    """A key that nobody expects."""
    return random.choice(TEXTS) if random.random() < 0.5 else f"k{random.randrange(100)}"


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def near(random: Random, value: Any) -> Any:
    """A value of the same type as another, or an odd one."""
    if random.random() < 0.4:
        return odd(random)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice([0, -value, value + 1, value - 1, value * 2, value * 10**6, [value], str(value)])
    if isinstance(value, float):
        return random.choice([-value, value * 2, value / 3, value * 1e300, str(value), float("nan"), float("inf")])
    if isinstance(value, str):
        return random.choice([value.upper(), value + "x", value[:-1], value * 50, [value], value + "\x1b[2J"])
    if isinstance(value, list):
        return random.choice([[], value[:-1], value + value, value[::-1], {"0": value}, [value]])
    if isinstance(value, dict):
        return random.choice([{}, [value], None, dict(list(value.items())[1:])])
    return odd(random)


def places(data: Any, path: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], Any]]:
    """Every place in JSON data, with its value."""
    found = [(path, data)] if path else []
    inner = data.items() if isinstance(data, dict) else enumerate(data[:8]) if isinstance(data, list) else ()
    for key, value in inner:
        found += places(value, (*path, key))
    return found


def json_change(random: Random, base: Path, file: str, do: str = "") -> Change:
    """Another value, a missing one or one too many somewhere in a JSON file of a base."""
    path, value = random.choice(places(json.loads((base / file).read_text(encoding="utf-8"))))
    if random.random() < 0.2:
        return {"do": f"drop{do}", "file": file, "path": path}
    if random.random() < 0.15:
        return {"do": f"set{do}", "file": file, "path": (*path[:-1], odd_key(random)), "value": odd(random)}
    return {"do": f"set{do}", "file": file, "path": path, "value": near(random, value)}


def file_change(random: Random, file: str) -> Change:
    """Other bytes in a file, or something else in its place."""
    kind = random.randrange(7)
    if kind < 3:
        return {"do": "flip", "file": file, "at": random.randrange(2**31), "bits": random.randrange(1, 256)}
    if kind == 3:
        return {"do": "cut", "file": file, "share": round(random.random(), 3)}
    if kind == 4:
        return {"do": "write", "file": file, "hex": random.randbytes(random.choice([0, 1, 8, 200])).hex()}
    if kind == 5:
        return {"do": "write", "file": file, "text": random.choice(ODD_FILES)}
    return random.choice(
        [
            {"do": "remove", "file": file},
            {"do": "fifo", "file": file},
            {"do": "directory", "file": file},
            {"do": "link", "file": file, "to": "/dev/zero"},
            {"do": "link", "file": file, "to": "/nowhere"},
            {"do": "link", "file": file, "to": Path(file).name},
            {"do": "extend", "file": file, "bytes": 3 * 2**30},
        ]
    )


ODD_FILES = [
    *("", "null", "[]", "{}", "0", '""', "NaN", "{", "[" * 100_000, '{"a":' * 20_000, "1" * 10_000, '{"a": 1, "a": 2}'),
    *("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "<html>404</html>", "\x00" * 64),
]
"""Contents that a file should not have."""
