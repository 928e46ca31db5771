"""What a run folder holds besides its result: record.json, written last, so that its presence means *finished*.

A step is written into a hidden folder beside its final name and moved there in one rename; an interruption leaves
nothing under the final name. A step's identity is the hash of its verb, its settings and its inputs' identities, so a
second run skips what is finished with the same settings and redoes what is not.
"""

import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from importlib import metadata
from itertools import count
from pathlib import Path, PurePath
from typing import Any

from triune.errors import InputError
from triune.parsing import parse_json
from triune.peak_memory import peak_memory_bytes, reset_peak_memory
from triune.record_checks import FORMAT, check_record, clear_parts, room, sizes, spoiled

RECORD = "record.json"  # in every finished step's folder
LOCK = ".triune.lock"  # in every run's folder from its first moment, so that a run cut short is known as ours
LIBRARIES = ("triune", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True, slots=True)
class Step:
    """One unit of work: the folder it writes, its verb, its settings, and the identities of what it reads."""

    folder: Path
    verb: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Hash of everything that determines the result (the folder's place does not)."""
        return digest({"verb": self.verb, "settings": self.settings, "inputs": self.inputs})


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON form. Raises TypeError for a value that has none."""
    text = json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)
    # File names may hold bytes that are no UTF-8; Python keeps them as surrogates.
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def identify(path: Path) -> str:
    """The identity of an input: a finished step's own, or the hash of a file's or folder's bytes.

    Hidden files and folders (a download's .cache) do not count. Raises InputError where there is nothing, or it
    cannot be read.
    """
    if path.is_file():
        return _hash_file(path)
    if not path.is_dir():
        raise InputError(f"{path} does not exist; give a file or a folder")
    if (path / RECORD).is_file():
        return str(read_record(path)["identity"])
    names = sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file())
    hashes = {n.as_posix(): _hash_file(path / n) for n in names if not any(s.startswith(".") for s in n.parts)}
    if not hashes:
        raise InputError(f"{path} is an empty folder; give the one that holds the files")
    return digest(hashes)


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); mend its permissions or get it again") from error


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a finished step. Raises InputError where there is none or it cannot be read."""
    path = Path(folder) / RECORD
    if not path.is_file():
        raise InputError(f"{folder} holds no finished Triune run ({RECORD} is missing); run its verb to the end first")
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); delete {folder} and run its verb again") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); mend its permissions") from error
    return check_record(found, path)


def finished(step: Step) -> bool:
    """Whether the step's folder holds its whole result, made with the same settings from the same inputs."""
    return _same(step) and not spoiled(step.folder, read_record(step.folder))


def lost(step: Step) -> list[str]:
    """What is wrong with the files of a step that was finished with the same settings, in words; empty if nothing."""
    return spoiled(step.folder, read_record(step.folder)) if _same(step) else []


def _same(step: Step) -> bool:
    return (step.folder / RECORD).is_file() and read_record(step.folder)["identity"] == step.identity


def claim(folder: Path, marker: str = LOCK) -> None:
    """Make sure that `folder` may be written: new, empty, or one of ours (it holds `marker`); and that writing works.

    Raises InputError where it or a folder above is a file, it holds something else, or nothing can be written there.
    """
    place = Path(folder).absolute()
    there = next(p for p in (place, *place.parents) if os.path.lexists(p))
    if not os.path.isdir(there):
        raise InputError(f"{there} is a file (or a broken link); give a folder for the output with --out")
    try:
        if there == place and os.listdir(place) and not os.path.isfile(place / marker):
            raise InputError(f"{folder} exists and was not written by Triune; choose a new or empty folder with --out")
        # Asking the system for permissions is not enough: root is always told yes, and a disk may be full.
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"probe")
    except OSError as error:
        raise _not_writable(there, error) from error


def _not_writable(place: Path, error: OSError) -> InputError:
    return InputError(f"cannot write in {place} ({error.strerror}); choose another folder with --out")


