"""A recipe: what to do to a model, for any model."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, PrivateAttr

from vtc.errors import RecipeError
from vtc.recipe.budget import Budget
from vtc.recipe.experts import ExpertPlacement
from vtc.recipe.stages import Stage
from vtc.recipe.trained import Trained
from vtc.recipe.values import Written
from vtc.recipe.yaml_lines import KeyPath
from vtc.shown import shown


@dataclass(frozen=True)
class RecipeSource:
    """Where a recipe was written, for messages; it does not count when recipes are compared."""

    file: str = field(default="recipe", compare=False)
    directory: Path | None = field(default=None, compare=False)
    lines: Mapping[KeyPath, int] = field(default_factory=dict, compare=False)
    overrides: Mapping[KeyPath, str] = field(default_factory=dict, compare=False)

    def where(self, path: KeyPath) -> str:
        """The place of a value, or of the nearest around it: ``file:line`` or ``--set …``."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.overrides:
                return f"--set {shown(self.overrides[path[:length]])}"
            if path[:length] in self.lines:
                return f"{self.file}:{self.lines[path[:length]]}"
        return self.file

    def line(self, path: KeyPath) -> int:
        """Return the line of a value, or of the nearest thing around it; 0 when the text is not known."""
        return next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), 0)

    def message(self, path: KeyPath, problem: str) -> str:
        """One line: where, the key's path, what is wrong with it."""
        return ": ".join(filter(None, [self.where(path), shown(".".join(map(str, path))), problem]))


def _version(value: object) -> int:
    if type(value) is int and value == 1:  # true and 1.0 are equal to 1 as well
        return value
    raise ValueError(f"this vtc reads version 1 recipes, not {reprlib.repr(value)}")


