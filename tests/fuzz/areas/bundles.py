"""Bundles: a toy's manifest, graphs and texts, changed with and without new hashes, and asked as ``vtc run`` does."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from PIL import Image

from tests.fuzz.area import Area, Document
from tests.fuzz.case import Case, Change
from tests.fuzz.hostile import file_change, json_change, odd
from tests.runtime.toy import Segment, make_toy, write_toy_bundle

MANIFEST = "bundle/manifest.json"
TOYS = {
    "plain": make_toy(),
    "cut": make_toy(segments=(Segment((0,)), Segment((1,), "text"), Segment((2,)), Segment((3,), "text")), keep=5),
}
ARGS = ("run", "bundle", "--image", "p.png", "--prompt", "what is the colour ?", "--max-new-tokens", "3", "--json")
SEAL: Change = {"do": "seal", "file": "bundle"}
JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json")
ANSWER = "answer.json"
"""What a whole bundle answers, beside the bases."""


def _build(bases: Path) -> None:
    for name, toy in TOYS.items():
        if not (bases / name).exists():
            (bases / name).mkdir()
            write_toy_bundle(toy, bases / name / "bundle")
            Image.effect_noise((20, 20), 90).convert("RGB").save(bases / name / "p.png")


def _files(base: Path) -> list[str]:
    manifest = json.loads((base / MANIFEST).read_text(encoding="utf-8"))
    return [f"bundle/{name}" for name in manifest["files"]]


def _draw(random: Random, bases: Path) -> Case:
    base = random.choice(sorted(TOYS))
    files = _files(bases / base)
    graphs = [file for file in files if file.endswith(".onnx")]
    kind = random.randrange(10)
    if kind == 0:
        changes = [{**SEAL, "is": "right"}] if random.random() < 0.5 else []
    elif kind < 3:
        changes = [{**_unsealed(random, files), "is": "wrong"}]
    elif kind < 5:
        changes = [{**_wrong(random, bases / base, files, graphs), "is": "wrong"}, SEAL]
    elif kind < 8:
        changes = [json_change(random, bases / base, MANIFEST) for _ in range(random.randrange(1, 4))] + [SEAL]
    elif kind == 8:
        file = f"bundle/{random.choice(JSON_FILES)}"
        changes = [json_change(random, bases / base, file) for _ in range(random.randrange(1, 4))] + [SEAL]
    else:
        changes = [file_change(random, random.choice([*files, MANIFEST])), SEAL]
    return Case("bundles", base, tuple(changes), ARGS)


def _unsealed(random: Random, files: list[str]) -> Change:
    """Whatever changes a byte of a bundle without its hashes."""
    file = random.choice([*files, MANIFEST])
    return random.choice(
        [
            {"do": "flip", "file": file, "at": random.randrange(2**31), "bits": random.randrange(1, 256)},
            {"do": "remove", "file": file},
            {"do": "cut", "file": file, "share": round(random.random() * 0.99, 3)},
            {"do": "extend", "file": file, "bytes": random.choice([1, 2**20, 3 * 2**30])},
            {"do": "link", "file": file, "to": "/dev/zero"},
            {"do": "link", "file": file, "to": "/etc/passwd"},
            {"do": "fifo", "file": file},
            {"do": "directory", "file": file},
        ]
    )


def _wrong(random: Random, base: Path, files: list[str], graphs: list[str]) -> Change:
    """Something that fresh hashes do not make right."""
    manifest = json.loads((base / MANIFEST).read_text(encoding="utf-8"))
    name = random.choice(sorted(manifest["graphs"]))
    outward = random.choice(["../p.png", "/etc/passwd", "onnx/../../p.png", "\x00", "", "C:\\x", "onnx"])
    graph = random.choice(graphs)
    weighty = random.choice([file for file in graphs if "token_selector" not in file])
    number = random.choice(["nan", "inf", "-inf"])
    key = random.choice(["width", "kv_heads", "head_dim", "context", "layers", "pad_token_id"])
    of_image = random.choice(["tokens_per_span", "keep_per_span", "token_id", "size", "grids"])
    options: list[Change] = [
        {"do": "set", "file": MANIFEST, "path": ("graphs", name, "fp32"), "value": outward},
        {"do": "set", "file": MANIFEST, "path": ("files", outward), "value": {"sha256": "0" * 64, "bytes": 1}},
        {"do": "set", "file": MANIFEST, "path": ("generation", key), "value": random.choice(["8", None, [8], 8.5, -8])},
        {"do": "set", "file": MANIFEST, "path": ("images", 0, of_image), "value": random.choice(["3", None, -3, {}])},
        {"do": "set", "file": MANIFEST, "path": ("schema",), "value": random.choice([10**6, "4", -1, None])},
        {"do": "set", "file": MANIFEST, "path": ("kind",), "value": odd(random, 0)},
        {"do": "set", "file": MANIFEST, "path": ("images",), "value": []},
        {"do": "set", "file": MANIFEST, "path": ("segments",), "value": []},
        {"do": "drop", "file": MANIFEST, "path": (random.choice(["graphs", "files", "images", "generation"]),)},
        {"do": "drop", "file": MANIFEST, "path": ("files", random.choice(graphs).removeprefix("bundle/"))},
        {"do": "graph", "file": weighty, "tensor": 0, "at": 0, "value": number},
        {"do": "graph", "file": "bundle/onnx/embed_tokens.onnx", "tensor": 0, "beside": "unlisted.bin"},
        {"do": "swap", "file": "bundle/onnx/embed_tokens.onnx", "with": "vision_encoder.onnx"},
        {"do": "write", "file": random.choice([*graphs, "bundle/tokenizer.json"]), "text": "x"},
        {"do": "cut", "file": graph, "share": 0.5},
    ]
    if base.name == "cut":
        options.append({"do": "swap", "file": "bundle/onnx/decoder_segment_0.onnx", "with": "decoder_segment_2.onnx"})
    return random.choice(options)


def _result(case: Case, code: int, out: str, place: Path, bases: Path) -> str:
    """A bundle that is whole gives one answer; what was first answered is kept beside the bases."""
    if code or case.expects != "accepted":
        return ""
    answer = json.loads(out)["token_ids"]
    known = bases / f"{case.base}-{ANSWER}"
    if not known.exists():
        known.write_text(json.dumps(answer), encoding="utf-8")
    return "" if json.loads(known.read_text(encoding="utf-8")) == answer else f"another answer: {answer}"


DOCUMENTS = [
    Document(base, file, ARGS, (SEAL,))
    for base in TOYS
    for file in (MANIFEST, *(f"bundle/{name}" for name in JSON_FILES))
]
AREA = Area(_build, _draw, _result, documents=DOCUMENTS)