@contextmanager
def writing(step: Step, seed: int = 0) -> Iterator[Path]:
    """Yield a draft folder; on success it becomes `step.folder` with a record, on failure nothing does.

    A finished result of other settings under that name is kept, moved to `.superseded` beside it.
    Raises InputError where the folder cannot be ours (see `claim`), or another process is writing it; TriuneError
    where the disk becomes full.
    """
    with room(final := _replaceable(step.folder)), _draft_of(final) as draft:
        reset_peak_memory()
        begun, clock, spent = datetime.now(UTC), time.perf_counter(), time.process_time()
        yield draft
        record = {
            "format": FORMAT,
            "verb": step.verb,
            "identity": step.identity,
            "settings": step.settings,
            "inputs": step.inputs,
            "seed": seed,
            "begun": begun.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - clock, 3),
            "cpu_seconds": round(time.process_time() - spent, 3),
            "peak_memory_bytes": peak_memory_bytes(),
            "files": sizes(draft),
            **environment(),
        }
        write_json(draft / RECORD, record)
        _replace(draft, final)


def _replaceable(folder: Path) -> Path:
    """The real place of a step's folder, which a whole folder can be moved onto."""
    final = Path(os.path.realpath(folder))
    if os.path.ismount(final) or Path.cwd().is_relative_to(final):
        raise InputError(f"{folder} is a mount point or the working folder; choose a new folder inside it with --out")
    if os.path.isfile(final / LOCK):
        raise InputError(f"{folder} holds a whole run; choose a new folder with --out")
    claim(final, RECORD)
    return final


@contextmanager
def _draft_of(final: Path) -> Iterator[Path]:
    """An empty hidden folder beside `final`, held against other processes; removed on failure."""
    draft = final.with_name(f".{final.name}.draft")
    try:
        draft.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(final.parent, error) from error
    with _held(draft / LOCK, final):
        try:
            for left in draft.iterdir():  # by a process that was killed
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
                elif left.name != LOCK:
                    left.unlink()
            yield draft
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


def _replace(draft: Path, final: Path) -> None:
    if final.is_dir() and any(final.iterdir()):
        kept = final.parent / ".superseded"
        kept.mkdir(exist_ok=True)
        names = (kept / f"{final.name}-{number}" for number in count(1))
        final.rename(next(name for name in names if not os.path.lexists(name)))
    (draft / LOCK).unlink()
    draft.replace(final)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder against a second process. Raises InputError where another one holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder / LOCK, folder):
        clear_parts(folder)
        yield


@contextmanager
def _held(lock: Path, folder: Path) -> Iterator[None]:
    import fcntl

    try:
        file = lock.open("w")
    except OSError as error:
        raise _not_writable(lock.parent, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                raise FileNotFoundError(lock)  # the other one finished, and moved its lock away, while we opened it
        except (BlockingIOError, FileNotFoundError) as error:
            raise InputError(f"another process is writing {folder}; wait for it or choose another --out") from error
        except OSError as error:  # some network file systems
            raise InputError(f"{folder} is on a disk without file locks ({error}); choose another --out") from error
        yield


def environment() -> dict[str, Any]:
    """Versions of the libraries, the machine, and the git commit of Triune's own source.

    The commit ends in "-dirty" where files differ from it, and is null where Triune does not run from a checkout.
    """
    found = {name: next(iter(metadata.distributions(name=name)), None) for name in LIBRARIES}
    versions = {name: package.version for name, package in found.items() if package is not None}
    machine = {"platform": platform.platform(), "python": platform.python_version(), "cores": os.cpu_count()}
    return {"versions": versions, "machine": machine, "git_commit": _git_commit()}


def _git_commit() -> str | None:
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():  # installed; a repository around the installation is not ours
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):  # on a read-only disk this fails too, and the first error says more
            draft.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: dataclasses as objects, NaN and infinity as null, so that any reader accepts it.

    Raises TypeError for a value that has no JSON form.
    """
    write_text(path, json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):  # numbers and arrays of numpy and torch
        return _plain(value.tolist())
    # Not str(value): a result that nobody can read back, and a hash that may change with an address.
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r:.80}")
