"""The verdict cache: what is asked, what is kept, and what happens to bad files."""

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from triune.errors import InputError, TriuneError
from triune.judges import cache_file
from triune.judges.cache import (
    ABSTAINS,
    CHUNK,
    NOT_CACHED,
    Entry,
    cached,
    is_final,
    read_entries,
    verdict_key,
    write_entries,
)
from triune.judges.endpoint_prompts import FORMS, read_reply
from triune.judges.judge import Case, Judge
from triune.types import Verdict


@dataclass
class Oracle:
    """A judge that says how long an answer is, in hundredths, and remembers what it was asked."""

    asked: list[str] = field(default_factory=list)
    fails: str = ""

    def decide(self, cases: Sequence[Case]) -> list[Verdict]:
        verdicts = []
        for case in cases:
            self.asked.append(case.response)
            value = None if self.fails and case.response == "odd" else len(case.response) / 100
            verdicts.append(Verdict(value, self.fails if value is None else "length"))
        return verdicts

    def judge(self, version: str = "1") -> Judge:
        return Judge("oracle", version, "is long", "nothing", self.decide)


def cases(*responses: str) -> list[Case]:
    return [Case("p", response) for response in responses]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "verdicts.sqlite"


def test_nothing_is_asked_twice(path: Path) -> None:
    oracle = Oracle()
    judge = cached(oracle.judge(), path)
    first = judge.decide(cases("a", "bb", "a"))
    assert first == [Verdict(0.01, "length"), Verdict(0.02, "length"), Verdict(0.01, "length")]
    assert oracle.asked == ["a", "bb"]
    assert judge.decide(cases("bb", "ccc", "a")) == [Verdict(n / 100, "length") for n in (2, 3, 1)]
    assert oracle.asked == ["a", "bb", "ccc"]
    assert judge.decide([]) == []


def test_the_cached_judge_is_the_judge_otherwise(path: Path) -> None:
    judge = Oracle().judge()
    assert replace(cached(judge, path), decide=judge.decide) == judge


def test_a_key_depends_on_everything_that_decides() -> None:
    judge, case = Oracle().judge(), Case("p", "r", "o", ("a", "b"))
    others = [
        (replace(judge, name="x"), case, ""),
        (replace(judge, version="2"), case, ""),
        (judge, case, "prompt"),
        *[(judge, replace(case, **{name: "x"}), "") for name in ("prompt", "response", "other")],
        (judge, replace(case, accepted=("a",)), ""),
        (judge, replace(case, accepted=("ab",)), ""),
        (judge, Case("pr", "", "o", ("a", "b")), ""),
        (judge, Case("p", "r", "", ("o", "a", "b")), ""),
    ]
    keys = {verdict_key(*other) for other in others} | {verdict_key(judge, case)}
    assert len(keys) == len(others) + 1
    assert verdict_key(replace(judge, cost="much", event="x"), replace(case)) == verdict_key(judge, case)


def test_the_key_stays_the_same_over_versions_of_triune() -> None:
    # A changed key throws away every cache that users have: worked out with sha256sum.
    assert verdict_key(Judge("j", "1", "", "", lambda _: []), Case("p", "é")).hex() == KEY


KEY = "e8f792be333add0f5ea0ec0d034ea6978a8c23472e419f5d439132609dc58c82"


def test_a_new_version_is_asked_again(path: Path) -> None:
    oracle = Oracle()
    cached(oracle.judge(), path).decide(cases("a"))
    cached(oracle.judge("2"), path).decide(cases("a"))
    assert oracle.asked == ["a", "a"]


def test_failed_calls_are_asked_again_and_judged_abstentions_are_kept(path: Path) -> None:
    oracle = Oracle(fails="timeout (5 tries)")
    judge = cached(oracle.judge(), path)
    assert judge.decide(cases("odd", "a")) == [Verdict(None, "timeout (5 tries)"), Verdict(0.01, "length")]
    oracle.fails = f"{ABSTAINS}cannot tell"
    assert judge.decide(cases("odd", "a"))[0] == Verdict(None, f"{ABSTAINS}cannot tell")
    oracle.fails = ""
    assert judge.decide(cases("odd", "a"))[0] == Verdict(None, f"{ABSTAINS}cannot tell")
    assert oracle.asked == ["odd", "a", "odd"]


