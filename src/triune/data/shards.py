"""Shards of a data set, read row by row from any row on; no more of one is in memory than a few rows.

A shard is a file (JSON lines, also packed; parquet; arrow) or a part of a data set of the Hugging Face hub.
"""

import glob
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, cast

from triune.data.fields import Row
from triune.data.files import UNPACKERS, data_suffix, json_row
from triune.data.sources import data_files
from triune.errors import InputError, TriuneError
from triune.record import digest, identify

MAX_LINE = 1 << 26  # bytes; a longer one would have to be held whole
AT_ONCE = 1000  # rows of parquet and arrow
WILD = frozenset("*?[")
Numbered = Iterator[tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class FileShards:
    """Files, in the order of their names. A row's number is its line's in JSON lines, else its place from 1 on."""

    paths: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What each shard is called in messages."""
        return self.paths

    @property
    def identity(self) -> str:
        """Of the bytes, in order: a folder that is copied or renamed stays the same data. Read once a process."""
        return digest([_hashed(path, *_stamp(path)) for path in self.paths])

    def rows(self, index: int, begin: int = 0) -> Iterator[Row]:
        """The rows of a shard after the one with the number `begin`. Raises InputError, which names file and line."""
        path = Path(self.paths[index])
        for number, values in READERS[data_suffix(path) or ""](path, begin):
            yield Row(values, number, str(path))


@dataclass(frozen=True)
class HubShards:
    """A data set of the hub at one of its commits, streamed by `datasets`."""

    name: str
    config: str | None
    split: str
    revision: str
    n: int

    @property
    def names(self) -> tuple[str, ...]:
        """What each shard is called in messages."""
        return tuple(f"{self.name}, shard {index + 1} of {self.n}" for index in range(self.n))

    @property
    def identity(self) -> str:
        """Of the commit, which fixes every byte."""
        return digest([self.name, self.config, self.split, self.revision])

    def rows(self, index: int, begin: int = 0) -> Iterator[Row]:
        """The rows of a shard after the first `begin`. Raises TriuneError where the connection is lost for good."""
        try:
            found = _hub(self.name, self.config, self.split, self.revision).shard(num_shards=self.n, index=index)
            for number, values in enumerate(found.skip(begin) if begin else found, begin + 1):
                yield Row(values, number, self.names[index])
        # `datasets` has tried twenty times by then.
        except OSError as error:
            raise TriuneError(
                f"{self.names[index]}: cannot be read on ({_first_line(error)}); the same command goes on from the "
                "last checkpoint (fit.save_every), if there is one"
            ) from error


Shards = FileShards | HubShards


def find_shards(source: str, *, config: str | None = None, split: str | None = None) -> Shards:
    """The shards of a source: a file, a glob ("shards/*.jsonl.gz"), a folder of them, or a hub name.

    Raises InputError where there are none, for files that cannot be read row by row, and as `data_files`.
    """
    if WILD & set(source) and not Path(source).exists():
        paths = tuple(map(Path, sorted(glob.glob(str(Path(source).expanduser()), recursive=True))))
        paths = tuple(path for path in paths if path.is_file())
        if not paths:
            raise InputError(f"{source}: no file matches; check the pattern, or give the folder that holds the shards")
    else:
        paths = data_files(source, config=config, split=split)
    strange = [path for path in paths if data_suffix(path) not in READERS]
    if strange:
        raise InputError(
            f"{strange[0]}: cannot be streamed; a shard is {', '.join(READERS)} (text also with "
            f"{', '.join(UNPACKERS)}). Convert it (.json to an object a line), or leave streaming out"
        )
    return FileShards(tuple(map(str, paths))) if paths else _hub_shards(source, config, split)


def _stamp(path: str) -> tuple[int, int]:
    try:
        found = Path(path).stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from error
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=1 << 16)
def _hashed(path: str, _size: int, _mtime: int) -> str:
    return identify(Path(path))


# Files


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    opener = PACKED.get(path.suffix.lower())
    try:
        with cast(IO[bytes], path.open("rb") if opener is None else opener(path)) as file:
            yield file
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        what = "cannot be read" if opener is None else "damaged archive"
        raise InputError(f"{path}: {what} ({error}); fetch the file again.") from error


def _json_lines(path: Path, begin: int) -> Numbered:
    with _opened(path) as file:
        number = 0
        # Lines end at line feeds alone, as `read_file` has it.
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise InputError(f"{path}:{number}: over {MAX_LINE:,} bytes; wanted one object a line.")
            if number <= begin:
                continue
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                message = f"{path}:{number}: byte {error.start} of the line is not UTF-8; save the file as UTF-8."
                raise InputError(message) from error
            if text.strip():
                yield number, json_row(text.removesuffix("\n"), path, number)


def _parquet(path: Path, begin: int) -> Numbered:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            before, groups = 0, list(range(file.num_row_groups))
            while groups and before + file.metadata.row_group(groups[0]).num_rows <= begin:
                before += file.metadata.row_group(groups.pop(0)).num_rows
            if groups:
                yield from _numbered(file.iter_batches(AT_ONCE, row_groups=groups), before, begin)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable parquet file ({_first_line(error)}); fetch it again.") from error


def _arrow(path: Path, begin: int) -> Numbered:
    import pyarrow

    try:
        # Not memory-mapped: the pages would count as this process's memory.
        with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_stream(file) as reader:
            parts = (batch.slice(start, AT_ONCE) for batch in reader for start in range(0, batch.num_rows, AT_ONCE))
            yield from _numbered(parts, 0, begin)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable arrow file ({_first_line(error)}); write it again.") from error


def _numbered(batches: Iterator[Any], before: int, begin: int) -> Numbered:
    """The rows of record batches after row `begin`; `before` are in front of the first batch."""
    for batch in batches:
        if before + batch.num_rows > begin:
            skipped = max(0, begin - before)
            yield from enumerate(batch.slice(skipped).to_pylist(), before + skipped + 1)
        before += batch.num_rows


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


PACKED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".xz": lzma.open}
READERS: dict[str, Callable[[Path, int], Numbered]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
    ".arrow": _arrow,
}


# The hub


def _hub_shards(name: str, config: str | None, split: str | None) -> HubShards:
    if split is None:
        raise InputError(f"data set {name!r} of the hub: no split given; name one (train), or give a local path.")
    try:
        # The commit of now: rows that change under a run would be another order.
        revision = _revision(name)
        n = _hub(name, config, split, revision).num_shards
    except (OSError, ValueError) as error:
        raise InputError(
            f"data set {name!r} (config {config!r}, split {split!r}) cannot be streamed: {_first_line(error)}. "
            f"Without a network, fetch it elsewhere (hf download {name} --repo-type dataset --local-dir DIR) "
            "and give DIR as the source."
        ) from error
    return HubShards(name, config, split, revision, n)


def _revision(name: str) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(name).sha)


@lru_cache(maxsize=16)
def _hub(name: str, config: str | None, split: str, revision: str) -> Any:
    from datasets import load_dataset

    return load_dataset(name, config, split=split, revision=revision, streaming=True)
