"""Every kind of stage and selector has its line in every table, and nothing outside of them asks for a kind."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from tests.tiny import recipe
from vtc.calibrate.choices import CHOICES
from vtc.compressed.build import apply_recipe
from vtc.models.base import VLMAdapter
from vtc.plan.stages import NUMBERS
from vtc.projectors import BUILDERS
from vtc.recipe import projectors, selectors, stages
from vtc.recipe.trained import Trained
from vtc.selectors import ENCODER_MODULES
from vtc.selectors.decoder import DECODER_MODULES
from vtc.stages import MODULES
from vtc.training.trainers import TRAINERS

ROOT = Path(__file__).parents[1]

Class = type[Any]
KINDS: tuple[Class, ...] = get_args(stages.AnyStage)
ENCODER: tuple[Class, ...] = get_args(selectors.AnyEncoderSelector)
DECODER: tuple[Class, ...] = get_args(selectors.AnyDecoderSelector)
PROJECTORS: tuple[Class, ...] = get_args(projectors.AnyProjector)


@dataclass(frozen=True)
class Table:
    """A table, its file, its lines, and which classes have one; lines may stand under a kind's word."""

    name: str
    file: str
    lines: Mapping[Any, Any]
    wanted: tuple[Class, ...]

    def faults(self) -> list[str]:
        """What is missing and what is too much."""
        key = word if all(isinstance(key, str) for key in self.lines) else lambda one: one
        wanted = {key(one): one.__name__ for one in self.wanted}
        missing = [f"has no line for {name}" for one, name in wanted.items() if one not in self.lines]
        surplus = [f"has a line too many, {one}" for one in self.lines if one not in wanted]
        return [f"{self.file}: {self.name} {fault}" for fault in missing + surplus]


def word(entry: Class) -> str:
    """What a recipe calls a kind of stage or a selector."""
    field = entry.model_fields.get("kind") or entry.model_fields["name"]
    return str(field.default)


def may_be_auto(annotation: Any) -> bool:
    """Whether a value of a type, or one inside it, may be left ``auto``; a trained part's checkpoint is no choice."""
    if get_origin(annotation) is Literal:
        return "auto" in get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return any(may_be_auto(field.annotation) for field in annotation.model_fields.values())
    return any(may_be_auto(part) for part in get_args(annotation))


TABLES = [
    Table("STAGES", "vtc/recipe/stages/__init__.py", stages.STAGES, KINDS),
    Table("NUMBERS", "vtc/plan/stages/__init__.py", NUMBERS, KINDS),
    Table("MODULES", "vtc/stages/__init__.py", MODULES, KINDS),
    Table("CHOICES", "vtc/calibrate/choices.py", CHOICES, tuple(filter(may_be_auto, KINDS))),
    Table(
        "TRAINERS",
        "vtc/training/trainers.py",
        TRAINERS,
        tuple(one for one in (*KINDS, *ENCODER, *DECODER, *PROJECTORS) if issubclass(one, Trained)),
    ),
    Table("ENCODER_SELECTORS", "vtc/recipe/selectors/__init__.py", selectors.ENCODER_SELECTORS, ENCODER),
    Table("DECODER_SELECTORS", "vtc/recipe/selectors/__init__.py", selectors.DECODER_SELECTORS, DECODER),
    Table("ENCODER_MODULES", "vtc/selectors/__init__.py", ENCODER_MODULES, ENCODER),
    Table("DECODER_MODULES", "vtc/selectors/decoder/__init__.py", DECODER_MODULES, DECODER),
    Table("PROJECTORS", "vtc/recipe/projectors/__init__.py", projectors.PROJECTORS, PROJECTORS),
    Table("BUILDERS", "vtc/projectors/__init__.py", BUILDERS, PROJECTORS),
]
LINES = [
    pytest.param(table, key, id=f"{table.name}-{key if isinstance(key, str) else key.__name__}")
    for table in TABLES
    for key in table.lines
]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_table_has_a_line_for_every_class(table: Table) -> None:
    assert not table.faults()
    assert (ROOT / table.file).read_text(encoding="utf-8").count(f"\n{table.name}: ") == 1


def test_some_kinds_are_chosen_and_some_parts_trained() -> None:
    wanted = {table.name: table.wanted for table in TABLES}
    assert {stages.FrequencyFilterEntry, stages.DropLayersEntry} <= set(wanted["CHOICES"])
    assert stages.PruneInDecoderEntry not in wanted["CHOICES"]
    assert {selectors.LearnedEntry, selectors.RelevanceEntry} <= set(wanted["TRAINERS"])