@pytest.mark.parametrize(
    ("verdict", "final"),
    [
        (Verdict(0.0), True),
        (Verdict(1.0, "timeout"), True),
        (Verdict(None, f"{ABSTAINS}so"), True),
        (Verdict(None, "timeout"), False),
        (Verdict(None, "budget"), False),
        (Verdict(None, "HTTP 429 (5 tries)"), False),
        (Verdict(None, f"{NOT_CACHED}x"), False),
        (Verdict(None, ""), False),
    ],
)
def test_what_is_final(verdict: Verdict, final: bool) -> None:
    assert is_final(verdict) == final


@pytest.mark.parametrize("text", ["perhaps the first", "", None])
def test_an_endpoints_unreadable_replies_are_final(text: str | None) -> None:
    verdict = read_reply(next(iter(FORMS.values())), text, None)
    assert verdict.value is None
    assert is_final(verdict)


def test_chunks_are_kept_when_a_run_dies(path: Path) -> None:
    texts = [f"answer {i}" for i in range(2 * CHUNK + 5)]

    def dying(cases: Sequence[Case]) -> list[Verdict]:
        if cases[0].response == texts[CHUNK]:
            raise KeyboardInterrupt
        return [Verdict(1.0) for _ in cases]

    judge = Judge("oracle", "1", "is long", "nothing", dying)
    with pytest.raises(KeyboardInterrupt):
        cached(judge, path).decide(cases(*texts))
    oracle = Oracle()
    verdicts = cached(oracle.judge(), path).decide(cases(*texts))
    assert oracle.asked == texts[CHUNK:]
    assert [verdict.value for verdict in verdicts[:CHUNK]] == [1.0] * CHUNK


def test_only_cached_never_asks_and_names_what_is_missing(path: Path) -> None:
    oracle = Oracle()
    cached(oracle.judge(), path).decide(cases("a"))
    before = path.read_bytes()
    verdicts = cached(oracle.judge(), path, only_cached=True).decide(cases("bb", "a"))
    assert verdicts[1] == Verdict(0.01, "length")
    assert verdicts[0].value is None
    assert verdicts[0].reason == f"{NOT_CACHED}{path} holds no verdict of 'oracle', version '1'"
    assert oracle.asked == ["a"]
    assert path.read_bytes() == before


def test_only_cached_wants_a_file(path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        cached(Oracle().judge(), path, only_cached=True).decide(cases("a"))
    assert not path.exists()


def test_the_verdict_that_stands_counts(path: Path) -> None:
    def racing(asked: Sequence[Case]) -> list[Verdict]:
        # Another process writes while this one asks.
        write_entries(path, judge, {verdict_key(judge, case): Entry(Verdict(0.25, "first")) for case in asked})
        return [Verdict(0.75, "second") for _ in asked]

    judge = Judge("oracle", "1", "is long", "nothing", racing)
    assert cached(judge, path).decide(cases("a")) == [Verdict(0.25, "first")]


def test_entries_keep_payload_cost_and_time(path: Path) -> None:
    oracle = Oracle()
    judge = cached(oracle.judge(), path, details=lambda case, verdict: ({"raw": [case.response, 1.5, None]}, 0.125))
    judge.decide(cases("a\ud83d"))
    key = verdict_key(oracle.judge(), Case("p", "a\ud83d"))
    entry = read_entries(path, [key])[key]
    assert entry.payload == {"raw": ["a\ud83d", 1.5, None]}
    assert entry.cost == 0.125
    assert entry.at > 1_700_000_000
    assert read_entries(path, [b"\0" * 32]) == {}


def test_writing_counts_what_is_new(path: Path) -> None:
    judge = Oracle().judge()
    entries = {bytes([n]) * 32: Entry(Verdict(n / 10, "half \ud83d"), at=7) for n in range(3)}
    assert write_entries(path, judge, entries) == 3
    assert write_entries(path, judge, entries | {b"x" * 32: Entry(Verdict(0.5))}) == 1
    assert read_entries(path, [b"\2" * 32]) == {b"\2" * 32: Entry(Verdict(0.2, "half \\ud83d"), at=7)}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (Entry(Verdict(None, "timeout")), "reason 'timeout' is not kept"),
        (Entry(Verdict(0.5), payload=object()), "no JSON form"),
        (Entry(Verdict(0.5), payload=float("nan")), "no JSON form"),
        (Entry(Verdict(0.5), cost=float("inf")), "cost is inf"),
        (Entry(Verdict(1.5)), r"the value 1\.5"),
    ],
)
def test_bad_entries_are_refused_whole(path: Path, entry: Entry, message: str) -> None:
    with pytest.raises(TriuneError, match=message):
        write_entries(path, Oracle().judge(), {b"a" * 32: Entry(Verdict(0.5)), b"b" * 32: entry})
    assert not path.exists()


