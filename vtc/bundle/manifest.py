"""Bundles: an exported model as a directory that this and other runtimes can load.

Besides the graphs under ``onnx/`` a bundle holds the processor, tokenizer, chat template and config files
that transformers.js expects, and ``manifest.json`` with what only vtc asks for.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from vtc import artifact
from vtc.artifact import MANIFEST
from vtc.bundle.external_data import external_files
from vtc.bundle.facts import GenerationFacts, SegmentFacts, ServedImage, Variant, precision_and_form
from vtc.bundle.upgrade import OLDEST, upgraded
from vtc.errors import BundleError, InputError
from vtc.files import read_json
from vtc.machine import machine_fault
from vtc.origin import check_origin
from vtc.staging import Work

SCHEMA = 6
KIND = "bundle"
_COUNTED = ("opset", "images", "generation", "segments")
_MOST = 2**31 - 1
"""Largest whole number of what is counted in a bundle: sizes, layers, tokens and their ids."""
_FILLED_IN = ("schema", "kind", "files", "digest")
"""Fields that are filled in when a bundle is published."""
WEIGHTS = "_data"
"""What the file with a graph's weights is called beyond the graph's own file, where they are too large for that."""


@dataclass(frozen=True)
class FileEntry:
    """A file's hash and size."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says.

    Attributes
    ----------
    root : Path
        The bundle's directory.
    recipe, plan, baseline_plan : dict
        In the forms of `vtc.recipe` and `vtc.plan`; the runtime does not look inside.
    has_places : bool
        Whether `keep_indices` are places in the image: the tokens are some of the original model's.
    images : tuple of ServedImage
        Layouts that are served, the first of them by default; where the recipe has several budgets, each layout at each
        of them, the largest first.
    variants : tuple of Variant
        Sets of graphs, the portable one of each precision among them.
    graphs : dict of graph name to dict of variant to path
        A variant that has no graph of its own has its precision's portable one.
    files : dict of path to FileEntry
        Every file of the bundle but the manifest.
    digest : str
        Of the manifest, and with its hashes of the whole bundle; empty of one that is not published yet.
    """

    schema: int
    kind: Literal["bundle"]
    vtc_version: str
    model: dict[str, Any]
    recipe: dict[str, Any]
    recipe_digest: str
    plan: dict[str, Any]
    baseline_plan: dict[str, Any]
    has_places: bool
    opset: int
    variants: tuple[Variant, ...]
    images: tuple[ServedImage, ...]
    generation: GenerationFacts
    segments: tuple[SegmentFacts, ...]
    graphs: dict[str, dict[str, str]]
    parity: dict[str, Any]
    files: dict[str, FileEntry]
    digest: str = ""
    root: Path = field(default=Path())

    @property
    def precisions(self) -> tuple[str, ...]:
        """Of the portable graphs."""
        return tuple(one.name for one in self.variants if one.form == "portable")

    @property
    def engine_graphs(self) -> tuple[str, ...]:
        """Names of the graphs that engines are built of: all but second ones for steps.

        An engine has memory of its own for its weights, so that one for steps would hold all experts once more.
        """
        steps = {segment.step.graph for segment in self.segments if segment.step}
        return tuple(name for name in self.graphs if name not in steps)

    @property
    def budgets(self) -> tuple[int, ...]:
        """The recipe's budgets, ascending; none where it has one for all questions."""
        return tuple(sorted({served.budget for served in self.images if served.budget is not None}))

    def at_budget(self, keep: int | None = None) -> Manifest:
        """What is said of one budget alone; None takes the largest.

        Raises
        ------
        InputError
            If the bundle has no such budget.
        """
        if keep is not None and keep not in self.budgets:
            these = f"it has {', '.join(map(str, self.budgets))}" if self.budgets else "it has one for all questions"
            raise InputError(f"{self.root}: has no budget of {keep} visual tokens; {these}")
        wanted = max(self.budgets, default=None) if keep is None else keep
        return replace(self, images=tuple(served for served in self.images if served.budget == wanted))

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files.

        Raises
        ------
        BundleError
            If the bundle holds no such file.
        """
        if name not in self.files:
            raise BundleError(f"{self.root}: holds no {name}; export it again")
        return artifact.inside(self.root, name)

    def check_precision(self, precision: str) -> None:
        """Make sure that the bundle has graphs of a precision.

        Raises
        ------
        InputError
            If not.
        """
        if precision not in self.precisions:
            raise InputError(
                f"{self.root}: holds no {precision} graphs, only {', '.join(one.name for one in self.variants)}; "
                f"give another --precision, or export it with --precision {precision}"
            )

    def graph(self, name: str, variant: str) -> Path:
        """Path of a graph of a variant.

        Raises
        ------
        BundleError
            If the bundle has none, or it keeps weights in a file that the manifest does not list.
        """
        path, *_ = self._files(name, variant)
        return artifact.inside(self.root, path)

    def graph_files(self, name: str, variant: str) -> dict[str, FileEntry]:
        """A graph's file, and those with its weights where they are others."""
        return {file: self.files[file] for file in self._files(name, variant)}

    def graph_bytes(self, variant: str) -> int:
        """Of a variant's graphs, with the weights that lie beside them; what two share counts once."""
        files = {file: entry for name in self.graphs for file, entry in self.graph_files(name, variant).items()}
        return sum(entry.bytes for entry in files.values())

    def _path(self, name: str, variant: str) -> str:
        paths = self.graphs.get(name, {})
        portable, _ = precision_and_form(variant)
        found = paths.get(variant, paths.get(portable))
        if found is None:
            raise BundleError(f"{self.root}: names no {variant} graph '{name}'; export it again")
        return found

    def _files(self, name: str, variant: str) -> list[str]:
        graph = self._path(name, variant)
        path, folder = self.file(graph), PurePosixPath(graph).parent
        found = [graph]
        for beside in sorted(external_files(path)):
            listed = (folder / beside).as_posix()
            if not beside or ".." in PurePosixPath(beside).parts or listed not in self.files:
                raise BundleError(
                    f"{path}: keeps weights in {beside!r}, which the manifest does not list; export it again"
                )
            artifact.inside(self.root, listed)
            found.append(listed)
        return found

    def json(self, name: str) -> dict[str, Any]:
        """Content of one of the bundle's JSON files.

        Raises
        ------
        BundleError
            If it is missing or not a JSON object.
        """
        try:
            content = read_json(self.file(name))
        except (OSError, ValueError) as error:
            raise machine_fault(error) or BundleError(
                f"{self.root}: {name} cannot be read ({error}); export it again"
            ) from None
        if not isinstance(content, dict):
            raise BundleError(f"{self.root}: {name} is not a JSON object; export it again")
        return content


