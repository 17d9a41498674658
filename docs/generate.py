"""Write what the pages say of recipes, stages and selectors from the classes themselves: ``python -m docs.generate``.

Fills the slots ``<!-- generated: NAME -->`` to ``<!-- end -->`` of README.md and docs/*.md, and the tables of
docs/selectors.md, docs/learnpruner.md and docs/gpu.md from the committed results. Nothing is measured, and no torch is
imported.
``tests/docs`` holds that the committed pages are what this writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from docs.studies import gpu_tables, pages, selector_tables
from exporters.rewriting import operators
from vtc.models.refused import NEAREST
from vtc.recipe import STAGES, Recipe, builtin_recipes, load_recipe, values
from vtc.recipe.budget import Budget
from vtc.recipe.experts import ExpertPlacement
from vtc.recipe.projectors import PROJECTORS, ProjectorEntry
from vtc.recipe.selectors import DECODER_SELECTORS, ENCODER_SELECTORS, SELECTORS, SelectorEntry
from vtc.recipe.stages import Place, StageEntry
from vtc.recipe.stages.base import METHODS
from vtc.recipe.stages.merge_experts import GroupsOrAuto
from vtc.recipe.trained import Trained
from vtc.recipe.values import Written

ROOT = Path(__file__).resolve().parents[1]
_SLOT = re.compile(r"(<!-- generated: ([a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_ARXIV = re.compile(r"(?:arXiv )?\b(\d{4}\.\d{5})(v\d+)?\b")
_METHOD = re.compile(
    r"(?:^|Based on |, |; | and |: )([A-Z][^(),;:]*?(?:, as in [\w-]+)?) \(arXiv (\d{4}\.\d{5}(?:v\d+)?)"
)

NAMED: tuple[tuple[Any, str], ...] = (
    (values.Keep, "number of tokens, or fraction between 0 and 1"),
    (values.KeepOrBudgets, "number of tokens, fraction between 0 and 1, or list of numbers"),
    (values.KeepOrAuto, "number of tokens, fraction between 0 and 1, or `auto`"),
    (values.LayerOrDepth, "layer number, or depth between 0 and 1"),
    (values.LayerDepthOrAuto, "layer number, depth between 0 and 1, or `auto`"),
    (values.LayersOrAuto, "list of layer numbers, or `auto`"),
    (values.AttentionLayers, "`feature`, `auto`, layer number, or list of them"),
    (values.Ratio, "number above 1"),
    (values.Experts, "number of experts, or fraction between 0 and 1"),
    (values.KeptExpertsOrAuto, "for each layer a list of experts, or `auto`"),
    (GroupsOrAuto, "for each layer a list of groups of [expert, share], or `auto`"),
    (values.Fraction, "number above 0, at most 1"),
    (values.Weight, "number, at least 0"),
    (values.Multiple, "number above 0"),
)
"""Types of values that have a name, in words."""
PLACES = {
    Place.PIXELS: "the pixels",
    Place.ENCODER: "the vision encoder",
    Place.TOKENS: "the tokens after the encoder",
    Place.PROJECTOR: "the projector",
    Place.DECODER: "the decoder",
    Place.WEIGHTS: "the weights",
}
BOUNDS: tuple[tuple[Any, str, str], ...] = (
    (Ge, "ge", "at least"),
    (Gt, "gt", "above"),
    (Le, "le", "at most"),
    (Lt, "lt", "below"),
)


OFTEN = ("internvl_chat", "qwen3_5", "qwen3_5_moe", "gemma4", "mllama", "mistral3")
"""Refused types that are met most often."""


# Values in words ----------------------------------------------------------------------------------------------------


def in_words(hint: Any, constraints: Iterable[Any] = ()) -> str:
    """Say what a key takes.

    Parameters
    ----------
    hint
        Its annotation, with what pydantic is told beside the type.
    constraints
        Bounds that pydantic has found.
    """
    for named, words in NAMED:
        if hint is named:
            return words
    if hasattr(hint, "__metadata__"):
        inner, told = hint.__origin__, hint.__metadata__
        found = [bound for item in told for bound in getattr(item, "metadata", ())]
        return in_words(inner, [*constraints, *found])
    arguments = [argument for argument in get_args(hint) if argument is not NoneType]
    if get_origin(hint) is Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if get_origin(hint) in (Union, UnionType):
        kinds = [argument for argument in arguments if isinstance(argument, type) and issubclass(argument, BaseModel)]
        for base, word in ((SelectorEntry, "selector"), (ProjectorEntry, "projector"), (StageEntry, "stage")):
            if kinds and issubclass(kinds[0], base):
                return word
        return " or ".join(in_words(argument, constraints) for argument in arguments)
    if get_origin(hint) is tuple:
        if arguments[-1] is Ellipsis:
            words = in_words(arguments[0])
            return f"list of {words}s" if words.isalpha() else f"list, each {words}"
        return "list of " + ", ".join(in_words(argument) for argument in arguments)
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return "keys"
    plain = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}[hint]
    limits = [
        f"{words} {getattr(item, attribute):g}"
        for item in constraints
        for kind, attribute, words in BOUNDS
        if isinstance(item, kind) and getattr(item, attribute) != 2**32
    ]
    return ", ".join([plain, *dict.fromkeys(limits)])


def default_of(field: Any) -> str:
    """Say what stands for a key that is left out."""
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None or field.default == "":
        return ""
    if isinstance(field.default, SelectorEntry):
        return f"`{field.default.name}`"
    return f"`{json.dumps(field.default) if isinstance(field.default, bool) else field.default}`"


def keys_of(model: type[BaseModel]) -> str:
    """Return the table of a class's keys; empty where it has none but its name."""
    hints = get_type_hints(model, include_extras=True)
    rows = [
        (f"`{key}`", in_words(hints[key], field.metadata), default_of(field), marked_up(field.description or ""))
        for key, field in model.model_fields.items()
        if key not in ("name", "kind") or model is Recipe
    ]
    return left_table(("key", "takes", "default", "meaning"), rows) if rows else ""


