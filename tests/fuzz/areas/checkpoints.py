"""Checkpoints: files of tiny ones of several families changed, then compressed, which loads them whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

from tests.fuzz.area import Area, Document
from tests.fuzz.case import Case, Change
from tests.fuzz.hostile import file_change, json_change, odd

FAMILIES = (
    *("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"),
    *("internvl", "idefics3", "smolvlm", "paligemma", "gemma3"),
)
CONFIGS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
)
WEIGHTS = "model/model.safetensors"
COMPRESS = ("compress", "model", "--recipe", "none", "-o", "out")
INSPECT = ("inspect", "model", "--json")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1234\n"


def _build(bases: Path) -> None:
    from vtc.models.random.tiny import write_tiny_checkpoint, write_tiny_llava

    for family in FAMILIES:
        place = bases / family / "model"
        if place.exists():
            continue
        if family == "llava":
            write_tiny_llava(place, grid=4, encoder_layers=3, decoder_layers=4)
        else:
            write_tiny_checkpoint(family, place, encoder_layers=3, decoder_layers=4)
        shutil.copyfile(place / "config.json", place.parent / "outside.json")


def _draw(random: Random, bases: Path) -> Case:
    base = random.choice(FAMILIES)
    files = [f"model/{name}" for name in CONFIGS if (bases / base / "model" / name).exists()]
    kind = random.randrange(8)
    args = COMPRESS if random.random() < 0.5 else INSPECT
    if kind == 0:
        changes, args = [{**_right(random), "is": "right"}], COMPRESS
    elif kind < 3:
        changes, args = [{**_wrong(random, base), "is": "wrong"}], COMPRESS
    elif kind == 3:
        changes = [file_change(random, random.choice([*files, WEIGHTS, "model/chat_template.jinja"]))]
    else:
        changes = [json_change(random, bases / base, random.choice(files)) for _ in range(random.randrange(1, 4))]
        if random.random() < 0.3:
            changes.append(_section(random, bases / base))
    return Case("checkpoints", base, tuple(changes), args)


def _section(random: Random, base: Path) -> Change:
    """Another value of a size of the tower or the decoder."""
    config = json.loads((base / "model/config.json").read_text(encoding="utf-8"))
    section = random.choice(["text_config", "vision_config"])
    numbers = [key for key, value in config[section].items() if isinstance(value, int | float)]
    value = random.choice([0, -1, 10**6, 10**12, 2**63, 1.5, "8", None, True, float("nan"), odd(random)])
    return {"do": "set", "file": "model/config.json", "path": (section, random.choice(numbers)), "value": value}


def _right(random: Random) -> Change:
    return random.choice(
        [
            {"do": "write", "file": "model/README.md", "text": "# A model\n"},
            {"do": "set", "file": "model/config.json", "path": ("_name_or_path",), "value": "x/y"},
            {"do": "set", "file": "model/config.json", "path": ("transformers_version",), "value": "4.45.0"},
            {"do": "set", "file": "model/config.json", "path": ("a_key_of_tomorrow",), "value": {"a": 1}},
        ]
    )


def _wrong(random: Random, base: str) -> Change:
    """What a loaded model would not be the one that was meant with."""
    layers = random.choice(["text_config", "vision_config"]), "num_hidden_layers"
    options: list[Change] = [
        {"do": "tensor", "file": WEIGHTS, "tensor": random.randrange(99), "at": random.randrange(9999), "value": "nan"},
        {
            "do": "tensor",
            "file": WEIGHTS,
            "tensor": random.randrange(99),
            "at": random.randrange(9999),
            "value": "-inf",
        },
        {"do": "remove", "file": WEIGHTS},
        {"do": "cut", "file": WEIGHTS, "share": round(random.random() * 0.99, 3)},
        {"do": "write", "file": WEIGHTS, "text": POINTER},
        {"do": "write", "file": "model/tokenizer.json", "text": POINTER},
        {"do": "write", "file": WEIGHTS, "hex": "ffffffffffffff7f"},
        {"do": "fifo", "file": WEIGHTS},
        {"do": "link", "file": WEIGHTS, "to": "/dev/zero"},
        {"do": "remove", "file": "model/tokenizer.json"},
        {"do": "remove", "file": "model/config.json"},
        {"do": "write", "file": "model/adapter_config.json", "text": '{"peft_type": "LORA", "r": 8}'},
        {
            "do": "set",
            "file": "model/config.json",
            "path": ("quantization_config",),
            "value": {"quant_method": random.choice(["awq", "gptq", "bitsandbytes", "compressed-tensors", "?"])},
        },
        {"do": "write", "file": "model/config.json", "text": random.choice(["", "[]", "{", '{"a":' * 9999, "null"])},
        {"do": "write", "file": "model/generation_config.json", "text": random.choice(["{", '{"eos_token_id": 2,}'])},
        {"do": "write", "file": "model/tokenizer_config.json", "text": random.choice(["{", "[]", "3"])},
        {"do": "set", "file": "model/config.json", "path": layers, "value": random.choice([10**12, -1, "3", 2.5])},
        {
            "do": "set",
            "file": "model/config.json",
            "path": ("model_type",),
            "value": random.choice(["bert", 3, "\x1b[2J"]),
        },
        {"do": "drop", "file": "model/config.json", "path": ("vision_config",)},
    ]
    if base != "llava":  # which nests them in another file too
        options.append({"do": "remove", "file": "model/preprocessor_config.json"})
    return random.choice(options)


DOCUMENTS = [
    Document(family, f"model/{file}", COMPRESS) for family in FAMILIES for file in CONFIGS if file != "tokenizer.json"
]
AREA = Area(_build, _draw, torch=True, documents=DOCUMENTS)
