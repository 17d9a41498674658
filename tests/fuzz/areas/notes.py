"""Notes of an interrupted run: files in the staging directory changed, then the same command once more.

Notes save time and decide nothing: whatever has become of them, the command ends as it does without them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import yaml
from PIL import Image

from tests.fuzz.area import Area
from tests.fuzz.case import Case, Change
from tests.fuzz.hostile import TEXTS, file_change, json_change

WORK = ".out.partial"
OUTSIDE = "outside/precious.txt"
RECIPE = {
    "version": 1,
    "name": "fuzzed",
    "stages": [
        {"kind": "prune", "keep": 5, "selector": {"name": "cls_attention", "layers": "auto"}},
        {"kind": "visual_exit", "layer": "auto"},
    ],
}
ARGS = ("compress", "model", "--recipe", "recipe.yaml", "--data", "set", "--samples", "2", "-o", "out")
EXPECTED = "expected.yaml"


class _Interrupted(Exception):
    """In the place of a signal, just before the output is published."""


def _build(bases: Path) -> None:
    import vtc.calibrate.compress as calibrating
    from vtc.facts.layout import ANY_IMAGE
    from vtc.models.random.tiny import write_tiny_llava
    from vtc.recipe import load_recipe

    place = bases / "interrupted"
    if place.exists():
        shutil.rmtree(place)
    (place / "set").mkdir(parents=True)
    (place / OUTSIDE).parent.mkdir()
    (place / OUTSIDE).write_text("precious", encoding="utf-8")
    write_tiny_llava(place / "model", grid=4, encoder_layers=3, decoder_layers=4)
    (place / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    row = {"id": "0", "image": "p.png", "question": "what is it?", "answers": ["x"], "category": "c"}
    rows = [row, {**row, "id": "1", "question": "where is it?"}]
    (place / "set/data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Image.effect_noise((32, 32), 90).convert("RGB").save(place / "set/p.png")
    recipe, calibration = load_recipe(place / "recipe.yaml"), calibrating.Calibration(str(place / "set"), samples=2)
    done = calibrating.compress(place / "model", recipe, place / "out", calibration, ANY_IMAGE)
    (bases / EXPECTED).write_text(done.recipe.digest, encoding="utf-8")
    shutil.rmtree(place / "out")

    def stop(*_: object, **__: object) -> None:
        raise _Interrupted

    publish, calibrating.save_compressed = calibrating.save_compressed, stop  # type: ignore[assignment]
    try:
        calibrating.compress(place / "model", recipe, place / "out", calibration, ANY_IMAGE)
    except _Interrupted:
        pass
    finally:
        calibrating.save_compressed = publish


def _draw(random: Random, bases: Path) -> Case:
    base = bases / "interrupted"
    notes = [f"{WORK}/{path.name}" for path in sorted((base / WORK).iterdir()) if path.is_file()]
    kind, note = random.randrange(6), random.choice(notes)
    changes: list[Change] = []
    if kind == 1:
        changes = [{**_damage(random, note), "is": "right"}]
    elif kind == 2:
        changes = [file_change(random, note) for _ in range(random.randrange(1, 3))]
    elif kind == 3 and _is_json(base / note):
        changes = [json_change(random, base, note) for _ in range(random.randrange(1, 4))]
    elif kind == 4:
        changes = [_stranger(random)]
    elif kind == 5:
        changes = [random.choice(_PLACES)]
    return Case("notes", "interrupted", tuple(changes), ARGS)


def _is_json(note: Path) -> bool:
    try:
        json.loads(note.read_text(encoding="utf-8"))
    except ValueError:  # a sealed note has its hash on a line of its own
        return False
    return True


def _damage(random: Random, note: str) -> Change:
    """Notes that say nothing any more, of a file that a killed process may leave so."""
    text = random.choice(["", "{", "[]", "null", "3", '"x"', "\x00" * 40, '{"a":' * 9999, "[" * 99_999])
    return random.choice([{"do": "write", "file": note, "text": text}, {"do": "cut", "file": note, "share": 0.5}])


def _stranger(random: Random) -> Change:
    name = random.choice(
        ["mine.txt", ".mine", "pruner-mine.safetensors", "recipe.yaml", "manifest.json", "sub/mine.txt"]
    )
    return {"do": "write", "file": f"{WORK}/{name}", "text": random.choice(TEXTS)}


_PLACES: list[Change] = [
    {"do": "link", "file": WORK, "to": "outside"},
    {"do": "link", "file": WORK, "to": "/nowhere"},
    {"do": "link", "file": "out", "to": "outside"},
    {"do": "write", "file": WORK, "text": "x"},
    {"do": "write", "file": "out", "text": "x"},
    {"do": "write", "file": "out/mine.txt", "text": "x"},
    {"do": "write", "file": "out/manifest.json", "text": '{"kind": "compressed"}'},
    {"do": "fifo", "file": WORK},
    {"do": "link", "file": f"{WORK}/recipe.yaml", "to": f"../{OUTSIDE}"},
    {"do": "link", "file": f"{WORK}/state.safetensors", "to": f"../{OUTSIDE}"},
]
"""What may be at the place of the work or the output."""


def _result(case: Case, code: int, out: str, place: Path, bases: Path) -> str:
    """Other files stay as they are, nothing else is published, and the recipe is the one that a whole run gives."""
    outside = place / OUTSIDE
    if outside.is_symlink() or not outside.is_file() or outside.read_text(encoding="utf-8") != "precious":
        return "a file outside was changed"
    if [path.name for path in outside.parent.iterdir()] != [outside.name]:
        return "files were written outside"
    strangers = [change["file"] for change in case.changes if change["do"] == "write" and "mine" in change["file"]]
    if any(not (place / name).exists() for name in strangers):
        return "a file of somebody else's was removed"
    if code:
        return ""
    manifest = json.loads((place / "out/manifest.json").read_text(encoding="utf-8"))
    foreign = set(manifest["files"]) - {"recipe.yaml", "state.safetensors"}
    if foreign:
        return f"published {sorted(foreign)}"
    changed = all(change.get("is") == "right" for change in case.changes)
    if changed and manifest["recipe_digest"] != (bases / EXPECTED).read_text(encoding="utf-8"):
        return "another recipe than without notes"
    return ""


AREA = Area(_build, _draw, _result, torch=True)
