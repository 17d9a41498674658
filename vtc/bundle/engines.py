"""Engine sets: what a builder made of a bundle's graphs for one kind of device, and whether it may be used here.

An engine is a graph compiled by TensorRT. It runs only on the GPU generations and with the TensorRT that it was built
for, and only with shapes inside its profiles; its set says which those are, and of which bundle it was made.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from vtc import artifact
from vtc.artifact import MANIFEST
from vtc.bundle.manifest import Manifest
from vtc.errors import BundleError
from vtc.staging import Work

SCHEMA = 1
KIND = "engines"
FOLDER = "engines"
"""Where a bundle's engine sets lie, one directory each, unless asked otherwise."""

Library = Literal["tensorrt", "tensorrt_rtx"]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """Shapes that an engine takes.

    Attributes
    ----------
    name : str
        ``prefill`` and ``decode`` of decoder segments, ``run`` of everything else; an engine's profiles are numbered in
        the order they stand in.
    shapes : dict of input name to (min, opt, max)
    """

    name: Literal["prefill", "decode", "run"]
    shapes: dict[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class Engine:
    """One graph's engine.

    Attributes
    ----------
    file : str
        In the set's directory.
    profiles : tuple of Profile
    memory : int
        Bytes of activations that it wants while it runs; 0 where there was no GPU to ask when it was built.
    """

    file: str
    profiles: tuple[Profile, ...]
    memory: int


@dataclass(frozen=True)
class Limits:
    """What inputs engines are built for.

    Attributes
    ----------
    batch : int
        Prompts at a time.
    images : int
        Images (or clips) of one prompt.
    text : int
        Text tokens of a prompt, those that stand around images included.
    new_tokens : int
        Tokens of an answer.
    """

    batch: int = 1
    images: int = 1
    text: int = 512
    new_tokens: int = 512


@dataclass(frozen=True)
class EngineSet:
    """What an engine set's manifest says.

    Attributes
    ----------
    root : Path
    bundle : str
        Digest that the bundle's manifest carries.
    recipe_digest : str
    target, precision : str
    library : str
        Which TensorRT.
    library_version : str
    capabilities : tuple of str
        GPU generations, such as ``8.6``.
    limits : Limits
    engines : dict of graph name to Engine
    files : dict of file name to its hash and size
    """

    schema: int
    kind: Literal["engines"]
    vtc_version: str
    bundle: str
    recipe_digest: str
    target: str
    precision: str
    library: Library
    library_version: str
    capabilities: tuple[str, ...]
    limits: Limits
    engines: dict[str, Engine]
    files: dict[str, dict[str, Any]]
    digest: str
    root: Path = field(default=Path())

    def file(self, graph: str) -> Path:
        """Path of a graph's engine.

        Raises
        ------
        BundleError
            If the set holds none for it.
        """
        if graph not in self.engines:
            raise BundleError(f"{self.root}: holds no engine for {graph}; run vtc build again")
        name = self.engines[graph].file
        if name not in self.files:
            raise BundleError(f"{self.root}: lists no hash of {name}; run vtc build again")
        return artifact.inside(self.root, name)


def engines_dir(bundle: Path, target: str, precision: str) -> Path:
    """Where `vtc build` puts a set, and the runtime looks for it."""
    return bundle / FOLDER / f"{target}-{precision}"


def load_engines(root: Path, bundle: Manifest, *, verify: bool = True) -> EngineSet:
    """Read an engine set and make sure that it belongs to a bundle.

    Parameters
    ----------
    root : Path
    bundle : Manifest
    verify : bool
        False compares the files' sizes but not their hashes.

    Raises
    ------
    BundleError
        If it is none, incomplete, changed, or was built from another bundle.
    """
    data = artifact.read_manifest(root, KIND, SCHEMA)
    try:
        found = TypeAdapter(EngineSet).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BundleError(f"{root / MANIFEST}: {place}: {first['msg']}; run vtc build again") from None
    if found.bundle != bundle.digest:
        raise BundleError(f"{root}: was built from another bundle than {bundle.root}; run vtc build again")
    artifact.verify_files(root, found.files, hashes=verify)
    return replace(found, root=root)


def write_engines(
    work: Work | Path, out: Path, manifest: Mapping[str, Any], files: Collection[str] | None = None
) -> Path:
    """Publish a finished work directory as an engine set, whole or not at all.

    Parameters
    ----------
    work, out, files
        As for :func:`vtc.artifact.publish`.
    manifest : mapping
        The fields of :class:`EngineSet` from ``vtc_version`` to ``engines``.
    """
    return artifact.publish(work, out, {**manifest, "schema": SCHEMA, "kind": KIND}, files)
