"""Optimised variants: portable graphs rewritten for one runtime, beside them and with the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from exporters.precision import NAMES, Precision, precision
from exporters.rewriting import Rewritten, rewrite
from exporters.steps import STEP
from vtc.bundle.facts import FORMS, Variant, precision_and_form, variant_name
from vtc.errors import InputError
from vtc.progress import Report, silent


@dataclass(frozen=True)
class Optimised:
    """A variant that was written.

    Attributes
    ----------
    variant : Variant
    paths : dict of graph name to Path
        Of graphs that are other than the portable ones.
    rewritten : tuple of Rewritten
        What became of each graph.
    """

    variant: Variant
    paths: dict[str, Path]
    rewritten: tuple[Rewritten, ...]

    def notes(self) -> dict[str, Any]:
        """Plain JSON data: which operators each graph has now, and what stayed as it was, and why."""
        return {one.graph: {"fused": one.fused, "left": list(one.left)} for one in self.rewritten}


def has_forms(one: Precision) -> bool:
    """Whether graphs of a precision are rewritten.

    Others have no proof here: what rounds its activations parts from any other order of the same sums, and no CPU runs
    bfloat16.
    """
    return one.activations != "all" and one.base != "bf16"


NAMES_OF_VARIANTS = tuple(
    variant_name(name, form) for name in NAMES for form in FORMS if form == "portable" or has_forms(precision(name))
)
"""What ``vtc export --variant`` takes."""


def wanted_variants(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Precisions and optimised variants of what a user asks for, each once.

    A variant's precision is among the precisions: the portable graphs are always there, and are what parity is proved
    on first.

    Raises
    ------
    InputError
        If there is no such variant.
    """
    precisions: list[str] = []
    optimised: list[str] = []
    for name in dict.fromkeys(names):
        if name not in NAMES_OF_VARIANTS:
            raise InputError(f"variant '{name}' is not known; variants: {', '.join(NAMES_OF_VARIANTS)}")
        of, form = precision_and_form(name)
        precisions.append(of)
        if form != "portable":
            optimised.append(name)
    return list(dict.fromkeys(precisions)), optimised


def portable(name: str) -> Variant:
    """The variant of a precision's portable graphs."""
    return Variant(name, name, session=dict(precision(name).session))


def optimise(name: str, paths: Mapping[str, Path], progress: Report = silent) -> Optimised:
    """Write a variant's graphs beside the portable ones.

    Parameters
    ----------
    name : str
        An optimised variant's.
    paths : mapping of graph name to Path
        The portable graphs of its precision.
    progress : callable
    """
    of, form = precision_and_form(name)
    if form == "portable":
        raise AssertionError("portable graphs are exported")
    found: dict[str, Path] = {}
    rewritten: list[Rewritten] = []
    for done, (graph, path) in enumerate(paths.items()):
        progress(f"writing {name} graphs", done, len(paths))
        if form == "ort" and graph.startswith(STEP):
            continue  # ONNX Runtime's own mixture computes the chosen experts alone, of any number of tokens
        model = ir.load(path)
        one = rewrite(model, form, graph)
        rewritten.append(one)
        if one.fused:
            found[graph] = path.with_name(variant_file(path, form))
            ir.save(model, found[graph])  # large weights stay in the file beside the portable graph
    progress(f"writing {name} graphs", len(paths), len(paths))
    in_place = tuple(one.graph for one in rewritten if one.in_place)
    session = dict(precision(of).session)
    return Optimised(Variant(name, of, form, session, in_place), found, tuple(rewritten))


def variant_file(portable_graph: Path, form: str) -> str:
    """Name of a rewritten graph's file."""
    return f"{portable_graph.stem}_{form}.onnx"


def to_json(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Plain JSON data of a manifest's ``variants``."""
    return [asdict(one) for one in variants]
