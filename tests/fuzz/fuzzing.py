"""What every fuzz test needs: strange values, spoiled documents and bytes, and the rule that a reader must keep.

The rule: whatever a file holds, its reader ends within CPU_SECONDS, without ADDED_BYTES of memory, and either returns
or raises a TriuneError with a message that can be printed. The fast run draws a few cases, the same each time; the
long one (@slow) draws new ones for TRIUNE_FUZZ_SECONDS of CPU time in all and says how many it drew.
"""

import copy
import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from triune.errors import TriuneError
from triune.peak_memory import peak_memory_bytes, reset_peak_memory

FAST = 8  # drawn cases a target, beside those found before
CPU_SECONDS = 20.0
ADDED_BYTES = 1 << 30
ADDED_ADDRESSES = 4 << 30
LONG_SECONDS = float(os.environ.get("TRIUNE_FUZZ_SECONDS", "60"))
HUGE = 10**30
WEIRD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        1.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
        2**31,
        2**63,
        -(2**63),
        HUGE,
        10**290,
    ),
    *(
        "",
        "a",
        "../../x",
        "/etc/passwd",
        ".",
        "..",
        "\x00",
        "\ud800",
        "\u202e",
        "\x1b[31m",
        "NaN",
        "1e400",
        "[",
        "{{x}}",
    ),
    *([], {}, [[]], [None], [0], [1, 2], ["a"], {"": None}, {"a": 1}, "a" * 5000, [0] * 300, "(a+)+$", "\\", "*"),
)
Made = Any


@dataclass(frozen=True)
class Target:
    """One reader: what is made for it, how it is called with that, cases that once broke it, and one that is read."""

    made: st.SearchStrategy[Made]
    call: Callable[[Made], object]
    found: Sequence[Made] = ()
    sound: Made = None


class Hang(BaseException):
    """The reader took longer than CPU_SECONDS. Not an Exception, which a reader may turn into one of ours."""


@contextmanager
def bounded(
    seconds: float = CPU_SECONDS, n_bytes: int = ADDED_BYTES, addresses: int = ADDED_ADDRESSES
) -> Iterator[None]:
    """End what takes `seconds` of this process's own time, or fail where it takes `n_bytes` of memory.

    What asks for over `addresses` at once, touched or not, is refused by the system (MemoryError, RuntimeError).
    """

    def ring(_signal: int, _frame: object) -> None:
        raise Hang(f"over {seconds} s")

    before = signal.signal(signal.SIGVTALRM, ring)
    reset_peak_memory()
    peak = peak_memory_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + addresses, hard))
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, before)
    grown = peak_memory_bytes() - peak
    assert grown < n_bytes, f"{grown:,} bytes more"


def keeps_the_rule(target: Target, made: Made) -> None:
    with bounded():
        try:
            target.call(made)
        except TriuneError as error:
            said = str(error)
            assert said.strip()
            assert len(said) < 100_000, len(said)


def fast(target: Target) -> None:
    """The cases found before, and FAST drawn ones, the same in each run."""
    if target.sound is not None:
        target.call(target.sound)
    for made in target.found:
        try:
            keeps_the_rule(target, made)
        except BaseException as error:
            error.add_note(f"with {made!r:.1000}")
            raise

    @settings(**_quiet(FAST), derandomize=True)
    @given(target.made)
    def once(made: Made) -> None:
        keeps_the_rule(target, made)

    once()


def long(target: Target, seconds: float) -> int:
    """New cases for some seconds of this process's own time; how many."""
    n, end = 0, time.process_time() + seconds
    while time.process_time() < end:

        @seed(random.SystemRandom().getrandbits(64))
        @settings(**_quiet(100))
        @given(target.made)
        def once(made: Made) -> None:
            nonlocal n
            if time.process_time() < end:
                n += 1
                keeps_the_rule(target, made)

        once()
    return n


def _quiet(n: int) -> dict[str, Any]:
    return {"max_examples": n, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def long_all(targets: dict[str, Target], share: float, capsys: Any) -> None:
    """Every target of a module for its share of LONG_SECONDS; prints the counts, and fails with all that was found."""
    counts, faults = {}, []
    for name, target in targets.items():
        try:
            counts[name] = long(target, LONG_SECONDS * share / len(targets))
        except (Exception, Hang) as error:
            error.add_note(f"found by the target {name!r}")
            faults.append(error)
    with capsys.disabled():
        print(f"\nfuzzed {LONG_SECONDS * share:.0f} s: {counts}, {sum(counts.values()):,} cases")
    if faults:
        raise BaseExceptionGroup(f"{len(faults)} targets", faults)
    assert all(counts.values())


# What is made


def values() -> st.SearchStrategy[Any]:
    """JSON values, strange ones often."""
    plain = st.sampled_from(WEIRD) | st.text(max_size=8) | st.integers() | st.floats()
    return plain | st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | _objects(inner), max_leaves=6)


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.text(max_size=6), inner, max_size=3)


@st.composite
def spoiled(draw: st.DrawFn, sound: Any) -> Any:
    """A document with one to three places changed, removed, added or doubled."""
    made = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(made))
        if not places:
            return copy.deepcopy(draw(values()))
        owner, key = draw(st.sampled_from(places))
        how = draw(st.integers(0, 5))
        if how == 0:
            del owner[key]
        elif how == 1 and isinstance(owner, dict):
            owner[draw(st.sampled_from(["", "a", "..", "\ud800", str(key) + "x"]))] = copy.deepcopy(owner[key])
        elif how == 2 and isinstance(owner, list):
            owner.append(copy.deepcopy(owner[key]))
        else:
            owner[key] = copy.deepcopy(draw(values()))  # the lists of WEIRD are spoiled in their turn
    return made


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from _places(value[key])


def json_bytes(value: Any) -> bytes:
    """A document as a file; what it holds of halves of characters is escaped, as JSON can."""
    return json.dumps(value).encode()


TEXTS = (
    b"",
    b" \n",
    b"\x00",
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b"null",
    b"[]",
    b"NaN",
    b'"\\ud800"',
    b"[" * 100_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b"[" * 400 + b"]" * 400,
    b"9" * 5000,
    b"[" + b"9" * 4000 + b"]",
    b'{"a": 1, "a": 2}',
    "{'für': 1}".encode("latin-1"),
)


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """Bytes cut short, with some changed, put in, or taken out."""
    made = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(made) - 1, 0)))
        how = draw(st.integers(0, 4))
        if how == 0:
            del made[at:]
        elif how == 1:
            del made[at : at + draw(st.integers(1, 16))]
        elif how == 2:
            made[at:at] = draw(st.binary(max_size=16))
        else:
            made[at : at + 1] = draw(st.sampled_from([b"\x00", b"\xff", b"{", b'"', b"\x80", b"9", b"-"]))
    return bytes(made)


def documents(sound: Any) -> st.SearchStrategy[bytes]:
    """Files of JSON: spoiled, damaged, or of something else altogether."""
    whole = json_bytes(sound)
    return spoiled(sound).map(json_bytes) | damaged(whole) | st.sampled_from(TEXTS) | values().map(json_bytes)


def written(path: Path, read: Callable[[], object]) -> Callable[[bytes], object]:
    """Write what was made to a file, then read it."""

    def call(made: bytes) -> object:
        path.write_bytes(made)
        return read()

    return call