def load_manifest(path: str | Path, verify: bool = True) -> Manifest:
    """Read a bundle's manifest and compare its files with it.

    Parameters
    ----------
    path : str or Path
    verify : bool
        False compares the files' sizes but not their hashes.

    Returns
    -------
    Manifest

    Raises
    ------
    BundleError
        If it is no bundle, comes from a newer vtc, or is incomplete, changed or inconsistent.
    """
    root = Path(path)
    data = artifact.read_manifest(root, KIND, SCHEMA)
    if data["schema"] < OLDEST:
        raise BundleError(f"{root}: was written by an older vtc (schema {data['schema']}); export the bundle again")
    manifest = _parse(data, root)
    artifact.verify_files(root, data["files"], hashes=verify)
    return manifest


def manifest_fields(manifest: Manifest) -> dict[str, Any]:
    """What a bundle's manifest says, in the words of today, for :func:`write_bundle` to write with changes."""
    data = artifact.read_manifest(manifest.root, KIND, SCHEMA)
    return {name: value for name, value in upgraded(data, manifest.root).items() if name not in _FILLED_IN}


def draft_manifest(work: Path, manifest: Mapping[str, Any]) -> Manifest:
    """The manifest of a bundle that is not published yet, so that its graphs can be run before they are.

    Parameters
    ----------
    work : Path
    manifest : mapping
        As for :func:`write_bundle`.
    """
    files = {
        path.relative_to(work).as_posix(): {"sha256": "", "bytes": path.stat().st_size}
        for path in work.rglob("*")
        if path.is_file()
    }
    return _parse({**manifest, "schema": SCHEMA, "kind": KIND, "files": files}, work)


