"""Whether a record can be believed: who wrote it, its form, its files; and what a full disk or a kill leaves."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from triune.errors import InputError, TriuneError

FORMAT = 1  # of a record; a record without one was written before there were others
KINDS: dict[str, type | tuple[type, ...]] = {
    "identity": str,
    "settings": dict,
    "inputs": dict,
    "seconds": (int, float),
    "peak_memory_bytes": int,
    "files": dict,
}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)  # Python calls only the first two PermissionError


class NoRoom(TriuneError):
    """The disk became full while a result was written."""


def check_record(found: Any, path: Path) -> dict[str, Any]:
    """The content of a record. Raises InputError for one of a newer Triune, for none, and for one of another form."""
    if isinstance(found, dict) and isinstance(form := found.get("format", FORMAT), int) and form > FORMAT:
        versions = found.get("versions")
        version = versions.get("triune", "unknown") if isinstance(versions, dict) else "unknown"
        raise InputError(
            f"{path} was written by a newer Triune (version {version}, record format {form}; this one reads formats "
            f"up to {FORMAT}); update Triune, or choose another folder"
        )
    if not isinstance(found, dict) or "identity" not in found:
        raise InputError(f"{path} is not a Triune record (no identity); choose another folder")
    for key, kind in KINDS.items():
        if key in found and not isinstance(found[key], kind):
            got = type(found[key]).__name__
            raise InputError(
                f"{path} is damaged ({key!r} is a {got}); delete {path.parent} and run its verb again, or get it again"
            )
    outside = [name for name in found.get("files", ()) if not inside(name)]
    if outside:
        raise InputError(
            f"{path} lists {outside[0]!r}, which is outside of its folder; a record lists its own folder's files: "
            f"delete {path.parent} and run its verb again"
        )
    return found


def inside(name: str) -> bool:
    """Whether a path in a manifest stays in the manifest's own folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def sizes(folder: Path) -> dict[str, int]:
    """The bytes of every file of a result, by its path in the folder; hidden ones do not count."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path.stat().st_size
        for name, path in found.items()
        if not any(part.startswith(".") for part in name.parts)
    }


def spoiled(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """What is wrong with the files that a record lists, in words; empty where all have the size that they had."""
    told = []
    for name, size in record.get("files", {}).items():
        path = folder / name
        if not path.is_file():
            told.append(f"{name} is missing")
        elif path.stat().st_size != size:
            told.append(f"{name} has {path.stat().st_size:,} bytes in place of {size:,}")
    return told


def clear_parts(folder: Path) -> None:
    """Remove the half-written files (.NAME.PID.part) of processes that were killed; living ones keep theirs."""
    for path in folder.glob(".*.part"):
        number = path.name.removesuffix(".part").rpartition(".")[2]
        if number.isdecimal() and not _lives(int(number)):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    # This very process writes nothing else at this moment: the number is that of a dead one, used again.
    return process != os.getpid()


@contextmanager
def room(final: Path) -> Iterator[None]:
    """Turn a full disk (or an exceeded quota or file size limit) into a TriuneError that says how to go on."""
    try:
        yield
    except TriuneError:
        raise
    except Exception as error:  # safetensors and tokenizers have errors of their own, which carry the system's words
        number = error.errno if isinstance(error, OSError) else None
        if number not in FULL and not any(f"{os.strerror(code)} (os error {code})" in str(error) for code in FULL):
            raise
        raise NoRoom(
            f"the disk of {final.parent} is full ({error}); make room, then the same command goes on from the "
            "finished steps"
        ) from error
