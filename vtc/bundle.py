"""Bundles: an exported model as a directory that this and other runtimes can load.

Besides the graphs under ``onnx/`` a bundle holds the processor, tokenizer, chat template and config files
that transformers.js expects, and ``manifest.json`` with what only vtc asks for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from vtc import artifact
from vtc.artifact import MANIFEST, check_output, staging_dir
from vtc.errors import BundleError

__all__ = [
    "SCHEMA",
    "FileEntry",
    "GenerationFacts",
    "ImageFacts",
    "Manifest",
    "SegmentFacts",
    "SelectorFacts",
    "check_output",
    "draft_manifest",
    "load_manifest",
    "placeholder_config",
    "staging_dir",
    "write_bundle",
]

SCHEMA = 2
KIND = "bundle"


@dataclass(frozen=True)
class ImageFacts:
    """What becomes of an image.

    Attributes
    ----------
    size : (int, int)
        Rows and columns of pixels that the vision graph takes.
    grid : (int, int)
        Rows and columns of the original model's visual tokens.
    tokens, keep : int
        Visual tokens of the original model, and those that leave the vision graph.
    """

    size: tuple[int, int]
    grid: tuple[int, int]
    tokens: int
    keep: int


@dataclass(frozen=True)
class GenerationFacts:
    """What generation needs to know: special tokens, positions, and the KV cache's sizes.

    Attributes
    ----------
    positions : str
        ``renumber``: tokens are numbered contiguously; ``original``: kept tokens keep their places on the
        full grid.
    position_span : int
        Positions that an image takes: its tokens, or with ``original`` the places they were kept from.
    context : int
        Longest sequence, in positions, that the decoder was made for.
    layers, kv_heads, head_dim : int
        Decoder layers kept, and the shape of their cache.
    """

    image_token: str
    image_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    bos_token_id: int | None
    context: int
    positions: Literal["renumber", "original"]
    position_span: int
    kv_heads: int
    head_dim: int
    layers: int


@dataclass(frozen=True)
class SelectorFacts:
    """A graph between two segments.

    Attributes
    ----------
    kind : str
        ``gather`` takes (hidden states, indices), ``merge`` (hidden states of all tokens, of some tokens,
        indices into both laid end to end), ``prune`` (hidden states, mask, positions, the arrays of
        :class:`vtc.sequence.Cut`).
    queries : str or None
        For ``prune``, which text tokens rank the visual ones; see :func:`vtc.sequence.cut`.
    """

    graph: str
    kind: Literal["gather", "merge", "prune"]
    queries: str | None = None


@dataclass(frozen=True)
class SegmentFacts:
    """A run of decoder layers.

    Attributes
    ----------
    layers : tuple of int
        Numbers among the kept layers; those of the KV tensors' names.
    sees : str
        ``all`` tokens that there still are, or ``text`` tokens only.
    visual_tokens : int
        Visual tokens of an image in these layers.
    selector : SelectorFacts or None
        Applied to hidden states before this segment, in prefill only.
    """

    graph: str
    layers: tuple[int, ...]
    sees: Literal["all", "text"]
    visual_tokens: int
    selector: SelectorFacts | None


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
    graphs : dict of graph name to dict of precision to path
    files : dict of path to FileEntry
        Every file of the bundle but the manifest.
    """

    schema: int
    kind: Literal["bundle"]
    vtc_version: str
    model: dict[str, Any]
    recipe: dict[str, Any]
    recipe_digest: str
    plan: dict[str, Any]
    baseline_plan: dict[str, Any]
    opset: int
    precisions: tuple[str, ...]
    image: ImageFacts
    generation: GenerationFacts
    segments: tuple[SegmentFacts, ...]
    graphs: dict[str, dict[str, str]]
    parity: dict[str, Any]
    files: dict[str, FileEntry]
    root: Path = field(default=Path())

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

    def graph(self, name: str, precision: str) -> Path:
        """Path of a graph in a precision."""
        return self.file(self.graphs[name][precision])

    def json(self, name: str) -> dict[str, Any]:
        """Content of one of the bundle's JSON files.

        Raises
        ------
        BundleError
            If it is missing or not a JSON object.
        """
        try:
            content = json.loads(self.file(name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{self.root}: {name} cannot be read ({error}); export it again") from None
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
    manifest = _parse(data, root)
    artifact.verify_files(root, data["files"], hashes=verify)
    return manifest


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


def write_bundle(work: Path, out: Path, manifest: Mapping[str, Any]) -> Path:
    """Publish a finished work directory as a bundle, whole or not at all.

    Parameters
    ----------
    work : Path
        Holds every file but the manifest (see :func:`staging_dir`); names that start with a dot are left out.
    out : Path
        Does not exist, is empty, or is a bundle, which is replaced.
    manifest : mapping
        The fields of :class:`Manifest` without ``root`` and ``files``.

    Returns
    -------
    Path
        `out`, absolute.
    """
    return artifact.publish(work, out, {**manifest, "schema": SCHEMA, "kind": KIND})


def placeholder_config(image_size: tuple[int, int], keep: int, patch_size: int) -> dict[str, Any]:
    """Fields of ``processor_config.json`` that make a LLaVA processor emit `keep` placeholders an image.

    `transformers` counts ``(H // patch_size) * (W // patch_size) + num_additional_image_tokens``, less one
    for the CLS token where the strategy is ``default``; transformers.js counts without that last step. With
    the strategy ``full`` and the pruned tokens as a negative number of additional ones, both come to `keep`.

    Parameters
    ----------
    image_size : (int, int)
        Rows and columns of pixels.
    keep : int
    patch_size : int
    """
    patches = (image_size[0] // patch_size) * (image_size[1] // patch_size)
    return {
        "patch_size": patch_size,
        "num_additional_image_tokens": keep - patches,
        "vision_feature_select_strategy": "full",
    }


def _parse(data: Mapping[str, Any], root: Path) -> Manifest:
    try:
        manifest = TypeAdapter(Manifest).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BundleError(f"{root / MANIFEST}: {place}: {first['msg']}; export the bundle again") from None
    manifest = replace(manifest, root=root)
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    """What must hold between the fields for the runtime to work."""

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise BundleError(f"{manifest.root / MANIFEST}: {what}; export the bundle again")

    selectors = [segment.selector for segment in manifest.segments if segment.selector]
    names = ["vision_encoder", "embed_tokens", *(segment.graph for segment in manifest.segments)]
    require(bool(manifest.precisions), "names no precision")
    for name in [*names, *(selector.graph for selector in selectors)]:
        for precision in manifest.precisions:
            require(precision in manifest.graphs.get(name, {}), f"names no {precision} graph '{name}'")
    for paths in manifest.graphs.values():
        for path in paths.values():
            require(path in manifest.files, f"lists no hash of {path}")
    layers = [layer for segment in manifest.segments for layer in segment.layers]
    require(layers == list(range(manifest.generation.layers)), "has segments that do not make up the decoder")
    sees, tokens = "all", manifest.image.keep
    for segment in manifest.segments:
        found = segment.selector.kind if segment.selector else None
        kind = None if segment.sees == sees else "gather" if segment.sees == "text" else "merge"
        if found == "prune" and segment.sees == sees == "all":
            kind, tokens = found, segment.visual_tokens
        right = found == kind and segment.visual_tokens == (tokens if segment.sees == "all" else 0)
        require(right, f"has segment '{segment.graph}' with the wrong selector in front")
        sees = segment.sees
