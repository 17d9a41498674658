"""Files beside artifacts: reports, pictures, statistics, maps. Their place is looked at before the work begins."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from vtc.artifact import KINDS, MANIFEST, artifact_kind
from vtc.errors import InputError


def check_place(path: Path | None, *read: Path) -> None:
    """Make sure that a file can be written at the end of the work, and that nothing is lost by it.

    Parameters
    ----------
    path : Path or None
        None is nowhere.
    read : Path
        Files that the command reads.

    Raises
    ------
    InputError
        If the path is no place for a file, lies in an artifact, or is one of the files that are read.
    """
    if path is None:
        return
    try:
        if os.path.lexists(path) and not path.is_file():
            raise InputError(f"{path}: exists and is no file; give another path")
        if any(path.exists() and one.exists() and path.samefile(one) for one in read):
            raise InputError(f"{path}: is what the command reads; give another path")
        for folder in Path(os.path.abspath(path)).parents:
            if (folder / MANIFEST).is_file() and artifact_kind(folder) in KINDS:
                raise InputError(f"{path}: lies in {folder}, which vtc alone writes; give a path outside")
        if not path.parent.is_dir():
            raise InputError(f"{path}: cannot be written, there is no directory {path.parent}")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise InputError(f"{path}: cannot be written, nothing may be put into {path.parent}")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or as it was.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    check_place(path)
    try:
        descriptor, partial = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes private files; what is written is meant to be read by others.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)
        os.replace(partial, path)
    except OSError as error:
        Path(partial).unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
