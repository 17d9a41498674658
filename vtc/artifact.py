"""Directories that appear whole or not at all, with a manifest that knows the hash of every file.

Work happens in a hidden directory beside the output (:mod:`vtc.staging`), so that a killed command leaves nothing that
looks finished and a rerun finds what was done. Publishing hashes the files, writes the manifest, flushes everything to
disk and puts the directory in its place in one step.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Mapping
from contextlib import suppress
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from vtc.errors import BundleError
from vtc.files import parse_json, read_bytes, read_json
from vtc.lock import is_left_lock, take_lock
from vtc.machine import machine_fault
from vtc.reference import is_shipped
from vtc.replacement import flush, old_place, replace_directory
from vtc.staging import (
    JOURNAL,
    Work,
    cannot_write,
    entries,
    is_work,
    not_ours,
    remove_empty,
    remove_work,
    staging_dir,
    start_journal,
    strangers,
)

__all__ = [
    "KINDS",
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "artifact_kind",
    "check_output",
    "digest_of",
    "inside",
    "publish",
    "read_manifest",
    "sha256",
    "staging_dir",
    "verify_files",
]

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 2**20
HASHED_AT_ONCE = 2**20
KINDS = ("bundle", "compressed", "engines")
NESTED = ("engines",)
"""Kinds of artifacts that are put into another one after that is published."""
_CHECKPOINT = "; that is a checkpoint, of which `vtc compress` and `vtc export` make one"
_SEAL = re.compile(rb'(?<=\n  "digest": ")[0-9a-f]{64}(?=")')


def check_output(out: Path, kind: str) -> None:
    """Make sure that a finished artifact may be put at `out`; call it before the work begins.

    Raises
    ------
    BundleError
        If something is there that is not an artifact of the same kind, or an empty directory; or an artifact that
        somebody has put files of their own into.
    """
    out = Path(os.path.abspath(out))
    try:
        _check_output(out, kind)
    except OSError as error:
        raise BundleError(f"{out}: cannot be read ({error.strerror or error})") from error


def _check_output(out: Path, kind: str) -> None:
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise BundleError(f"{out}: exists and is not a directory; give another output directory")
    if not any(out.iterdir()):
        return
    if artifact_kind(out) != kind:
        raise BundleError(f"{out}: exists and is not a {_noun(kind)} of vtc's; give another directory or remove it")
    own = set(_own_files(out))
    if foreign := [name for name, path in entries(out) if name not in own]:
        raise not_ours(out, foreign)


def publish(work: Work | Path, out: Path, manifest: Mapping[str, Any], files: Collection[str] | None = None) -> Path:
    """Turn a finished work directory into the artifact at `out`.

    Parameters
    ----------
    work : Work or Path
        On the same file system as `out`. A path is a directory of the caller's own that nobody else writes.
    out : Path
        Does not exist, is empty, or holds an artifact of the same kind, which is replaced.
    manifest : mapping
        JSON values, with ``kind`` and ``schema``; ``files`` and ``digest`` are filled in here.
    files : collection of str or None
        What the artifact holds, relative to `work`. None is every file whose name does not start with a dot. Others
        are notes for a rerun and are removed.

    Returns
    -------
    Path
        `out`, absolute.

    Raises
    ------
    BundleError
        If `out` holds something else, or `work` what nobody has claimed.
    VtcError
        If the disk refuses; the work directory stays for a rerun.
    """
    out = Path(os.path.abspath(out))
    if isinstance(work, Work):
        return _publish(work.path, out, manifest, files)
    try:
        lock = take_lock(out, "vtc")
    except OSError as error:
        raise cannot_write(out, error, work) from error
    try:
        return _publish(work, out, manifest, files)
    finally:
        lock.release()


def _publish(work: Path, out: Path, manifest: Mapping[str, Any], files: Collection[str] | None) -> Path:
    check_output(out, str(manifest["kind"]))
    try:
        if is_work(work) and (foreign := strangers(work)):
            raise not_ours(work, foreign)
        found = dict(entries(work))
        for path in found.values():
            if not stat.S_ISREG(path.lstat().st_mode):
                raise BundleError(f"{path}: is a symbolic link or no file; an artifact holds its files itself")
        held = found if files is None else {name: found[name] for name in files}
        held = {name: path for name, path in sorted(held.items()) if not _is_note(name)}
        listed = {name: {"sha256": sha256(path), "bytes": path.stat().st_size} for name, path in held.items()}
        # Whichever directory is left over if this process is killed, its journal says what may be removed.
        start_journal(work, *map(escape, (MANIFEST, *found)))
        (work / MANIFEST).write_bytes(_sealed({**manifest, "files": listed}))
        for path in (*held.values(), work / MANIFEST):
            flush(path)
        for name, path in found.items():
            if name not in held and name not in (MANIFEST, JOURNAL):
                path.unlink()
        remove_empty(work)
        for directory, _, _ in os.walk(work):
            flush(Path(directory))
        old = _put(work, out)
    except OSError as error:
        raise cannot_write(out, error, work if work.exists() else None) from error
    with suppress(OSError, ValueError):  # it is published, whatever is left over
        (out / JOURNAL).unlink()
        if old is not None:
            remove_work(old)
    return out


def _is_note(name: str) -> bool:
    return name == MANIFEST or any(part.startswith(".") for part in PurePosixPath(name).parts)


def _put(work: Path, out: Path) -> Path | None:
    """Replace what is at `out`, and return where it is then."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir() and (own := _own_files(out)):
        if not is_work(out):  # what is called so there, is damaged
            (out / JOURNAL).unlink(missing_ok=True)
        start_journal(out, *map(escape, own))
    return replace_directory(work, out)


