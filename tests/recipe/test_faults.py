"""Every fault of a recipe is told at once, with its place, its key and what to do."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.recipe.texts import PRUNE, faults, with_stage
from tests.strategies import in_any_order, recipes
from vtc.errors import OutOfResources, RecipeError
from vtc.recipe import STAGES, load_recipe, parse_recipe
from vtc.recipe.selectors import DECODER_SELECTORS, ENCODER_SELECTORS
from vtc.recipe.yaml_lines import MAX_BYTES, read_yaml

BAD_STAGES = {
    "kep: 8, kind: prune, selector: random": "stages.0.kep: unknown key, did you mean 'keep'?",
    "kind: prune, keep: 8, selector: random, budget: 3": (
        "stages.0.budget: unknown key, valid here: kind, keep, selector, positions"
    ),
    "kind: prun, keep: 8": "stages.0.kind: unknown stage kind 'prun', did you mean 'prune'?",
    "keep: 8": (
        "stages.0: names no stage kind, give kind: one of "
        "frequency_filter, prune, project, prune_in_decoder, visual_exit, drop_layers, prune_experts, merge_experts, "
        "visual_experts"
    ),
    "kind: prune_in_decoder, keep: 8": "stages.0.layer: required, and not given",
    "kind: prune_in_decoder, keep: 8, layer: 1.5": (
        "stages.0.layer: is the number of a layer or a depth between 0 and 1, not 1.5"
    ),
    "kind: prune_in_decoder, keep: 8, layer: auto": (
        "stages.0.layer: is the number of a layer or a depth between 0 and 1, not 'auto'"
    ),
    "kind: prune_in_decoder, keep: 8, layer: 2, selector: text_atention": (
        "stages.0.selector: unknown selector 'text_atention', did you mean 'text_attention'?"
    ),
    "kind: prune_in_decoder, keep: 8, layer: 2, selector: {name: uniform}": (
        f"stages.0.selector.name: unknown selector 'uniform', one of {', '.join(DECODER_SELECTORS)}"
    ),
    "kind: prune_in_decoder, keep: 8, layer: 2, selector: {query: last_token}": (
        "stages.0.selector.query: unknown key, did you mean 'queries'?"
    ),
    "kind: prune_in_decoder, keep: 8, layer: 2, selector: {queries: last}": (
        "stages.0.selector.queries: is text_after_image, all_text, last_token or raters, not 'last'"
    ),
    "kind: prune, keep: 8": "stages.0.selector: required, and not given",
    "kind: prune, keep: 8, selector: clsattention": (
        "stages.0.selector: unknown selector 'clsattention', did you mean 'cls_attention'?"
    ),
    "kind: prune, keep: 8, selector: {name: x}": (
        f"stages.0.selector.name: unknown selector 'x', one of {', '.join(ENCODER_SELECTORS)}"
    ),
    "kind: prune, keep: 8, selector: {seed: 1}": (
        f"stages.0.selector: names no selector, give name: one of {', '.join(ENCODER_SELECTORS)}"
    ),
    "kind: prune, keep: 8, selector: {name: random, sed: 1}": (
        "stages.0.selector.sed: unknown key, did you mean 'seed'?"
    ),
    "kind: prune, keep: 8, selector: {name: learned, training: {step: 1}}": (
        "stages.0.selector.training.step: unknown key, did you mean 'steps'?"
    ),
    "kind: prune, keep: 8, selector: {name: learned, checkpoint: a.safetensors, training: {}}": (
        "stages.0.selector: training is only for checkpoint: auto, here the checkpoint is trained already"
    ),
    "kind: prune, keep: [16], selector: random": (
        "stages.0.keep: lists two or more numbers of tokens, ascending, such as [16, 64], not [16]"
    ),
    "kind: prune, keep: [16, 8], selector: random": (
        "stages.0.keep: lists two or more numbers of tokens, ascending, such as [16, 64], not [16, 8]"
    ),
    "kind: prune, keep: [8, 0.5], selector: random": (
        "stages.0.keep: lists two or more numbers of tokens, ascending, such as [16, 64], not [8, 0.5]"
    ),
    "kind: prune_in_decoder, layer: 2, keep: [8, 16]": (
        "stages.0.keep: is a number of tokens such as 64 or a fraction such as 0.25, not [8, 16]"
    ),
    "kind: prune, keep: 0, selector: random": "stages.0.keep: must keep at least 1 token, not 0",
    "kind: prune, keep: -3, selector: random": "stages.0.keep: must keep at least 1 token, not -3",
    "kind: prune, keep: 1.0, selector: random": (
        "stages.0.keep: a fraction lies between 0 and 1, 1.0 does not; a number of tokens has no decimal point"
    ),
    "kind: prune, keep: .nan, selector: random": (
        "stages.0.keep: a fraction lies between 0 and 1, nan does not; a number of tokens has no decimal point"
    ),
    "kind: prune, keep: true, selector: random": (
        "stages.0.keep: is a number of tokens such as 64 or a fraction such as 0.25, not True"
    ),
    "kind: prune, keep: '8', selector: random": (
        "stages.0.keep: is a number of tokens such as 64 or a fraction such as 0.25, not '8'"
    ),
    "kind: prune, keep: auto, selector: random": (
        "stages.0.keep: is a number of tokens such as 64 or a fraction such as 0.25, not 'auto'"
    ),
    "kind: prune, keep: 8, selector: random, positions: same": (
        "stages.0.positions: is renumber or original, not 'same'"
    ),
    "kind: frequency_filter, keep: 4, energy: 0.9": ("stages.0: energy is only for keep: auto, here keep is 4"),
    "kind: drop_layers, layers: auto": "stages.0: layers: auto needs count, the number of layers to drop",
    "kind: drop_layers, layers: [1], count: 1": (
        "stages.0: count is only for layers: auto, the list already says how many"
    ),
    "kind: drop_layers, layers: [1, 1]": "stages.0.layers: layer 1 is listed twice",
    "kind: drop_layers, layers: []": ("stages.0.layers: is auto or a list of layer numbers such as [3, 4], not []"),
    "kind: drop_layers, layers: [1], component: encoder, visual_only: true": (
        "stages.0: visual_only is only for the decoder, the encoder sees nothing but visual tokens"
    ),
    "kind: visual_exit, layer: 3, criterion: dyvte": "stages.0: criterion is only for layer: auto, here layer is 3",
    "kind: visual_exit, layer: deep": (
        "stages.0.layer: is the number of a layer, a depth between 0 and 1, or auto, not 'deep'"
    ),
    "kind: visual_exit, layer: 1.5": (
        "stages.0.layer: is the number of a layer, a depth between 0 and 1, or auto, not 1.5"
    ),
}


@pytest.mark.parametrize("stage", BAD_STAGES)
def test_fault_names_place_key_and_cure(stage: str) -> None:
    assert faults(with_stage(f"{{{stage}}}")) == [f"r.yaml:4: {BAD_STAGES[stage]}"]


@pytest.mark.parametrize("path", ["../a.safetensors", "/a.safetensors", "b/../../a.safetensors", "C:\\a.safetensors"])
def test_checkpoint_stays_below_the_recipe(path: str) -> None:
    (line,) = faults(with_stage(f"{{kind: prune, keep: 8, selector: {{name: learned, checkpoint: '{path}'}}}}"))
    assert "below the recipe's own directory" in line


def test_checkpoint_is_safetensors() -> None:
    (line,) = faults(with_stage("{kind: prune, keep: 8, selector: {name: learned, checkpoint: a.pt}}"))
    assert "is a .safetensors file, not 'a.pt'" in line


def test_every_fault_is_reported_with_its_line() -> None:
    text = (
        "version: 1\nnam: x\nstages:\n  - kind: prune\n    kep: 3\n    selector: clsattention\n"
        "  - kind: prun\n  - kind: prune\n    keep: 0\n    selector:\n      name: random\n      seed: -1\n"
    )
    lines = faults(text)
    assert [line.split(":")[1] for line in lines] == ["2", "5", "6", "7", "9", "12"]


@pytest.mark.parametrize("version", ["2", "'1'", "true", "1.0", "null"])
def test_other_versions_are_refused(version: str) -> None:
    (line,) = faults(PRUNE.replace("version: 1", f"version: {version}"))
    assert line.startswith("r.yaml:1: version: this vtc reads version 1 recipes, not ")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "r.yaml:1: empty, a recipe starts with version: 1"),
        ("- 1\n", "r.yaml:1: no mapping, a recipe starts with version: 1"),
        ("version: 1\nversion: 1\n", "r.yaml:2: 'version' is given twice, first on line 1"),
        ("a: {b: 1, b: 2}\n", "r.yaml:1: 'b' is given twice, first on line 1"),
        ("1: x\n", "r.yaml:1: keys are words, '1' is not"),
        ("{}: x\n", "r.yaml:1: keys are words, a mapping is not"),
        ("version: 1\nstages: [\n", "r.yaml:3: not valid YAML"),
        ("version: 1\n\tname: x\n", "r.yaml:2: not valid YAML"),
        (
            "a: !!python/object/apply:os.system [id]\n",
            "r.yaml:1: the tag tag:yaml.org,2002:python/object/apply",
        ),
        ("a: !!binary x\n", "r.yaml:1: the tag tag:yaml.org,2002:binary is not allowed"),
        ("a: 2024-13-45\n", "r.yaml:1: '2024-13-45' is not a value"),
        ("a: &a [*a]\n", "r.yaml:1: nested more than 32 levels deep"),
        ("[" * 20_000, "r.yaml:1: nested too deeply"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: not valid YAML: expected a single document"),
        ("\0", "r.yaml:1: not valid YAML"),
        ("a" * (MAX_BYTES + 1), "r.yaml:1: larger than 64 KiB"),
    ],
)
def test_text_that_is_no_recipe(text: str, fault: str) -> None:
    assert faults(text)[0].startswith(fault)


def test_aliases_cannot_explode() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    for name, inner in zip("bcdef", "abcde", strict=True):
        bomb += f"{name}: &{name} [{','.join([f'*{inner}'] * 10)}]\n"
    assert "more than 10000 values" in faults(bomb)[0]


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_give_a_recipe_or_faults(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(data)
    with pytest.raises(RecipeError):
        load_recipe(file)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("auto"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*STAGES, "keep", "kind"]), inner),
    max_leaves=5,
)


@given(recipes(in_any_order), st.data())
def test_a_damaged_recipe_never_crashes(data: dict[str, Any], draw: st.DataObject) -> None:
    keys = [
        "keep",
        "kind",
        "selector",
        "layers",
        "layer",
        "name",
        "count",
        "energy",
        "positions",
        "seed",
        "new",
    ]
    target: dict[str, Any] = draw.draw(st.sampled_from([data, *data["stages"]])) if data["stages"] else data
    target[draw.draw(st.sampled_from([*keys, "version", "stages"]))] = draw.draw(json_values)
    with contextlib.suppress(RecipeError):
        parse_recipe(yaml.safe_dump(data))


# Overrides --------------------------------------------------------------------------------------------------


def test_override_replaces_a_value() -> None:
    assert parse_recipe(PRUNE, overrides=["stages.0.keep=0.5"]).canonical()["stages"][0]["keep"] == 0.5


def test_override_expands_a_selector_shorthand() -> None:
    recipe = parse_recipe(PRUNE, overrides=["stages.0.selector.seed=7"])
    assert recipe.canonical()["stages"][0]["selector"] == {"name": "random", "seed": 7}


def test_last_override_wins() -> None:
    recipe = parse_recipe(PRUNE, overrides=["stages.0.keep=2", "stages.0.keep=3"])
    assert recipe.canonical()["stages"][0]["keep"] == 3


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("stages.0.kep=64", "--set stages.0.kep=64: stages.0.kep: unknown key, did you mean 'keep'?"),
        ("stages.0.keep=0", "--set stages.0.keep=0: stages.0.keep: must keep at least 1 token, not 0"),
        ("stages.0.keep", "--set stages.0.keep: write it as key.path=value, such as stages.0.keep=64"),
        ("=3", "--set =3: write it as key.path=value, such as stages.0.keep=64"),
        ("stages.1.keep=3", "--set stages.1.keep=3: no stages.1, stages has 1 entries, counted from 0"),
        ("stages.x=3", "--set stages.x=3: no stages.x, stages has 1 entries, counted from 0"),
        ("stage.0=3", "--set stage.0=3: no stage in this recipe"),
        ("name.x=3", "--set name.x=3: name is 'test', nothing can be set inside it"),
        ("stages.0.keep=[", "--set stages.0.keep=[: not valid YAML"),
        ("stages=3", "--set stages=3: stages: is a list, not 3"),
    ],
)
def test_override_fault(override: str, fault: str) -> None:
    assert faults(PRUNE, override)[0].startswith(fault)


def test_fault_inside_an_overridden_value_names_the_override() -> None:
    (line,) = faults(PRUNE, "stages.0={kind: prune, keep: 0, selector: random}")
    assert line.startswith("--set stages.0={kind: prune, keep: 0, selector: random}: stages.0.keep: must keep")


# Hostile texts and files ---------------------------------------------------------------------------------------------


def in_keep(value: str) -> str:
    return f"version: 1\nname: n\nstages:\n  - {{kind: prune, selector: random, keep: {value}}}\n"


HOSTILE = {
    "hex": (in_keep("0x" + "f" * 6000), 4, "is too large a number"),
    "twice in a line": (in_keep(f"[{2**70}, {2**70}]"), 4, "is too large a number"),
    "binary": (in_keep("0b" + "1" * 6000), 4, "is too large a number"),
    "decimal": (in_keep("9" * 6000), 4, "is not a value"),
    "65 bits": (in_keep(str(2**64)), 4, "is too large a number"),
    "base 60": (in_keep("1:" + ":".join(["59"] * 2000)), 4, "is too large a number"),
    "infinity": (in_keep(".inf"), 4, "a fraction lies between 0 and 1, inf does not"),
    "large float": (in_keep("1.0e+999"), 4, "a fraction lies between 0 and 1, inf does not"),
    "name": (f"version: 1\nname: {'n' * 300}\nstages: []\n", 2, "is at most 64 letters"),
    "key": (f"version: 1\n? {'k' * 50_000}\n: 1\nname: n\nstages: []\n", 2, "unknown key"),
    "escape": ('version: 1\nname: n\nstages: []\n"\\e[2J\\u202e\\nr.yaml:1: forged": 1\n', 4, "unknown key"),
    "twice": (f"version: 1\n{'k' * 900}: 1\n{'k' * 900}: 1\n", 3, "is given twice, first on line 2"),
    "tag": (f"version: !{'t' * 5000} 1\n", 1, "is not allowed, write plain values"),
    "lists": ("[" * 30_000, 1, "nested too deeply"),
    "blocks": ("\n".join(" " * depth + "a:" for depth in range(200)), 34, "nested more than 32 levels deep"),
    "aliases": (
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in itertools.pairwise("abcdefgh")),
        1,
        "more than 10000 values",
    ),
    "itself": ("version: 1\nname: n\nstages: &a [*a]\n", 3, "nested more than 32 levels deep"),
}
"""Text of a recipe → line and end of its one fault."""


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_text_is_one_short_line(case: str) -> None:
    text, line, fault = HOSTILE[case]
    with pytest.raises(RecipeError) as error:
        parse_recipe(text, file="r.yaml")
    message = str(error.value)
    assert message.startswith(f"r.yaml:{line}: ")
    assert fault in message
    assert message.isprintable()
    assert len(message) < 300


HOSTILE_SETS = {
    "hex": "stages.0.keep=0x" + "f" * 6000,
    "index": f"stages.{'9' * 5000}.keep=1",
    "no value": "x" * 5000,
    "depth": "x." * 5000 + "y=1",
    "escape": "stages.0.\x1b[2J\u202e\n=1",
    "lists": "stages.0.keep=" + "[" * 5000,
    "text": "stages.0.keep=" + "x" * 5000,
    "surrogate": "\udc80=\udcff",
}


@pytest.mark.parametrize("case", HOSTILE_SETS)
def test_hostile_override_is_one_short_line(case: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(in_keep("4"), overrides=[HOSTILE_SETS[case]])
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("pipe.yaml", "is a named pipe, not a regular file"),
        ("zero.yaml", "is a device, not a regular file"),
        ("directory.yaml", "is a directory, not a regular file"),
        ("loop.yaml", "its symbolic links lead in a circle"),
        ("large.yaml", "holds 1000000000000 bytes, and may hold 65536"),
        ("text.yaml/x.yaml", "a part of the path is a file, not a directory"),
        ("x" * 300 + ".yaml", "the name is too long for the file system"),
        ("none.yaml", "no such recipe file"),
        ("text.yaml", "not UTF-8 text, this is not a recipe"),
    ],
)
def test_what_is_no_recipe_file_is_not_read(name: str, fault: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "directory.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "text.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "large.yaml").touch()
    os.truncate(tmp_path / "large.yaml", 10**12)
    with pytest.raises(RecipeError, match=fault):
        load_recipe(tmp_path / name)


def test_handles_that_run_out_are_not_the_recipe_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.yaml").write_text(in_keep("4"))

    def none_left(*_: object) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files", "r.yaml")

    monkeypatch.setattr("vtc.recipe.loading.read_bytes", none_left)
    with pytest.raises(OutOfResources, match="too many open files"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(("text", "number"), [("0100", 64), ("1:04", 64), ("-010", -8), ("1:30.5", 90.5), ("0_7", 7)])
def test_numbers_that_yaml_reads_otherwise_than_people_are_refused(text: str, number: float) -> None:
    (problem,) = read_yaml(f"keep: {text}\n").problems
    assert problem == (1, f"'{text}' is {number} in YAML; write that, in decimals")
    assert not read_yaml(f"keep: '{text}'\nother: 0x40\nthird: 0\nshare: 0.25\nname: 08\n").problems
