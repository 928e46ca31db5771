"""Prepared data on disk: one JSON line an item, written whole or not at all."""

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from triune.errors import InputError
from triune.parsing import parse_json
from triune.record import write_text
from triune.types import BenchmarkPrompt, Example, Preference, Question, Sample

Row = TypeVar("Row", Example, Preference, Question, BenchmarkPrompt, Sample)


def write_rows(path: Path, items: Iterable[Row]) -> None:
    """Write items as JSON lines."""
    write_text(path, "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items))


def load_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Read items of one kind.

    Raises InputError for a file that is missing or not UTF-8, or a line that is not such an item.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; run the step that prepares the data first")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; run the step that wrote it again") from error
    hints = get_type_hints(kind)
    items = []
    # Not splitlines: it would also break at the line separators that a text may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line:
            continue
        try:
            items.append(kind(**_restored(parse_json(line), hints)))
        except (ValueError, TypeError) as error:
            known = ", ".join(f.name for f in fields(kind))
            raise InputError(f"{path}:{number} is no {kind.__name__} ({error}); its fields are {known}") from error
    return items


def _restored(values: Any, hints: dict[str, Any]) -> dict[str, Any]:
    """A row's fields in the types of our nouns. JSON knows lists where they hold tuples."""
    if not isinstance(values, dict):
        raise ValueError(f"it holds {type(values).__name__}")
    return {name: _restored_value(name, value, hints.get(name)) for name, value in values.items()}


def _restored_value(name: str, value: Any, hint: Any) -> Any:
    value = tuple(value) if isinstance(value, list) else value
    if hint is None:
        return value  # no field of this kind, which its constructor says
    wanted = get_origin(hint) or hint
    parts = value if wanted is tuple and isinstance(value, tuple) else ()
    if not isinstance(value, wanted) or not all(isinstance(part, get_args(hint)[0]) for part in parts):
        raise ValueError(f"{name} is {value!r:.60}")
    return value