@pytest.mark.parametrize("value", [1.01, -0.1, float("nan"), float("inf")])
def test_a_judge_that_leaves_the_range_is_refused(path: Path, value: float) -> None:
    judge = Judge("wild", "1", "", "", lambda asked: [Verdict(value) for _ in asked])
    with pytest.raises(TriuneError, match="judge 'wild' gave the value"):
        cached(judge, path).decide(cases("a"))


def test_a_judge_that_gives_another_number_of_verdicts_is_refused(path: Path) -> None:
    judge = Judge("short", "1", "", "", lambda asked: [Verdict(1.0)])
    with pytest.raises(TriuneError, match="1 verdicts for 2 cases"):
        cached(judge, path).decide(cases("a", "b"))


def refused(path: Path, message: str) -> None:
    """Reading and asking both refuse the file, and the judge is not asked."""
    before = path.read_bytes()
    oracle = Oracle()
    for only_cached in (True, False):
        with pytest.raises(InputError, match=message):
            cached(oracle.judge(), path, only_cached=only_cached).decide(cases("a"))
    assert oracle.asked == []
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_text("not a database at all" * 100)
    refused(path, "is damaged or no SQLite file")


def test_a_damaged_file_is_refused(path: Path) -> None:
    oracle = Oracle()
    cached(oracle.judge(), path).decide(cases(*[f"answer {i}" for i in range(2000)]))
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xaa" * (len(whole) - 4096))
    refused(path, "is damaged")


def test_another_programs_database_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    refused(path, "an SQLite file of another program")


def test_a_newer_schema_is_refused(path: Path) -> None:
    cached(Oracle().judge(), path).decide(cases("a"))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    refused(path, "has schema 2; this Triune reads 1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("PRAGMA ignore_check_constraints = 1; UPDATE verdicts SET value = 7", r"the value 7\.0"),
        ("UPDATE verdicts SET payload = '{'", "the payload '{'"),
        ("DROP TABLE verdicts", "other tables"),
    ],
)
def test_changed_rows_are_refused(path: Path, change: str, message: str) -> None:
    cached(Oracle().judge(), path).decide(cases("a"))
    connection = sqlite3.connect(path)
    connection.executescript(change)
    connection.close()
    refused(path, message)


def test_an_empty_file_is_a_new_cache(path: Path) -> None:
    path.touch()
    oracle = Oracle()
    assert cached(oracle.judge(), path, only_cached=True).decide(cases("a"))[0].value is None
    assert cached(oracle.judge(), path).decide(cases("a"))[0].value == 0.01


def test_folders_are_made_and_a_file_in_their_place_is_refused(tmp_path: Path) -> None:
    cached(Oracle().judge(), tmp_path / "a" / "b c?#%" / "v.sqlite").decide(cases("a"))
    assert (tmp_path / "a" / "b c?#%" / "v.sqlite").is_file()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="its folder cannot be made"):
        cached(Oracle().judge(), tmp_path / "file" / "v.sqlite").decide(cases("a"))
    with pytest.raises(InputError, match="verdict cache"):
        cached(Oracle().judge(), tmp_path / "a").decide(cases("a"))