def _own_files(directory: Path) -> list[str]:
    """Names of the files of an artifact that vtc has written: its own, and those of artifacts and work inside it."""
    own = [JOURNAL]
    for name, path in entries(directory):
        folder = path.parent.relative_to(directory)
        if path.name == MANIFEST and (path.parent == directory or artifact_kind(path.parent) in NESTED):
            own += [(folder / one).as_posix() for one in (MANIFEST, *_listed(path.parent))]
        elif path.name == JOURNAL and is_work(path.parent):
            foreign = strangers(path.parent)
            own += [(folder / one).as_posix() for one, _ in entries(path.parent) if one not in foreign]
        elif is_left_lock(path):
            own.append(name)
    return own


def artifact_kind(directory: Path) -> str | None:
    """Kind of the artifact in a directory; None where there is none.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with suppress(FileNotFoundError, ValueError, AttributeError):
        kind = read_json(directory / MANIFEST, MAX_MANIFEST_BYTES).get("kind")
        return kind if isinstance(kind, str) else None
    return None


def _listed(directory: Path) -> list[str]:
    files = read_json(directory / MANIFEST, MAX_MANIFEST_BYTES).get("files")
    return list(files) if isinstance(files, dict) else []


def read_manifest(path: Path, kind: str, schema: int) -> dict[str, Any]:
    """Read and check an artifact's manifest; its files are not looked at (see :func:`verify_files`).

    Raises
    ------
    BundleError
        If there is none, it is of another kind or a newer schema, or it has changed since it was written.
    """
    if not path.is_dir():
        old = old_place(Path(os.path.abspath(path)))
        aside = f"; a command that was killed has left the former one in {old}" if is_work(old) else ""
        hint = "; it is a file" if path.exists() else _CHECKPOINT if is_shipped(path) else ""
        raise BundleError(f"{path}: no such {_noun(kind)} directory{aside or hint}")
    file = path / MANIFEST
    try:
        data = read_bytes(file, MAX_MANIFEST_BYTES)
        manifest = parse_json(data.decode(), once=True)
    except FileNotFoundError:
        hint = _CHECKPOINT if (path / "config.json").exists() else ""
        raise BundleError(f"{path}: is not a {_noun(kind)}: it holds no {MANIFEST}{hint}") from None
    except (OSError, ValueError) as error:
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


def verify_files(root: Path, files: object, *, hashes: bool = True) -> None:
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
    if not isinstance(files, dict):
        raise BundleError(f"{root / MANIFEST}: files: is not an object; write it again")
    for name, expected in files.items():
        path = inside(root, name)
        try:
            status = path.stat()
        except OSError as error:
            raise machine_fault(error) or BundleError(
                f"{root}: {name} is missing; copy or write it again, whole"
            ) from None
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{root}: {name} is not a file; copy or write it again, whole")
        told = expected if isinstance(expected, dict) else {}
        if status.st_size != told.get("bytes") or (hashes and sha256(path) != told.get("sha256")):
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
    try:
        within = plain and (root / name).resolve().is_relative_to(root.resolve())
    except RuntimeError:  # as Python says it before 3.13
        raise BundleError(f"{root}: {name} is a symbolic link to itself; copy or write it again, whole") from None
    if not within:
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