class Recipe(Written):
    """What to do to a model, for any model.

    ``stages`` stand in the order data meets them; none at all is the null recipe, the model as it is. A ``budget``
    takes the place of a ``keep`` in each pruning stage.
    `vtc.plan.plan` says what a recipe comes to for one model.
    """

    version: Annotated[Literal[1], BeforeValidator(_version)]
    """Version of the recipe format."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Name of the recipe, in listings and in everything that is made from it: letters, digits, ``.``, ``_`` and
    ``-``."""
    description: str = ""
    """What the recipe does, in one line."""
    paper: str | None = None
    """The method that the recipe follows, and where it is published."""
    budget: Budget | None = None
    """One budget for all pruning stages, in place of a ``keep`` in each."""
    split_text: bool = False
    """Where a stage before the decoder reads the question: export what comes before that as a graph that is run once an
    image, and the rest as one that is run once a question."""
    experts: ExpertPlacement | None = None
    """Of a mixture of experts: where experts are to live in expert parallelism, for whoever serves the model."""
    stages: Annotated[tuple[Stage, ...], Field(strict=False)]
    """What is done to the model, in the order in which data meets it; an empty list leaves the model as it is."""
    _source: RecipeSource = PrivateAttr(default_factory=RecipeSource)

    @property
    def source(self) -> RecipeSource:
        """Where the recipe was written."""
        return self._source

    def with_source(self, source: RecipeSource) -> Recipe:
        """Return the same recipe, written at `source`."""
        recipe = self.model_copy()
        recipe._source = source
        return recipe

    def canonical(self) -> dict[str, Any]:
        """Return the recipe as plain JSON data with every default filled in, but for ``split_text``."""
        return self.model_dump(mode="json", exclude_none=True, exclude=None if self.split_text else {"split_text"})

    @property
    def digest(self) -> str:
        """sha256 (hex) of what the recipe does; its name and prose do not count."""
        canonical = self.canonical()
        body = {
            key: canonical[key] for key in ("version", "budget", "split_text", "experts", "stages") if key in canonical
        }
        return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def to_yaml(self) -> str:
        """Return YAML text that loads to an equal recipe."""
        canonical = self.canonical()
        # Unicode's own line breaks are read back as plain ones unless they are escaped.
        breaks = any(mark in json.dumps(canonical, ensure_ascii=False) for mark in "\x85\u2028\u2029")
        return yaml.dump(canonical, Dumper=_Dumper, sort_keys=False, allow_unicode=not breaks, width=110)

    @property
    def budgets(self) -> tuple[int, ...]:
        """Numbers of tokens of which each question takes one, ascending; none where a recipe has one for all."""
        return next((stage.budgets for stage in self.stages if stage.budgets), ())

    def at_budget(self, keep: int) -> Recipe:
        """Return the recipe with one of its `budgets` alone, all else as it is.

        Raises
        ------
        RecipeError
            If `keep` is none of them.
        """
        if keep not in self.budgets:
            these = ", ".join(map(str, self.budgets)) or "none"
            raise RecipeError(f"{self._source.file}: has no budget of {keep} tokens; it has {these}")
        stages = tuple(stage.model_copy(update={"keep": keep}) if stage.budgets else stage for stage in self.stages)
        return self.model_copy(update={"stages": stages})

    def first(self, count: int) -> Recipe:
        """Return the recipe with its first stages alone, and without where experts live, which is for all of them."""
        return self.model_copy(update={"stages": self.stages[:count], "experts": None})

    @property
    def split_at(self) -> int | None:
        """Number of the stage at which the vision graph is split in two; None where it is not."""
        readers = (number for number, stage in enumerate(self.stages) if stage.splits)
        return next(readers, None) if self.split_text else None

    @property
    def needs_experts(self) -> bool:
        """Whether it is for mixtures of experts alone."""
        return self.experts is not None or any(stage.needs_experts for stage in self.stages)

    @property
    def tried_on(self) -> str:
        """Name of the model that ships with vtc and that the recipe can be tried on."""
        return "reference-moe" if self.needs_experts else "reference"

    @property
    def autos(self) -> list[str]:
        """Key paths of the values left to calibration, such as ``stages.0.keep``."""
        return [".".join(map(str, path)) for path in _find_autos(self.canonical()["stages"], ("stages",))]

    @property
    def measured(self) -> list[str]:
        """What is chosen by measuring: those of `autos` that are no trained parts, and where experts live."""
        chosen = [key for key in self.autos if not key.endswith(".checkpoint")]
        return chosen + (["experts"] if self.experts is not None else [])

    def resolved(self, values: Mapping[str, Any]) -> Recipe:
        """Fill in what calibration found.

        Parameters
        ----------
        values
            A value for each key path, as `autos` names them: ``{"stages.0.layers": [5, 6]}``.

        Returns
        -------
        Recipe
            The recipe with those values; the ``count``, ``energy`` or ``training`` that guided a choice is gone with
            its ``auto``.

        Raises
        ------
        RecipeError
            A path is not one of `autos`.
        pydantic.ValidationError
            A value does not fit its key; a fault of the caller, not of the user.
        """
        unknown = sorted(set(values) - set(self.autos))
        if unknown:
            raise RecipeError(f"{self._source.file}: {unknown[0]} is not left to calibration")
        data = self.canonical()
        for dotted, value in values.items():
            *parents, key = dotted.split(".")
            target: Any = data
            for parent in parents:
                target = target[int(parent)] if isinstance(target, list) else target[parent]
            target[key] = value
            target.pop(self._guide(parents, key), None)
        return Recipe.model_validate(data).with_source(self._source)

    def _guide(self, parents: list[str], key: str) -> str:
        """Key beside `key` that guided the choice of its value."""
        guides = {"checkpoint": "training"} | dict(self.stages[int(parents[1])].guides)
        return guides.get(key, "")

    def trained(self) -> Iterator[tuple[int, KeyPath, Trained]]:
        """Yield each part with parameters of its own: its stage's number, the path of its entry, and the entry."""
        for number, stage in enumerate(self.stages):
            for keys, entry in stage.trained():
                yield number, ("stages", number, *keys), entry

    def checkpoint(self, stage: int) -> Path:
        """Return the file of stage number `stage`'s trained part.

        Raises
        ------
        RecipeError
            The stage has none, the file is missing, or a link leads it out of the recipe's directory.
        """
        found = next(((path, entry) for number, path, entry in self.trained() if number == stage), None)
        if found is None:
            raise RecipeError(self._source.message(("stages", stage), "has no checkpoint"))
        path, entry = (*found[0], "checkpoint"), found[1]
        directory = (self._source.directory or Path.cwd()).resolve()
        file = (directory / entry.checkpoint).resolve()
        if not file.is_relative_to(directory):
            raise RecipeError(self._source.message(path, "leads out of the recipe's directory"))
        if not file.is_file():
            raise RecipeError(self._source.message(path, f"no such file: {file}"))
        return file


class _Dumper(yaml.SafeDumper):
    """Writes lists of numbers, and lists of pairs, in a line."""


def _list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    leaves = not any(isinstance(item, dict | list) for item in data)
    pairs = all(isinstance(item, list) and len(item) == 2 and not isinstance(item[0], dict | list) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=leaves or pairs)


_Dumper.add_representer(list, _list)


def _find_autos(value: object, path: KeyPath) -> Iterator[KeyPath]:
    if value == "auto":
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _find_autos(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _find_autos(item, (*path, index))


NONE = Recipe(version=1, name="none", stages=())
"""Nothing is done: the model as it is."""
