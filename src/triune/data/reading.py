"""From rows to items through a format, with an account of what was left out."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from triune.data.fields import Row, has_fields, missing_fields
from triune.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Format(Generic[T]):
    """How rows become items.

    forms: the fields of each form in which the data is found -> the parser of a row in that form; the first
    form whose fields a row has is taken. A parser may give several items, or none, which counts as `skipped`.
    published: a known data set, in which a few flawed rows are no news: they are dropped and counted. In a
    user's own data (False) a flawed row is an error.
    """

    forms: Mapping[tuple[str, ...], Callable[[Row], list[T]]]
    published: bool
    skipped: str = "nothing in the row"


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """What was read: items in source order, how many rows they came from, and reason -> number left out.

    A row may hold several items (one for each correct answer), so `items` may outnumber `n_rows`.
    """

    items: tuple[T, ...]
    n_rows: int
    dropped: Mapping[str, int]

    @property
    def n_dropped(self) -> int:
        """How many rows or items were left out, for whatever reason."""
        return sum(self.dropped.values())

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in self.dropped.items())
        return f"{len(self.items):,} from {self.n_rows:,} rows" + (f"; left out: {reasons}" if reasons else "")


def parse_rows(
    rows: list[dict[str, Any]],
    source: str,
    name: str,
    format: Format[T],
    flaw: Callable[[T], str | None],
) -> Reading[T]:
    """All items of `rows`; `name` is the format's, `source` the rows' in messages, `flaw` says what is wrong.

    Raises InputError for a row without the fields of any form, for a flawed item of a user's own data, and
    where nothing is left.
    """
    items: list[T] = []
    dropped: Counter[str] = Counter()
    for number, values in enumerate(rows, start=1):
        items += row_items(Row(values, number, source), name, format, flaw, dropped)
    if not items:
        reasons = ", ".join(f"{reason} {n}" for reason, n in dropped.items()) or "there are no rows"
        raise InputError(f"{source}: no row is left of {len(rows)} in the format {name!r}: {reasons}.")
    return Reading(tuple(items), len(rows), dict(dropped))


def row_items(
    row: Row, name: str, format: Format[T], flaw: Callable[[T], str | None], dropped: Counter[str]
) -> list[T]:
    """The items of one row; what is left out is counted in `dropped`, by reason.

    Raises InputError as `parse_rows`.
    """
    parse = next((parse for fields, parse in format.forms.items() if has_fields(row, fields)), None)
    if parse is None:
        raise missing_fields(row, name, list(format.forms))
    found = parse(row)
    if not found:
        dropped[format.skipped] += 1
    kept: list[T] = []
    for item in found:
        problem = flaw(item)
        if problem is None:
            kept.append(item)
        elif format.published:
            dropped[problem] += 1
        else:
            raise InputError(f"{row}: {problem}; mend or remove the row.")
    return kept