# Text ---------------------------------------------------------------------------------------------------------------


def left_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table with all columns to the left."""
    head = list(head)
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def marked_up(text: str) -> str:
    """Return a docstring's text as Markdown on one line, papers linked."""
    return linked(" ".join(text.split()).replace("``", "`"))


def linked(text: str) -> str:
    """Link every arXiv id."""
    return _ARXIV.sub(lambda id_: f"[{id_[0]}](https://arxiv.org/abs/{id_[1]}{id_[2] or ''})", text)


def paragraphs(model: type[BaseModel]) -> str:
    """Return a class docstring as Markdown, paragraph by paragraph."""
    return "\n\n".join(marked_up(part) for part in (model.__doc__ or "").strip().split("\n\n"))


def users(entry: type[Written]) -> list[str]:
    """Name the shipped recipes with a stage, a selector or a projector."""
    found = []
    for name in builtin_recipes():
        stages = load_recipe(name).stages
        parts = [*stages, *(getattr(stage, key, None) for stage in stages for key in METHODS)]
        if any(type(part) is entry for part in parts):
            found.append(name)
    return found


# Methods ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """A published method.

    Attributes
    ----------
    name, paper
        As its paper calls it, and the paper's arXiv id.
    word
        What a recipe says for it.
    recipes
        Those that ship and follow it.
    """

    name: str
    paper: str
    word: str
    recipes: tuple[str, ...]


def methods() -> Iterator[Method]:
    """Yield every method that a stage or a selector follows."""
    papers = {name: load_recipe(name).paper or "" for name in builtin_recipes()}

    def shipped(method: str, entry: Any) -> tuple[str, ...]:
        return tuple(recipe for recipe in users(entry) if re.search(rf"\b{re.escape(method)}\b", papers[recipe]))

    for entries in (ENCODER_SELECTORS, DECODER_SELECTORS):
        for word, entry in entries.items():
            for name, paper in _METHOD.findall(entry.paper):
                yield Method(name, paper, f"`selector: {word}`", shipped(name, entry))
    for word, projector in PROJECTORS.items():
        for name, paper in _METHOD.findall(projector.paper):
            yield Method(name, paper, f"`projector: {word}`", shipped(name, projector))
    for kind, stage in STAGES.items():
        if not stage.selectors and not stage.projectors:
            for name, paper in _METHOD.findall(" ".join((stage.__doc__ or "").split())):
                yield Method(name, paper, f"`kind: {kind}`", shipped(name, stage))


def method_table() -> str:
    """Return method, word, recipe and paper of each."""
    rows = [
        (
            one.name,
            one.word,
            ", ".join(f"`{recipe}`" for recipe in one.recipes) or "none ships",
            f"[arXiv {one.paper}](https://arxiv.org/abs/{one.paper})",
        )
        for one in sorted(methods(), key=lambda one: (one.name.lower(), one.word))
    ]
    return left_table(("method", "in a recipe", "shipped recipe", "paper"), rows)


# Sections -----------------------------------------------------------------------------------------------------------


def stages() -> str:
    """Return a section for each kind of stage."""
    parts = []
    for kind, entry in STAGES.items():
        facts = [f"Place: {PLACES[entry.acts]}", f"shipped recipes: {listed(users(entry))}"]
        parts += [f"### `{kind}`", paragraphs(entry), "; ".join(facts) + ".", keys_of(entry)]
    return "\n\n".join(filter(None, parts))


def sections(entries: Mapping[str, Any], facts_of: Callable[[Any], list[str]]) -> Callable[[], str]:
    """Return what makes the section of each method, which has these facts and the recipes that ship with it."""

    def made() -> str:
        parts = []
        for word, entry in entries.items():
            facts = [f"Reads: {entry.reads}", *facts_of(entry), f"shipped recipes: {listed(users(entry))}"]
            parts += [f"### `{word}`", paragraphs(entry), "; ".join(facts) + ".", keys_of(entry)]
        return "\n\n".join(filter(None, parts))

    return made


def selector_facts(entry: Any) -> list[str]:
    """Say whether a selector looks at the question, where it acts, and whether it needs a CLS token."""
    needs = ["needs a CLS token"] if getattr(entry, "needs_cls", False) else []
    return [f"looks at the question: {'yes' if entry.text_aware else 'no'}", f"acts {entry.where}", *needs]


def projector_facts(entry: Any) -> list[str]:
    """Say whether a projector's tokens fill a grid."""
    return [f"its tokens fill a grid: {'yes' if entry.has_grid else 'no'}"]


