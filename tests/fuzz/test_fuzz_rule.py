"""The rule that every fuzzed reader must keep: what breaks it is noticed."""

import contextlib
import signal
from collections.abc import Callable

import pytest
from hypothesis import strategies as st

from tests.fuzz import fuzzing
from tests.fuzz.fuzzing import Hang, Target, bounded, fast, keeps_the_rule, long
from triune.errors import InputError


def spin(_made: object) -> None:
    while True:
        with contextlib.suppress(Exception):
            sum(range(1000))


def refuse(said: str) -> Callable[[object], object]:
    def call(_made: object) -> object:
        raise InputError(said)

    return call


def stumble(made: object) -> None:
    if made == 3:
        raise KeyError(made)


BREAKING: dict[str, tuple[Callable[[object], object], type[BaseException]]] = {
    "never ends": (spin, Hang),
    "takes ten gigabytes": (lambda made: bytearray(10**10), MemoryError),
    "takes what it may not keep": (lambda made: bytearray(3 << 24), AssertionError),
    "another error": (lambda made: {}["x"], KeyError),
    "no message": (refuse(" "), AssertionError),
    "a message of the whole file": (refuse("x" * 100_000), AssertionError),
}


@pytest.mark.parametrize("way", BREAKING)
def test_what_breaks_the_rule(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, error = BREAKING[way]
    before = signal.getsignal(signal.SIGVTALRM)
    monkeypatch.setattr(fuzzing, "bounded", lambda: bounded(seconds=0.2, n_bytes=1 << 25))
    with pytest.raises(error):
        keeps_the_rule(Target(st.none(), call), None)
    assert signal.getsignal(signal.SIGVTALRM) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_what_keeps_it() -> None:
    keeps_the_rule(Target(st.none(), refuse("wanted less")), None)
    keeps_the_rule(Target(st.none(), lambda made: made), None)


def test_the_fast_run_tries_what_was_found_and_draws() -> None:
    seen: list[object] = []
    fast(Target(st.integers(10, 99), seen.append, (1, 2), 0))
    assert seen[:3] == [0, 1, 2]
    assert 1 < len(seen) - 3 <= fuzzing.FAST + 1
    again: list[object] = []
    fast(Target(st.integers(10, 99), again.append, (1, 2), 0))
    assert again == seen
    with pytest.raises(KeyError) as caught:
        fast(Target(st.none(), stumble, (1, 3)))
    assert caught.value.__notes__ == ["with 3"]


def test_the_long_run_counts_and_finds() -> None:
    seen: list[object] = []
    assert long(Target(st.integers(), seen.append), 0.1) == len(seen) > 0
    with pytest.raises(KeyError):
        long(Target(st.integers(0, 9), stumble), 5.0)