@pytest.mark.parametrize(("table", "key"), LINES)
def test_a_line_that_is_missing_is_named(table: Table, key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = key if isinstance(key, str) else key.__name__
    monkeypatch.delitem(table.lines, key)  # type: ignore[arg-type]
    (fault,) = table.faults()
    assert fault.startswith(f"{table.file}: {table.name} has no line for ")
    assert name in fault or word(next(one for one in table.wanted if one.__name__ in fault)) == name


@pytest.mark.parametrize(
    ("table", "entry", "words"),
    [
        (NUMBERS, stages.PruneEntry, "NUMBERS of vtc.plan.stages has no line for PruneEntry"),
        (MODULES, stages.PruneEntry, "MODULES of vtc.stages has no line for PruneEntry"),
        (ENCODER_MODULES, selectors.UniformEntry, "ENCODER_MODULES of vtc.selectors has no line for UniformEntry"),
    ],
)
def test_running_without_a_line_says_which(
    table: dict[Any, Any], entry: Class, words: str, adapter: VLMAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(table, entry)
    with pytest.raises(AssertionError, match=words):
        apply_recipe(adapter, recipe({"kind": "prune", "keep": 4, "selector": "uniform"}))


# Nothing asks for a kind ------------------------------------------------------------------------------------

OWN = ("vtc/recipe/stages/", "vtc/plan/stages/", "vtc/stages/")
"""Where a kind may speak of itself, and so it may in vtc/calibrate/KIND.py."""
EXCEPTIONS: set[tuple[str, str]] = set()
"""File and comparison that are let pass nevertheless."""
HANDOFFS = ("enters", "['enters']", "selector.kind", "facts.kind", "found")
"""Ends of expressions that are compared with the word of a handoff between decoder segments, ``prune``."""
CLASSES = {one.__name__ for one in KINDS}
WORDS = {word(one) for one in KINDS}


def asked(source: str) -> Iterator[str]:
    """Every question in a module of which kind a stage is: by its class, or by its word."""
    for node in ast.walk(ast.parse(source)):
        classes, words = _asked_for(node)
        if CLASSES & classes or WORDS & words:
            yield ast.unparse(node)


def _asked_for(node: ast.AST) -> tuple[set[str], set[str]]:
    """Names and strings that something is compared with."""
    match node:
        case ast.Call(func=ast.Name("isinstance" | "issubclass"), args=[_, classes]):
            return set(names_in(classes)), set()
        case ast.MatchClass():
            return set(names_in(node.cls)), set()
        case ast.MatchValue():
            return set(), set(words_in(node.value))
        case ast.Subscript(value=ast.Dict(keys=keys)):
            return set(), {word for key in keys if key for word in words_in(key)}
        case ast.Compare():
            sides = [node.left, *node.comparators]
            words = {word for side in sides for word in words_in(side)}
            compared = [ast.unparse(side) for side in sides if not set(words_in(side))]
            of_handoff = words & WORDS == {"prune"} and all(one.endswith(HANDOFFS) for one in compared)
            return {name for side in sides for name in names_in(side)}, set() if of_handoff else words
        case _:
            return set(), set()


def names_in(node: ast.AST) -> Iterator[str]:
    """Names and attributes of an expression."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Attribute):
            yield part.attr


def words_in(node: ast.AST) -> Iterator[str]:
    """Strings of a literal, or of a tuple, list or set of them."""
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    yield from (part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str))


@pytest.mark.parametrize(
    ("question", "count"),
    [
        ("isinstance(entry, PruneEntry)", 1),
        ("isinstance(entry, (int, stages.PoolEntry | stages.VisualExitEntry))", 1),
        ("type(entry) is DropLayersEntry", 1),
        ("stage.kind == 'frequency_filter'", 1),
        ("stage['kind'] in ('prune', 'prune_in_decoder')", 1),
        ("stage.kind == 'prune'", 1),
        ("'prune' != kind", 1),
        ("{'prune': 1, 'visual_exit': 2}[stage.kind]", 1),
        ("match stage:\n  case PruneEntry(): pass", 1),
        ("match stage.kind:\n  case 'prune': pass", 1),
        ("segment.enters == 'prune'", 0),
        ("segment.selector.kind != 'prune'", 0),
        ("{'kind': 'prune', 'keep': 4}", 0),
        ("isinstance(entry, Trained)", 0),
    ],
)
def test_what_counts_as_asking(question: str, count: int) -> None:
    assert len(list(asked(question))) == count


def test_nothing_asks_for_a_kind() -> None:
    own = {f"vtc/calibrate/{one}.py" for one in WORDS}
    found = set()
    for path in sorted([*(ROOT / "vtc").rglob("*.py"), *(ROOT / "exporters").rglob("*.py")]):
        file = path.relative_to(ROOT).as_posix()
        if not file.startswith(OWN) and file not in own:
            found |= {(file, question) for question in asked(path.read_text(encoding="utf-8"))}
    assert not found - EXCEPTIONS, "ask an entry's attributes or the plan, see docs/extending.md"
    assert not EXCEPTIONS - found, "no longer needed"