def write_bundle(
    work: Work | Path, out: Path, manifest: Mapping[str, Any], files: Collection[str] | None = None
) -> Path:
    """Publish a finished work directory as a bundle, whole or not at all.

    Parameters
    ----------
    work : Work or Path
        Holds every file but the manifest.
    out : Path
        Does not exist, is empty, or is a bundle, which is replaced.
    manifest : mapping
        The fields of :class:`Manifest` without ``root`` and ``files``.
    files : collection of str or None
        As for :func:`vtc.artifact.publish`.

    Returns
    -------
    Path
        `out`, absolute.
    """
    return artifact.publish(work, out, {**manifest, "schema": SCHEMA, "kind": KIND}, files)


def _parse(data: Mapping[str, Any], root: Path) -> Manifest:
    try:
        present = upgraded(data, root)
        for part in _COUNTED:
            _check_counts(present.get(part), part)
        manifest = TypeAdapter(Manifest).validate_json(json.dumps(present), strict=True)
    except (KeyError, TypeError, AttributeError):  # of an earlier schema, which is not looked at before
        raise BundleError(f"{root / MANIFEST}: is not a manifest of its schema; export the bundle again") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BundleError(f"{root / MANIFEST}: {place}: {first['msg']}; export the bundle again") from None
    except ValueError as error:
        raise BundleError(f"{root / MANIFEST}: {error}; export the bundle again") from None
    check_origin(present, root / MANIFEST)
    manifest = replace(manifest, root=root)
    _check(manifest)
    return manifest


def _check_counts(value: Any, place: str) -> None:
    """Refuse whole numbers that nothing in a bundle comes to."""
    if isinstance(value, int) and abs(value) > _MOST:
        raise ValueError(f"{place} is {value:.3g}, which is no number of a bundle's")
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        _check_counts(part, f"{place}.{name}")


def _check(manifest: Manifest) -> None:
    """What must hold between the fields for the runtime to work."""

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise BundleError(f"{manifest.root / MANIFEST}: {what}; export the bundle again")

    selectors = [segment.selector for segment in manifest.segments if segment.selector]
    pruning = [selector.graph for selector in selectors if selector.kind == "prune"]
    names = [name for served in manifest.images for name in served.graphs]
    names += [name + served.suffix for served in manifest.images for name in pruning]
    names += ["embed_tokens", *(name for segment in manifest.segments for name in segment.graphs)]
    names += [selector.graph for selector in selectors if selector.kind != "prune"]
    require(bool(manifest.precisions), "names no precision")
    require(bool(manifest.images), "serves no image")
    counted = [served.budget for served in manifest.images]
    require(all(counted.count(one) == counted.count(counted[0]) for one in counted), "lacks layouts of a budget")
    require(bool(manifest.generation.eos_token_ids), "names no token that ends an answer")
    variants = [one.name for one in manifest.variants]
    require(len(set(variants)) == len(variants), "names a variant twice")
    for one in manifest.variants:
        require(one.precision in manifest.precisions, f"has {one.name} graphs without {one.precision} graphs")
    for name in names:
        for precision in manifest.precisions:
            require(precision in manifest.graphs.get(name, {}), f"names no {precision} graph '{name}'")
    for paths in manifest.graphs.values():
        for path in paths.values():
            require(path in manifest.files, f"lists no hash of {path}")
    steps = [segment.step for segment in manifest.segments if segment.step]
    require(all(step.rows > 0 for step in steps), "has a graph for steps of no rows")
    layers = [layer for segment in manifest.segments for layer in segment.layers]
    whole = layers == list(range(len(layers))) and len(layers) == manifest.generation.layers
    require(whole, "has segments that do not make up the decoder")
    for served in manifest.images:
        require(
            len(served.segment_tokens_per_span) == len(manifest.segments),
            "does not count every segment's visual tokens",
        )
        sees, tokens = "all", served.keep_per_span
        for segment, visual in zip(manifest.segments, served.segment_tokens_per_span, strict=True):
            found = segment.selector.kind if segment.selector else None
            kind = None if segment.sees == sees else "gather" if segment.sees == "text" else "merge"
            if found == "prune" and segment.sees == sees == "all":
                kind, tokens = found, visual
            right = found == kind and visual == (tokens if segment.sees == "all" else 0)
            require(right, f"has segment '{segment.graph}' with the wrong selector before it")
            sees = segment.sees