def test_a_read_only_cache_serves_what_it_holds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle()
    cached(oracle.judge(), path).decide(cases("a"))
    # As a superuser may write everything, SQLite itself is told that the file may only be read.
    connect = sqlite3.connect

    def read_only(address: str, **options: object) -> sqlite3.Connection:
        return connect(address.replace("mode=rwc", "mode=ro"), **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(sqlite3, "connect", read_only)
    assert cached(oracle.judge(), path).decide(cases("a"))[0].value == 0.01
    with pytest.raises(InputError, match="cannot be written"):
        cached(oracle.judge(), path).decide(cases("a", "new"))
    assert oracle.asked == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="a superuser may write everything")
def test_a_read_only_folder_serves_what_it_holds(path: Path) -> None:
    oracle = Oracle()
    cached(oracle.judge(), path).decide(cases("a"))
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        assert cached(oracle.judge(), path, only_cached=True).decide(cases("a"))[0].value == 0.01
        with pytest.raises(InputError, match="cannot be"):
            cached(oracle.judge(), path).decide(cases("new"))
    finally:
        path.parent.chmod(0o755)


def shared_writing(path: Path, who: str) -> None:
    judge = Judge("oracle", "1", "", "", lambda asked: [Verdict(0.5, who) for _ in asked])
    for start in range(0, 400, 40):
        cached(judge, path).decide(cases(*[f"answer {i}" for i in range(start, start + 60)]))


def check_shared(path: Path) -> None:
    verdicts = cached(Oracle().judge(), path, only_cached=True).decide(cases(*[f"answer {i}" for i in range(420)]))
    assert {verdict.value for verdict in verdicts} == {0.5}
    assert {verdict.reason for verdict in verdicts} <= {"a", "b"}


DIES = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 2")  # pages: what does not fit is written before the end
connection.execute("BEGIN IMMEDIATE")
for _ in range(1000):
    row = (os.urandom(32), "x" * 400)
    connection.execute("INSERT INTO verdicts VALUES (?, 1, 0.5, ?, NULL, 0, 0)", row)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_half_written_is_taken_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, asked = Oracle().judge(), cases("a", "bb", "ccc")
    cached(judge, path).decide(asked[:2])
    died = subprocess.run([sys.executable, "-c", DIES, str(path)], check=False)
    assert died.returncode == -signal.SIGKILL
    journal = path.with_name(f"{path.name}-journal")
    assert journal.exists()
    # In a folder that cannot be written it is said; root may write everywhere, so that opening is in its way.
    with monkeypatch.context() as locked:
        locked.setattr(cache_file, "_roll_back", lambda path: None)
        with pytest.raises(InputError, match=r"when its process was killed.*copy it, and the file -journal beside it"):
            read_entries(path, [verdict_key(judge, asked[0])])
    oracle = Oracle()
    assert cached(oracle.judge(), path).decide(asked) == judge.decide(asked)
    assert oracle.asked == ["ccc"]
    assert not journal.exists()
    assert len(read_entries(path, [verdict_key(judge, case) for case in asked])) == 3


def test_two_threads_share_a_cache(path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(shared_writing, path, who) for who in "ab"]:
            done.result()
    check_shared(path)


# Python 3.12 warns of forks of programs with threads; these children use nothing but SQLite.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_share_a_cache(path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=shared_writing, args=(path, who)) for who in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    check_shared(path)


def test_nothing_is_pickled(path: Path) -> None:
    cached(Oracle().judge(), path, details=lambda case, _: ({"text": case.response}, 0.0)).decide(cases("a"))
    connection = sqlite3.connect(path)
    row = connection.execute("SELECT payload, reason, value FROM verdicts").fetchone()
    connection.close()
    assert (json.loads(row[0]), *row[1:]) == ({"text": "a"}, "length", 0.01)
