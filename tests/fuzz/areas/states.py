"""Compressed models and trained parts: manifest, recipe and safetensors changed, with and without new hashes."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from random import Random

import yaml

from tests.fuzz.area import Area, Document
from tests.fuzz.case import Case, Change
from tests.fuzz.hostile import file_change, json_change, odd

STATE = "compressed/state.safetensors"
PART = "pruner.safetensors"
SEAL: Change = {"do": "seal", "file": "compressed"}
LOAD = ("load_compressed", "compressed")
COMPRESS = ("compress", "model", "--recipe", "recipe.yaml", "-o", "out")
RECIPE = {
    "version": 1,
    "name": "fuzzed",
    "stages": [{"kind": "prune", "keep": 5, "selector": {"name": "learned", "checkpoint": PART}}],
}


def _build(bases: Path) -> None:
    from vtc.calibrate.compress import compress
    from vtc.models import load_adapter, model_digest
    from vtc.models.random.tiny import write_tiny_llava
    from vtc.recipe import load_recipe
    from vtc.selectors.trained import save_trained
    from vtc.training.job import new_part

    place = bases / "learned"
    if place.exists():
        shutil.rmtree(place)
    model = place / "model"
    place.mkdir(parents=True)
    write_tiny_llava(model, grid=4, encoder_layers=3, decoder_layers=4)
    (place / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    recipe = load_recipe(place / "recipe.yaml")
    save_trained(place / PART, new_part(load_adapter(model), recipe, 0), model_digest(model))
    compress(model, recipe, place / "compressed")


def _draw(random: Random, bases: Path) -> Case:
    base = bases / "learned"
    kind = random.randrange(9)
    files = [STATE, "compressed/recipe.yaml", "compressed/manifest.json"]
    args, changes = LOAD, []
    if kind == 0:
        changes = [{**SEAL, "is": "right"}] if random.random() < 0.5 else []
    elif kind == 1:
        file = random.choice(files)
        changes = [
            {"do": "flip", "file": file, "at": random.randrange(2**31), "bits": 1 << random.randrange(8), "is": "wrong"}
        ]
    elif kind == 2:
        changes = [{**_wrong(random, base / STATE, STATE), "is": "wrong"}, SEAL]
    elif kind == 3:
        changes, args = [{**_wrong(random, base / PART, PART), "is": "wrong"}], COMPRESS
    elif kind == 4:
        changes, args = [file_change(random, PART)], COMPRESS
    elif kind == 5:
        changes = [file_change(random, random.choice(files)), SEAL]
    elif kind == 6:
        changes = [{"do": "write", "file": STATE, "hex": _header(random, base / STATE).hex()}, SEAL]
    else:
        changes = [json_change(random, base, "compressed/manifest.json") for _ in range(random.randrange(1, 4))] + [
            SEAL
        ]
    return Case("states", "learned", tuple(changes), args)


def _wrong(random: Random, path: Path, file: str) -> Change:
    at = random.randrange(9999)
    return random.choice(
        [
            {"do": "tensor", "file": file, "tensor": at, "at": at, "value": random.choice(["nan", "inf", "-inf"])},
            {"do": "cut", "file": file, "share": round(random.random() * 0.99, 3)},
            {"do": "extend", "file": file, "bytes": random.choice([1, 3 * 2**30])},
            {"do": "write", "file": file, "text": ""},
            {"do": "write", "file": file, "hex": "ffffffffffffff7f"},
            {"do": "write", "file": file, "hex": (struct.pack("<Q", 2) + b"{}").hex()},
            {"do": "remove", "file": file},
            {"do": "fifo", "file": file},
        ]
    )


def _header(random: Random, path: Path) -> bytes:
    """A file whose header names other tensors, types, shapes or places."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    name = random.choice(sorted(name for name in header if name != "__metadata__"))
    kind = random.randrange(4)
    if kind == 0:
        header[f"{name}x"] = header.pop(name)
    elif kind == 1:
        header[name]["dtype"] = random.choice(["F16", "I64", "BOOL", "F99", "U8"])
    elif kind == 2:
        header[name]["shape"] = random.choice([[], [2**40], [-1], [0], [1, 1, 1], "x"])
    else:
        header[name][random.choice(["data_offsets", "dtype", "shape"])] = odd(random)
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + data[8 + length :]


DOCUMENTS = [Document("learned", "compressed/manifest.json", LOAD, (SEAL,))]
AREA = Area(_build, _draw, torch=True, documents=DOCUMENTS)
