"""Verdicts that are asked for once: a content-addressed cache in one SQLite file.

A verdict's key is the sha256 of the judge's name and version, the hash of its prompt and the case's own texts. So a
changed judge or answer is another key, and nothing has to be declared stale.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from triune.errors import InputError, TriuneError
from triune.judges.cache_file import reading, writing
from triune.judges.judge import Case, Decide, Judge
from triune.parsing import parse_json
from triune.types import Verdict

# How many verdicts a killed run may lose.
CHUNK = 128
_AT_ONCE = 500  # keys in one query; SQLite's oldest limit is 999

# An abstention is kept where its reason begins with one of these: the judge was heard, and did not decide. Any other
# (a timeout, a full budget, a reason that nobody thought of) is asked for again: a failed call must not become a
# verdict for ever.
ABSTAINS = "abstains: "
JUDGED = (ABSTAINS, "unreadable reply", "empty reply")
NOT_CACHED = "not cached: "


@dataclass(frozen=True, slots=True)
class Entry:
    """A verdict with what else is kept of it.

    `payload` is JSON (a raw reply, an imported row's other fields), `cost` what it cost in the judge's currency,
    `at` when it was written (whole seconds since 1970, UTC).
    """

    verdict: Verdict
    payload: Any = None
    cost: float = 0.0
    at: int = 0


Details = Callable[[Case, Verdict], tuple[Any, float]]


def is_final(verdict: Verdict) -> bool:
    """Whether a verdict is kept: it has a value, or its reason says that the judge was heard (JUDGED)."""
    return verdict.value is not None or verdict.reason.startswith(JUDGED)


def verdict_key(judge: Judge, case: Case, prompt: str = "") -> bytes:
    """The 32 bytes under which the verdict of `judge` on `case` stands; `prompt` is the judge's own prompt."""
    parts = [judge.name, judge.version, _prompt_hash(prompt), case.prompt, case.response, case.other, *case.accepted]
    # JSON, so that no two lists of texts read alike; escaped, as a text may hold half a character.
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def cached(
    judge: Judge, path: Path, *, prompt: str = "", details: Details | None = None, only_cached: bool = False
) -> Judge:
    """`judge`, asked only for what the cache at `path` does not hold; what it says is written as it goes.

    Written are chunks of CHUNK verdicts. Equal cases are asked for once. Abstentions of failed calls are returned and
    not written (see `is_final`). Where another process was faster, its verdict counts. `prompt` is the judge's own
    prompt where its version does not already stand for it; `details` gives each fresh verdict's payload and cost.
    With `only_cached` the judge is never asked and nothing is written: what is missing abstains, with a reason that
    begins with NOT_CACHED and names the judge.

    Raises InputError, before the judge is asked, for a damaged or foreign file, one of a newer Triune, and one that
    cannot be written while verdicts are missing; with `only_cached` also for no file. TriuneError where the judge
    gives another number of verdicts than cases, or a value outside [0, 1].
    """

    def decide(cases: Sequence[Case]) -> list[Verdict]:
        keys = [verdict_key(judge, case, prompt) for case in cases]
        held = read_entries(path, keys) if only_cached or path.exists() else {}
        found = {key: entry.verdict for key, entry in held.items()}
        missing = {key: case for key, case in zip(keys, cases, strict=True) if key not in found}
        if missing and only_cached:
            absent = Verdict(None, f"{NOT_CACHED}{path} holds no verdict of {judge.name!r}, version {judge.version!r}")
            return [found.get(key, absent) for key in keys]
        if missing:
            write_entries(path, judge, {}, prompt)  # a file that cannot be written is found before anything is asked
        rest = iter(missing.items())
        while chunk := dict(islice(rest, CHUNK)):
            found |= _asked(judge, chunk, (path, prompt, details))
        return [found[key] for key in keys]

    return replace(judge, decide=decide)


def _asked(judge: Judge, chunk: Mapping[bytes, Case], where: tuple[Path, str, Details | None]) -> dict[bytes, Verdict]:
    path, prompt, details = where
    verdicts = _checked(judge.decide, list(chunk.values()), judge.name)
    said = dict(zip(chunk, verdicts, strict=True))
    entries = {}
    for key, verdict in said.items():
        if is_final(verdict):
            payload, cost = details(chunk[key], verdict) if details else (None, 0.0)
            entries[key] = Entry(verdict, payload, cost)
    if not entries:
        return said
    write_entries(path, judge, entries, prompt)
    # Read back: two processes then report the same verdict, the one that stands in the cache.
    return said | {key: entry.verdict for key, entry in read_entries(path, list(entries)).items()}


def _checked(decide: Decide, cases: list[Case], name: str) -> list[Verdict]:
    verdicts = decide(cases)
    if len(verdicts) != len(cases):
        raise TriuneError(f"judge {name!r} gave {len(verdicts)} verdicts for {len(cases)} cases; mend the judge.")
    for verdict in verdicts:
        _check_value(verdict, f"judge {name!r}")
    return verdicts


def _check_value(verdict: Verdict, who: str) -> None:
    if verdict.value is not None and not 0.0 <= verdict.value <= 1.0:  # NaN would become an abstention in SQLite
        raise TriuneError(f"{who} gave the value {verdict.value}; wanted 0 to 1, or None. Mend the judge.")


def read_entries(path: Path, keys: Sequence[bytes]) -> dict[bytes, Entry]:
    """What the cache holds of `keys`. Raises InputError as `cached` does, and for no file."""
    found: dict[bytes, Entry] = {}
    with reading(path) as connection:
        if connection is None:
            return {}
        for part in _parts(keys):
            marks = ", ".join("?" * len(part))
            query = f"SELECT key, value, reason, payload, cost, at FROM verdicts WHERE key IN ({marks})"
            for key, *fields in connection.execute(query, part):
                found[key] = _entry(fields, path)
    return found


def _entry(fields: list[Any], path: Path) -> Entry:
    value, reason, payload, cost, at = fields
    sound = (value is None or (isinstance(value, float) and 0.0 <= value <= 1.0)) and isinstance(reason, str)
    try:
        read = None if payload is None else parse_json(payload)
    except (ValueError, TypeError):
        sound = False
    if not sound:
        raise InputError(
            f"verdict cache {path}: a row with the value {value!r} and the payload {payload!r:.60}; wanted a number "
            "from 0 to 1 or null, and JSON. The file was changed by something else: move it away."
        )
    return Entry(Verdict(value, reason), read, cost, at)


def write_entries(path: Path, judge: Judge, entries: Mapping[bytes, Entry], prompt: str = "") -> int:
    """Write what the cache does not hold yet, all or nothing; how many were new. What is held stays as it is.

    An `at` of 0 means now. Raises InputError as `cached` does, for a verdict that is not final, a cost that is not a
    finite number, and a payload without a JSON form; TriuneError for a value outside [0, 1].
    """
    now = int(time.time())
    rows = [(key, *_row(judge, entry), entry.at or now) for key, entry in entries.items()]
    named = (judge.name, judge.version, _prompt_hash(prompt))
    with writing(path) as connection:
        if not rows:
            return 0
        connection.execute("INSERT OR IGNORE INTO judges (name, version, prompt) VALUES (?, ?, ?)", named)
        begun = connection.total_changes
        query = "SELECT id FROM judges WHERE name = ? AND version = ? AND prompt = ?"
        number = connection.execute(query, named).fetchone()[0]
        connection.executemany(
            "INSERT OR IGNORE INTO verdicts (judge, key, value, reason, payload, cost, at)"
            f" VALUES ({number}, ?, ?, ?, ?, ?, ?)",
            rows,
        )
        return connection.total_changes - begun


def _row(judge: Judge, entry: Entry) -> tuple[float | None, str, str | None, float]:
    verdict = entry.verdict
    _check_value(verdict, f"judge {judge.name!r}")
    if not is_final(verdict):
        raise InputError(f"an abstention with the reason {verdict.reason!r} is not kept; wanted one of {JUDGED}.")
    if not math.isfinite(entry.cost):
        raise InputError(f"judge {judge.name!r}: a verdict's cost is {entry.cost}; wanted a finite number.")
    try:
        payload = None if entry.payload is None else json.dumps(entry.payload, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"judge {judge.name!r}: a payload has no JSON form ({error}).") from error
    # A reason may quote half a character of an answer, which SQLite cannot store.
    reason = verdict.reason.encode(errors="backslashreplace").decode()
    return verdict.value, reason, payload, entry.cost


def _parts(keys: Sequence[bytes]) -> Iterable[list[bytes]]:
    rest = iter(dict.fromkeys(keys))
    while part := list(islice(rest, _AT_ONCE)):
        yield part


def _prompt_hash(prompt: str) -> str:
    return hashlib.sha256(prompt.encode(errors="surrogatepass")).hexdigest()
