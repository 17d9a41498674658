"""Work directories: where an output is prepared beside its place, by one command at a time.

A work directory holds a journal of the names that commands have claimed in it before they wrote them. What is not
claimed belongs to somebody else: it is neither published nor removed. A lock (:mod:`vtc.lock`) keeps a second command
away.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from vtc.errors import BundleError, InputError
from vtc.files import parse_json
from vtc.lock import Lock, take_lock
from vtc.replacement import old_place

_log = logging.getLogger(__name__)

JOURNAL = ".vtc-work"
SCHEMA = 1
DRAFTS = (".tmp??????", "*/.tmp??????")
"""What safetensors calls a file that it has not finished."""
_PLACES = 9
_MOST_BYTES = 2**20
_AGAIN = "run the same command again"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def staging_dir(out: Path) -> Path:
    """Where an output directory is prepared: ``.NAME.partial`` beside it, if nobody else has put anything there."""
    out = Path(os.path.abspath(out))
    return out.with_name(f".{out.name}.partial")


@dataclass(frozen=True)
class Work:
    """A work directory that this process alone writes.

    Attributes
    ----------
    path : Path
    lock : Lock
    """

    path: Path
    lock: Lock

    def claim(self, *patterns: str) -> None:
        """Note names, relative to the directory and with ``*`` and ``?``, before they are written.

        Raises
        ------
        BundleError
            If something else that is there already has one of them.
        """
        foreign = [name for name in strangers(self.path) if any(fnmatchcase(name, pattern) for pattern in patterns)]
        if foreign:
            raise not_ours(self.path, foreign)
        _append(self.path, patterns)

    def clear(self) -> None:
        """Remove what is claimed."""
        remove_claimed(self.path)


@contextmanager
def open_work(out: Path, command: str) -> Iterator[Work]:
    """Take the work directory of an output, new or as an interrupted run left it, until the body is left.

    A link, a file or a directory that no command has made is left alone there, and another name is taken.

    Parameters
    ----------
    out : Path
        The output directory.
    command : str
        Told to others who want to write it too.

    Raises
    ------
    BundleError
        If another process writes the output, or somebody else's file lies in the work directory.
    InputError
        If the disk refuses.
    """
    out = Path(os.path.abspath(out))
    try:
        os.makedirs(out.parent, exist_ok=True)
        lock = take_lock(out, command)
    except OSError as error:
        raise cannot_write(out, error) from error
    except RecursionError:
        raise InputError(f"{out}: has too many directories in it; give a shorter path") from None
    try:
        try:
            _recover(out)
            path = _own_place(out)
            foreign = strangers(path)
            if not foreign:
                _part_from_others(path)
        except OSError as error:
            raise cannot_write(out, error) from error
        if foreign:
            raise not_ours(path, foreign)
        try:
            yield Work(path, lock)
        except OSError as error:
            if _concerns(error, path):
                raise cannot_write(out, error, path) from error
            raise
        finally:
            _remove_if_unused(path)
    finally:
        lock.release()


def strangers(work: Path) -> list[str]:
    """Names of what lies in a work directory and is not claimed: other files, links, and what is no file at all."""
    patterns = (*_claims(work), *DRAFTS, JOURNAL)
    return [
        name
        for name, path in entries(work)
        if path.is_symlink() or not path.is_file() or not any(fnmatchcase(name, pattern) for pattern in patterns)
    ]


def _part_from_others(work: Path) -> None:
    """Copy files that have another name outside a work directory, as `cp -al` gives: that one must not be changed."""
    found = [(path, path.lstat()) for _, path in entries(work)]
    names = Counter((status.st_dev, status.st_ino) for _, status in found)
    for path, status in found:
        if stat.S_ISREG(status.st_mode) and status.st_nlink > names[status.st_dev, status.st_ino]:
            draft = path.with_name(".tmp000000")  # one of `DRAFTS`
            shutil.copyfile(path, draft)
            os.replace(draft, path)


def entries(directory: Path) -> Iterator[tuple[str, Path]]:
    """All that lies in a directory but directories, by relative name and in order; no link is followed."""
    for folder, folders, files in os.walk(directory, followlinks=False):
        folders.sort()
        for name in sorted([*files, *(one for one in folders if os.path.islink(os.path.join(folder, one)))]):
            path = Path(folder, name)
            yield path.relative_to(directory).as_posix(), path


def remove_claimed(work: Path) -> None:
    """Remove what is claimed in a work directory, and directories that are left empty; its journal goes last."""
    patterns = (*_claims(work), *DRAFTS)
    for name, path in list(entries(work)):
        if name != JOURNAL and any(fnmatchcase(name, pattern) for pattern in patterns):
            path.unlink()
    remove_empty(work)


def remove_empty(work: Path) -> None:
    """Remove directories inside a work directory that hold nothing."""
    for folder, _, _ in os.walk(work, topdown=False):
        if folder != str(work):
            with suppress(OSError):  # not empty
                os.rmdir(folder)


def remove_work(work: Path) -> None:
    """Remove a work directory; what is not claimed in it stays, and so does the directory then."""
    remove_claimed(work)
    if os.listdir(work) == [JOURNAL]:
        (work / JOURNAL).unlink()
        work.rmdir()


def is_work(path: Path) -> bool:
    """Whether a directory is a command's work directory: it holds a journal that can be read."""
    try:
        _claims(path)
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def start_journal(path: Path, *patterns: str) -> None:
    """Make a directory a work directory, in which `patterns` are claimed."""
    os.close(os.open(path / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666))
    _append(path, patterns)


