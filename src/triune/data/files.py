"""Data files -> rows: one reader for each suffix. A bad file is an InputError that names the place in it."""

import codecs
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from triune.errors import InputError
from triune.parsing import parse_json

MAX_GROWTH = 200  # times; texts of one repeated row aside, 3 to 30 are usual
MIN_BOMB = 1 << 26  # bytes unpacked that are taken however much they grew
CHUNK = 1 << 20


def data_suffix(path: Path) -> str | None:
    """The suffix that chooses the reader (".jsonl" of "train.jsonl.gz"), or None where nothing reads it."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in UNPACKERS:
        return suffixes[-2] if len(suffixes) > 1 and suffixes[-2] in TEXT_READERS else None
    return suffixes[-1] if suffixes and suffixes[-1] in {*TEXT_READERS, *BINARY_READERS} else None


def read_file(path: Path, field: str | None = None) -> list[dict[str, Any]]:
    """All rows of one data file, in file order.

    .json (an array of objects; or an object with one in `field`), .jsonl and .ndjson (an object a line), .csv (a
    header and rows), each also packed as .gz or .xz; .parquet; .arrow. Text is UTF-8, with or without a byte order
    mark.

    Raises InputError for an unknown suffix, an unreadable, empty or damaged file, another encoding.
    """
    suffix = data_suffix(path)
    if suffix is None:
        known = ", ".join([*TEXT_READERS, *BINARY_READERS])
        raise InputError(
            f"{path}: no reader for {''.join(path.suffixes) or 'a file without a suffix'}; "
            f"known: {known} (text also with {', '.join(UNPACKERS)}). Rename or convert the file."
        )
    text = TEXT_READERS.get(suffix)
    rows = BINARY_READERS[suffix](path) if text is None else text(_read_text(path), path, field)
    if not rows:
        raise InputError(f"{path}: holds no rows; wanted at least one. Is it the right file?")
    return rows


def _read_text(path: Path) -> str:
    """The file's text, unpacked, without a byte order mark. Line ends are left as they are."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from error
    unpack = UNPACKERS.get(path.suffix.lower())
    if unpack is not None:
        try:
            raw = unpack(raw)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise InputError(f"{path}: damaged archive ({error}); fetch the file again.") from error
    skip = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    try:
        text = raw[skip:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = error.start + skip
        line = raw.count(b"\n", 0, offset) + 1
        guess = "UTF-16" if raw[:2] in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE} else "Latin-1 or Windows-1252"
        raise InputError(
            f"{path}:{line}: byte 0x{raw[offset]:02x} at offset {offset} is not UTF-8 (perhaps {guess}); "
            "save the file as UTF-8."
        ) from error
    if not text.strip():
        raise InputError(f"{path}: the file is empty; wanted rows of data.")
    return text


def _beginning(text: str, width: int = 60) -> str:
    text = text.strip()
    return repr(text if len(text) <= width else text[:width] + "…")


def _read_json(text: str, path: Path, field: str | None) -> list[dict[str, Any]]:
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1]
        hint = " It looks like JSON lines: name it .jsonl." if error.msg == "Extra data" else ""
        raise InputError(
            f"{path}:{error.lineno}: not JSON ({error.msg}): {_beginning(line)}; wanted an array of objects.{hint}"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: JSON that is refused ({error}); mend or remove the value.") from error
    if isinstance(value, dict) and field in value:
        value = value[field]
    if not isinstance(value, list):
        shape = f"an object with the fields {', '.join(value)}" if isinstance(value, dict) else _beginning(text)
        where = "" if field is None else f", or an object with one in its field {field!r}"
        raise InputError(f"{path}: wanted an array of objects{where}, got {shape}.")
    for number, item in enumerate(value, start=1):
        if not isinstance(item, dict):
            raise InputError(f"{path}: item {number} is {_beginning(json.dumps(item))}; wanted an object of fields.")
    return value


def json_row(line: str, path: Path, number: int) -> dict[str, Any]:
    """The object in line `number` of a file of JSON lines. Raises InputError, which names the line."""
    try:
        value = parse_json(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{number}: not JSON ({error.msg}): {_beginning(line)}; wanted one object a line."
        ) from error
    except ValueError as error:
        raise InputError(f"{path}:{number}: JSON that is refused ({error}); mend or remove the line.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}:{number}: wanted one object a line, got {_beginning(line)}.")
    return value


def _read_jsonl(text: str, path: Path, field: str | None) -> list[dict[str, Any]]:
    rows = []
    # Not str.splitlines: it also breaks at U+2028 and U+0085, which JSON strings may hold unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        rows.append(json_row(line, path, number))
    return rows


def _read_csv(text: str, path: Path, field: str | None) -> list[dict[str, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader)
        if len(set(header)) != len(header) or not all(name.strip() for name in header):
            raise InputError(f"{path}:1: column names must differ and not be empty, got {header}.")
        rows = []
        for cells in reader:
            if cells and len(cells) != len(header):
                raise InputError(
                    f"{path}:{reader.line_num}: {len(cells)} cells, wanted {len(header)} "
                    f"({', '.join(header)}); quote cells that hold commas."
                )
            if cells:
                rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV ({error}).") from error
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        # Not read_table: it would add columns from folder names such as "split=train".
        with parquet.ParquetFile(path) as file:
            return _listed(file.read())
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable parquet file ({_first_line(error)}); fetch it again.") from error


def _read_arrow(path: Path) -> list[dict[str, Any]]:
    import pyarrow

    try:
        with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_stream(file) as reader:
            return _listed(reader.read_all())
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable arrow file ({_first_line(error)}); write it again.") from error


def _listed(table: Any) -> list[dict[str, Any]]:
    """The rows of a pyarrow table. Raises pyarrow.ArrowInvalid or ValueError where offsets or texts are damaged."""
    table.validate(full=True)  # without it, offsets that lead out of a buffer are followed
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def _unpacked(packed: bytes, opened: gzip.GzipFile | lzma.LZMAFile) -> bytes:
    """All that an archive holds; what grows beyond any text is a bomb. Raises OSError for that."""
    parts, size, most = [], 0, max(MIN_BOMB, MAX_GROWTH * len(packed))
    while part := opened.read(CHUNK):
        parts.append(part)
        size += len(part)
        if size > most:
            raise OSError(f"{len(packed):,} bytes that unpack to over {most:,}")
    return b"".join(parts)


def _gunzipped(packed: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as opened:
        return _unpacked(packed, opened)


def _unxzed(packed: bytes) -> bytes:
    with lzma.LZMAFile(io.BytesIO(packed)) as opened:
        return _unpacked(packed, opened)


UNPACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": _gunzipped,
    ".xz": _unxzed,
}
# Only .json can hold its rows in a field; the others take none.
TEXT_READERS: dict[str, Callable[[str, Path, str | None], list[dict[str, Any]]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
}
BINARY_READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
