"""What a command needs of the machine, and a refusal, before any work, where there is less."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.amounts import gigabytes
from vtc.errors import OutOfResources
from vtc.free_memory import available_ram
from vtc.staging import entries, staging_dir


@dataclass(frozen=True)
class Need:
    """What a command takes, at the moment when it takes most.

    Attributes
    ----------
    libraries : int
        Bytes of memory that the interpreter and libraries take, whatever the model.
    work : int
        Bytes of memory that weights and what is computed take beside them. The system cannot take them back.
    mapped : int
        Bytes of files that are read in place, again and again. The system drops them where memory is short, and reads
        them from the disk the next time: slow, and no reason to refuse.
    gpu : int
        Bytes of GPU memory.
    disk : int
        Bytes that are written, drafts included.
    seconds : float or None
        About how long it takes here; None where that is not known.
    """

    libraries: int = 0
    work: int = 0
    mapped: int = 0
    gpu: int = 0
    disk: int = 0
    seconds: float | None = None

    @property
    def ram(self) -> int:
        """Bytes of memory that the system cannot take back."""
        return self.libraries + self.work

    def beside(self, other: Need) -> Need:
        """Both at once: libraries count once, and the time is this one's."""
        return Need(
            max(self.libraries, other.libraries),
            self.work + other.work,
            self.mapped + other.mapped,
            self.gpu + other.gpu,
            self.disk + other.disk,
            self.seconds,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, in bytes and seconds."""
        seconds = None if self.seconds is None else float(f"{self.seconds:.3g}")
        return {"ram": self.ram, "mapped": self.mapped, "gpu": self.gpu, "disk": self.disk, "seconds": seconds}


def refuse_what_cannot_fit(what: str, need: Need, advice: str, out: Path | None = None, gpu: int | None = None) -> None:
    """Compare a need with what there is.

    Libraries count as there already: most of them are when this is asked.

    Parameters
    ----------
    what : str
        The command, for the message.
    need : Need
    advice : str
        What takes less memory, in words that go after "give".
    out : Path or None
        The directory that is written; what an interrupted run has left in its work directory is not needed again.
    gpu : int or None
        Bytes that the GPU has free; None where nobody can tell.

    Raises
    ------
    OutOfResources
        If memory, GPU memory or disk is short; the message says of which how much is needed and there.
    """
    ram = available_ram()
    if ram is not None and need.work > ram:
        raise OutOfResources(f"{_short(what, need.work, 'memory', ram)}; close other programs, or give {advice}")
    if gpu is not None and need.gpu > gpu:
        raise OutOfResources(f"{_short(what, need.gpu, 'GPU memory', gpu)}; give {advice}")
    if out is not None:
        free, there = free_disk(out), _written(staging_dir(out))
        if free is not None and need.disk - there > free:
            raise OutOfResources(
                f"{_short(what, need.disk - there, f'disk at {out}', free)}; free some, or give -o on another disk"
            )


def free_disk(path: Path) -> int | None:
    """Bytes that can be written at a path that may not be there yet; None where the system does not tell."""
    place = Path(os.path.abspath(path))
    for one in (place, *place.parents):
        with suppress(OSError):
            return shutil.disk_usage(one).free
    return None


def _short(what: str, wanted: int, of: str, there: int) -> str:
    return f"{what} takes about {gigabytes(wanted)} of {of}, and {gigabytes(there)} are free"


def _written(work: Path) -> int:
    """Bytes that lie in a work directory; a file of two names counts once."""
    sizes = {}
    with suppress(OSError):
        for _, path in entries(work):
            status = path.lstat()
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())