def overview() -> str:
    """Return one line for each selector."""
    rows = [
        (
            f"[`{word}`](#{word})",
            entry.where,
            "yes" if entry.text_aware else "no",
            "yes" if getattr(entry, "needs_cls", False) else "no",
            linked(entry.paper),
        )
        for entries in (ENCODER_SELECTORS, DECODER_SELECTORS)
        for word, entry in entries.items()
    ]
    return left_table(("selector", "acts", "reads the question", "needs a CLS token", "paper"), rows)


def training() -> str:
    """Return the keys of ``training``, by what is trained."""
    entries: dict[str, Any] = {**STAGES, **SELECTORS, **PROJECTORS}
    trained = {word: entry for word, entry in entries.items() if issubclass(entry, Trained)}
    words: dict[Any, list[str]] = {}
    for word, entry in trained.items():
        words.setdefault(get_args(entry.model_fields["training"].annotation)[0], []).append(word)
    return "\n\n".join(
        f"### `training` of {listed(those)}\n\n{paragraphs(model)}\n\n{keys_of(model)}"
        for model, those in words.items()
    )


def shipped_recipes() -> str:
    """Return every recipe that ships."""
    rows = []
    for name in builtin_recipes():
        recipe = load_recipe(name)
        left_open = ", ".join(f"`{path}`" for path in recipe.autos)
        rows.append((f"[`{name}`](../recipes/{name}.yaml)", recipe.description, left_open, linked(recipe.paper or "")))
    return left_table(("recipe", "what it does", "left to calibration or training", "paper"), rows)


def refused(types: Iterable[str]) -> Callable[[], str]:
    """Return what makes the table of model types that are refused."""

    def made() -> str:
        rows = [(f"`{one}`", NEAREST[one][1], f"`{NEAREST[one][0]}`") for one in types]
        return left_table(("refused `model_type`", "because", "nearest that is supported"), rows)

    return made


def listed(names: list[str]) -> str:
    """Return names in code marks."""
    return ", ".join(f"`{name}`" for name in names) or "none"


SLOTS: dict[str, Callable[[], str]] = {
    "methods": method_table,
    "recipe_keys": lambda: keys_of(Recipe),
    "budget_keys": lambda: keys_of(Budget),
    "experts_keys": lambda: keys_of(ExpertPlacement),
    "stages": stages,
    "selector_overview": overview,
    "encoder_selectors": sections(ENCODER_SELECTORS, selector_facts),
    "decoder_selectors": sections(DECODER_SELECTORS, selector_facts),
    "projectors": sections(PROJECTORS, projector_facts),
    "training": training,
    "shipped_recipes": shipped_recipes,
    "refused": refused(NEAREST),
    "often_refused": refused(OFTEN),
    "operators": lambda: "\n".join(operators.markdown()),
}
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
STUDIES: dict[str, tuple[str, Any]] = {
    "selectors.md": ("selectors.json", selector_tables.TABLES),
    "learnpruner.md": ("learnpruner.json", pages.TABLES),
}
"""Pages with tables of a study: its results, and its tables."""


def written(page: Path) -> str:
    """Return the text of a page with its slots filled."""
    text = page.read_text(encoding="utf-8")
    text = _SLOT.sub(lambda slot: f"{slot[1]}\n{SLOTS[slot[2]]()}\n\n{slot[3]}", text)
    if page.name in STUDIES:
        file, tables = STUDIES[page.name]
        results = json.loads((ROOT / "docs" / "results" / file).read_text(encoding="utf-8"))
        text = pages.filled(text, results, tables)
    if page.name == "gpu.md":
        text = pages.filled(text, gpu_tables.results(), gpu_tables.TABLES)
    return text


def main() -> None:
    """Write all pages."""
    for page in PAGES:
        text = written(page)
        if text != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
