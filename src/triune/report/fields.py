"""Values out of a JSON file, each with an error that names the file, the place and what is allowed."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from triune.errors import InputError
from triune.parsing import parse_json

WAY_OUT = "correct the file, or let `triune run` write it again"


def fail(where: str, got: object, allowed: str) -> InputError:
    """The error for a value that is not `allowed` at the place `where`."""
    return InputError(f"{where} is {got!r:.80}; allowed: {allowed}; {WAY_OUT}.")


def read_json(path: Path) -> object:
    """The parsed file.

    Raises:
        InputError: it is not UTF-8 or not JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); {WAY_OUT}.") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error.msg} on line {error.lineno}; {WAY_OUT}.") from error
    except ValueError as error:
        raise InputError(f"{path} is JSON that is refused ({error}); {WAY_OUT}.") from error


def mapping(value: object, where: str) -> Mapping[str, object]:
    """`value` as an object (JSON) with string keys."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise fail(where, value, "an object with named fields")
    return value


def listing(value: object, where: str) -> Sequence[object]:
    """`value` as a list."""
    if not isinstance(value, list):
        raise fail(where, value, "a list")
    return value


def need(row: Mapping[str, object], key: str, where: str) -> object:
    """The field `key`, which must be there."""
    if key not in row:
        raise InputError(f"{where} has no field {key!r}; it has: {', '.join(row) or 'none'}; {WAY_OUT}.")
    return row[key]


def text(row: Mapping[str, object], key: str, where: str, default: str | None = None) -> str:
    """The field `key` as text; `default` stands for a missing field or null where one is given."""
    value = need(row, key, where) if default is None else row.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise fail(f"{key} in {where}", value, "text")
    return value


def as_number(value: object, where: str) -> float:
    """`value` as a float; null is NaN. Infinite values are refused: no figure can place them."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isinf(value):
        raise fail(where, value, "a finite number, or null where nothing was measured")
    return float(value)


def number(row: Mapping[str, object], key: str, where: str) -> float:
    """The field `key` as a float; null is NaN."""
    return as_number(need(row, key, where), f"{key} in {where}")


def finite(row: Mapping[str, object], key: str, where: str) -> float:
    """The field `key` as a number that is there."""
    value = number(row, key, where)
    if math.isnan(value):
        raise fail(f"{key} in {where}", row[key], "a finite number")
    return value


def as_whole(value: object, where: str) -> int:
    """`value` as a count."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise fail(where, value, "a whole number from 0 up")
    return value


def whole(row: Mapping[str, object], key: str, where: str) -> int:
    """The field `key` as a count."""
    return as_whole(need(row, key, where), f"{key} in {where}")


def maybe_whole(row: Mapping[str, object], key: str, where: str) -> int | None:
    """The field `key` as a count, None where it is missing or null."""
    return None if row.get(key) is None else whole(row, key, where)


def texts(value: object, where: str) -> tuple[str, ...]:
    """`value` as a list of texts."""
    rows = listing(value, where)
    for index, row in enumerate(rows):
        if not isinstance(row, str):
            raise fail(f"item {index} of {where}", row, "text")
    return tuple(row for row in rows if isinstance(row, str))
