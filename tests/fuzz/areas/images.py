"""Images: files of each format, damaged, cut off, and with headers that claim more than there is."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from tests.fuzz.area import Area
from tests.fuzz.case import Case, Change
from tests.fuzz.hostile import file_change

SIZE = 32, 24
LIMIT = 64 * 2**20
"""Pixels of an image that is accepted."""
FORMATS = ("png", "jpg", "webp", "tif", "gif", "bmp", "ppm", "pgm")
DEEP = {"deep.pgm": ">u2", "deep.png": "<u2", "deep.tif": "<u2", "int.tif": "<i4", "float.tif": "<f4"}
"""Files of more than eight bits."""
MOVING = ("moving.gif", "pages.tif", "moving.webp", "moving.png")


def _build(bases: Path) -> None:
    place = bases / "all"
    place.mkdir(exist_ok=True)
    ramp = np.tile(np.linspace(0, 255, SIZE[0]).astype(np.uint8), (SIZE[1], 1))
    picture = Image.fromarray(np.stack([ramp] * 3, axis=-1))
    for kind in FORMATS:
        (picture.convert("L") if kind == "pgm" else picture).save(place / f"plain.{kind}")
    for name, dtype in DEEP.items():
        deep = ramp.astype(np.float32) / 255 * (1 if dtype == "<f4" else 65535)
        if name == "deep.pgm":
            (place / name).write_bytes(b"P5 %d %d 65535\n" % SIZE + deep.astype(dtype).tobytes())
        else:
            Image.fromarray(deep.astype(dtype)).save(place / name)
    for name in MOVING:
        other = picture.rotate(180)
        picture.save(place / name, save_all=True, append_images=[other])


def _draw(random: Random, bases: Path) -> Case:
    files = sorted(path.name for path in (bases / "all").iterdir())
    file = random.choice(files)
    kind = random.randrange(8)
    changes: list[Change] = []
    if kind == 0:
        # Other frames are no damage, but a moving picture is no still one.
        if file in MOVING:
            changes = [{"do": "copy", "file": file, "to": "same", "is": "wrong"}]
    elif kind == 1:
        changes = [{**_instead(random, file), "is": "wrong"}]
    elif kind == 2:
        file = random.choice(sorted(HUGE))
        changes = [{**_huge(random, bases / "all", file), "is": "wrong"}]
    elif kind == 3:
        file = f"plain.{random.choice(FORMATS)}"
        changes = [{"do": "cut", "file": file, "share": round(random.random() * 0.6, 3), "is": "wrong"}]
    else:
        changes = [_damage(random, file, bases / "all") for _ in range(random.randrange(1, 6))]
    return Case("images", "all", tuple(changes), ("open_image", file))


def _damage(random: Random, file: str, base: Path) -> Change:
    if random.random() < 0.3:
        return file_change(random, file)
    # Headers matter more than pixels.
    size = (base / file).stat().st_size
    at = random.randrange(min(64, size)) if random.random() < 0.7 else random.randrange(size)
    if random.random() < 0.5:
        return {"do": "flip", "file": file, "at": at, "bits": random.randrange(1, 256)}
    return {"do": "patch", "file": file, "at": at, "hex": random.choice(["00", "ff", "ffff", "ffffffff", "7fffffff"])}


def _instead(random: Random, file: str) -> Change:
    """What is no image at all."""
    return random.choice(
        [
            {"do": "write", "file": file, "text": ""},
            {"do": "write", "file": file, "text": "<svg xmlns='http://www.w3.org/2000/svg'/>"},
            {"do": "write", "file": file, "text": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"},
            {"do": "write", "file": file, "hex": "ff" * 64},
            {"do": "remove", "file": file},
            {"do": "directory", "file": file},
            {"do": "fifo", "file": file},
            {"do": "link", "file": file, "to": "/dev/zero"},
            {"do": "link", "file": file, "to": file},
        ]
    )


# Headers that claim huge sizes --------------------------------------------------------------------------------


def _png(data: bytes, width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def _jpg(data: bytes, width: int, height: int) -> bytes:
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", min(height, 65535), min(width, 65535)) + data[at + 4 :]


def _bmp(data: bytes, width: int, height: int) -> bytes:
    return data[:18] + struct.pack("<ii", width, height) + data[26:]


def _gif(data: bytes, width: int, height: int) -> bytes:
    return data[:6] + struct.pack("<HH", min(width, 65535), min(height, 65535)) + data[10:]


def _ppm(data: bytes, width: int, height: int) -> bytes:
    return data[:2] + b"\n%d %d\n255\n" % (width, height)


def _tif(data: bytes, width: int, height: int) -> bytes:
    """Values of the entries ImageWidth (256) and ImageLength (257) of the first directory."""
    (at,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, at)
    new = bytearray(data)
    for number in range(entries):
        begin = at + 2 + 12 * number
        (tag,) = struct.unpack_from("<H", data, begin)
        if tag in (256, 257):
            struct.pack_into("<HII", new, begin + 2, 4, 1, width if tag == 256 else height)
    return bytes(new)


HUGE: dict[str, Callable[[bytes, int, int], bytes]] = {
    "plain.png": _png,
    "plain.jpg": _jpg,
    "plain.bmp": _bmp,
    "plain.gif": _gif,
    "plain.ppm": _ppm,
    "plain.pgm": _ppm,
    "plain.tif": _tif,
}
"""File → how its size is claimed to be another one."""


def _huge(random: Random, base: Path, file: str) -> Change:
    sizes = [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (9000, 9000), (1, 2**30)]
    width, height = random.choice(
        [(w, h) for w, h in sizes if min(w, 65535) * min(h, 65535) > LIMIT or file not in ("plain.jpg", "plain.gif")]
    )
    return {"do": "write", "file": file, "hex": HUGE[file]((base / file).read_bytes(), width, height).hex()}


def _result(case: Case, code: int, out: str, place: Path, bases: Path) -> str:
    """A ramp from black to white is one, whatever the file's type is."""
    if code:
        return ""
    found = json.loads(out)
    if found["mode"] != "RGB" or found["size"][0] * found["size"][1] > LIMIT:
        return f"{found['mode']} {found['size']}"
    if case.expects != "accepted":
        return ""
    ramp = abs(found["mean"] - 127.5) < 3 and found["levels"] >= 24 and tuple(found["size"]) == SIZE
    return "" if ramp else f"not the ramp that was saved: {out.strip()}"


AREA = Area(_build, _draw, _result)
