"""Directories that appear whole or not at all, with a manifest that knows the hash of every file.

Work happens in a hidden directory beside the output, so that a killed command leaves nothing that looks
finished and a rerun finds what was done. Publishing hashes the files, writes the manifest, flushes everything
to disk and renames the directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from vtc.errors import BundleError, VtcError
from vtc.machine import machine_fault

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 2**20
HASHED_AT_ONCE = 2**20
_SEAL = re.compile(rb'(?<=\n  "digest": ")[0-9a-f]{64}(?=")')


def staging_dir(out: Path) -> Path:
    """Where an output directory is prepared: ``.NAME.partial`` beside it."""
    out = Path(os.path.abspath(out))
    return out.with_name(f".{out.name}.partial")


def check_output(out: Path, kind: str) -> None:
    """Make sure that a finished artifact may be put at `out`; call it before the work begins.

    Raises
    ------
    BundleError
        If something is there that is not an artifact of the same kind, or an empty directory.
    """
    out = Path(os.path.abspath(out))
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise BundleError(f"{out}: exists and is not a directory; give another output directory")
    if not any(out.iterdir()):
        return
    try:
        found = json.loads((out / MANIFEST).read_bytes()).get("kind")
    except (OSError, ValueError, AttributeError):
        found = None
    if found != kind:
        raise BundleError(f"{out}: exists and is not a {_noun(kind)} of vtc's; give another directory or remove it")


def publish(work: Path, out: Path, manifest: Mapping[str, Any]) -> Path:
    """Turn a finished work directory into the artifact at `out`.

    Parameters
    ----------
    work : Path
        On the same file system as `out` (see :func:`staging_dir`). Files whose name starts with a dot are
        notes for a rerun and are removed.
    out : Path
        Does not exist, is empty, or holds an artifact of the same kind, which is replaced.
    manifest : mapping
        JSON values, with ``kind`` and ``schema``; ``files`` and ``digest`` are filled in here.

    Returns
    -------
    Path
        `out`, absolute.

    Raises
    ------
    BundleError
        If `out` holds something else.
    VtcError
        If the disk refuses; the work directory stays for a rerun.
    """
    out = Path(os.path.abspath(out))
    check_output(out, str(manifest["kind"]))
    try:
        notes = [path for path in work.rglob(".*") if path.is_file()]
        files = {}
        for path in sorted(work.rglob("*")):
            if path.is_symlink():
                raise BundleError(f"{path}: is a symbolic link; an artifact holds its files itself")
            if path.is_file() and path not in notes and path != work / MANIFEST:
                files[path.relative_to(work).as_posix()] = {
                    "sha256": sha256(path),
                    "bytes": path.stat().st_size,
                }
                _flush(path)
        (work / MANIFEST).write_bytes(_sealed({**manifest, "files": files}))
        _flush(work / MANIFEST)
        for path in notes:
            path.unlink()
        for directory in [path for path in work.rglob("*") if path.is_dir()] + [work]:
            _flush(directory)
        _swap(work, out)
    except OSError as error:
        raise VtcError(
            f"{out}: cannot be written ({error.strerror or error}); the work is kept in {work.name}, "
            "so free space or fix permissions and run the same command again"
        ) from error
    return out


def read_manifest(path: Path, kind: str, schema: int) -> dict[str, Any]:
    """Read and check an artifact's manifest; its files are not looked at (see :func:`verify_files`).

    Raises
    ------
    BundleError
        If there is none, it is of another kind or a newer schema, or it has changed since it was written.
    """
    if not path.is_dir():
        raise BundleError(f"{path}: no such {_noun(kind)} directory")
    file = path / MANIFEST
    try:
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{file}: is larger than {MAX_MANIFEST_BYTES} bytes, so it is not a manifest of vtc's")
        data = file.read_bytes()
        manifest = json.loads(data)
    except FileNotFoundError:
        raise BundleError(f"{path}: is not a {_noun(kind)}: it holds no {MANIFEST}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise machine_fault(error) or BundleError(
            f"{file}: cannot be read ({error}); write the {_noun(kind)} again"
        ) from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        raise BundleError(f"{file}: is not a manifest of vtc's")
    if manifest.get("kind") != kind:
        hint = "; `vtc export` makes a bundle of it" if manifest.get("kind") == "compressed" else ""
        raise BundleError(f"{path}: is a '{manifest.get('kind')}', not a {_noun(kind)}{hint}")
    if manifest["schema"] > schema:
        raise BundleError(
            f"{path}: was written by a newer vtc (schema {manifest['schema']}, "
            f"this one reads up to {schema}); upgrade vtc"
        )
    seals = _SEAL.findall(data)
    if len(seals) != 1 or _seal(data) != seals[0]:
        raise BundleError(f"{file}: has changed since it was written; write the {_noun(kind)} again")
    return manifest


def verify_files(root: Path, files: Mapping[str, Mapping[str, Any]], *, hashes: bool = True) -> None:
    """Compare an artifact's files with its manifest.

    Parameters
    ----------
    root : Path
    files : mapping of relative path to ``{"sha256": hex, "bytes": int}``
    hashes : bool
        False compares sizes only.

    Raises
    ------
    BundleError
        At the first file that is missing, has changed, or lies outside the directory.
    """
    for name, expected in files.items():
        path = inside(root, name)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise machine_fault(error) or BundleError(
                f"{root}: {name} is missing; copy or write it again, whole"
            ) from None
        if size != expected["bytes"] or (hashes and sha256(path) != expected["sha256"]):
            raise BundleError(f"{root}: {name} has changed since it was written; copy or write it again, whole")


def inside(root: Path, name: str) -> Path:
    """The file `name` of an artifact.

    Raises
    ------
    BundleError
        If the name, or a symbolic link on the way, leads out of the directory.
    """
    pure = PurePosixPath(name)
    plain = name and not pure.is_absolute() and ".." not in pure.parts and not set(name) & set("\\:\0")
    if not plain or not (root / name).resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{root}: refers to {name!r}, which lies outside its directory")
    return root / name


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def digest_of(path: Path) -> str:
    """Hex digest of a file that an interrupted run may have left; a word that is none where there is no file."""
    return sha256(path) if path.is_file() else "missing"


def _noun(kind: str) -> str:
    return {"compressed": "compressed model", "engines": "set of engines"}.get(kind, kind)


def _sealed(manifest: dict[str, Any]) -> bytes:
    blank = json.dumps({**manifest, "digest": "0" * 64}, indent=2, ensure_ascii=False).encode() + b"\n"
    return _SEAL.sub(_seal(blank), blank)


def _seal(data: bytes) -> bytes:
    """Digest of every byte of a manifest but the digest itself, so that a flipped bit anywhere is noticed."""
    return hashlib.sha256(_SEAL.sub(b"0" * 64, data)).hexdigest().encode()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(work: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    try:
        work.rename(out)
    except BaseException:
        if old.exists():
            old.rename(out)
        raise
    _flush(out.parent)
    shutil.rmtree(old, ignore_errors=True)