def cannot_write(out: Path, error: OSError, work: Path | None = None) -> InputError:
    """What a refusal of the disk means."""
    kept = "" if work is None else f"; the work is kept in {work.name}"
    what = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    return InputError(f"{out}: cannot be written ({what}){kept}; free space or fix permissions and {_AGAIN}")


def not_ours(directory: Path, foreign: Collection[str]) -> BundleError:
    """What to say of files that no command has written."""
    first, *more = foreign
    others = f" and {len(more)} more are" if more else " is"
    return BundleError(f"{directory / first}{others} not vtc's; move it away and {_AGAIN}")


def _recover(out: Path) -> None:
    """Put back what a command moved aside that was killed before it had put something else in its place."""
    old = old_place(out)
    if is_work(old):
        if os.path.lexists(out):
            remove_work(old)
        else:
            os.rename(old, out)
    else:
        with suppress(OSError):  # there is none, or it is not empty
            os.rmdir(old)


def _own_place(out: Path) -> Path:
    """The first of the places for a work directory that is ours or free."""
    usual = staging_dir(out)
    for number in range(1, _PLACES + 1):
        path = usual if number == 1 else usual.with_name(f"{usual.name}-{number}")
        try:
            os.mkdir(path)
        except FileExistsError:
            if not _may_be_ours(path):
                _log.warning("%s is not vtc's work, or damaged; it is left alone", path)
                continue
        start_journal(path)
        return path
    raise BundleError(f"{usual}: it and {_PLACES - 1} more places are taken; move them away and {_AGAIN}")


def _may_be_ours(path: Path) -> bool:
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return False
    return is_work(path) or all(name == JOURNAL and not one.lstat().st_size for name, one in entries(path))


def _claims(work: Path) -> list[str]:
    """Names and patterns that a journal lists; one that was cut off while it was written was not acted on.

    Raises
    ------
    OSError, ValueError
        If there is none, or it is damaged.
    """
    descriptor = os.open(work / JOURNAL, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a file")
        data = stream.read(_MOST_BYTES + 1)
    first, *lines = data.split(b"\n")
    if len(data) > _MOST_BYTES or parse_json(first.decode()) != {"vtc": "work", "schema": SCHEMA}:
        raise ValueError("not a journal")
    claims = [parse_json(line.decode()) for line in lines[:-1]]
    if not all(isinstance(claim, str) for claim in claims):
        raise ValueError("not a journal")
    return claims


def _append(work: Path, patterns: Collection[str]) -> None:
    descriptor = os.open(work / JOURNAL, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
    try:
        whole = os.pread(descriptor, _MOST_BYTES, 0)
        os.ftruncate(descriptor, whole.rfind(b"\n") + 1)  # a line that was cut off was not acted on
        known = set(_claims(work)) if whole else set()
        lines: list[object] = [] if whole else [{"vtc": "work", "schema": SCHEMA}]
        lines += [pattern for pattern in dict.fromkeys(patterns) if pattern not in known]
        os.write(descriptor, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_unused(work: Path) -> None:
    with suppress(OSError, ValueError):
        if is_work(work) and [name for name, _ in entries(work)] == [JOURNAL]:
            remove_work(work)


def _concerns(error: OSError, work: Path) -> bool:
    """Whether it is a work directory that could not be written; calls on open files do not say which it was."""
    if error.errno is None or error.errno in _FULL or error.filename is None:
        return error.errno is not None
    return isinstance(error.filename, str | os.PathLike) and Path(os.path.abspath(error.filename)).is_relative_to(work)
