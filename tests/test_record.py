"""Run folders: identities, records, and whose a folder is."""

import errno
import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.folders import closed_folder, finish, foreign, names, step
from triune.errors import InputError
from triune.record import (
    RECORD,
    claim,
    digest,
    finished,
    identify,
    locked,
    read_record,
    writing,
)

# Identities


def test_digest_is_the_sha256_of_canonical_json() -> None:
    assert digest({"b": (1, None), "a": "λ"}) == hashlib.sha256('{"a": "λ", "b": [1, null]}'.encode()).hexdigest()
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert digest("bytes that are no text: \udcff") != digest("")


def test_digest_refuses_what_has_no_json_form() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        digest({"a": object()})


def test_identity_of_a_step_is_what_determines_its_result(tmp_path: Path) -> None:
    one = step(tmp_path / "a", rate=0.1)
    assert replace(one, folder=tmp_path / "b").identity == one.identity
    others = [
        replace(one, verb="align"),
        replace(one, settings={"rate": 0.2}),
        replace(one, inputs={"base": "abd"}),
        replace(one, inputs={}),
    ]
    assert len({one.identity, *(other.identity for other in others)}) == 5


def test_identity_of_a_file_is_its_hash(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"rows")
    assert identify(tmp_path / "rows.jsonl") == hashlib.sha256(b"rows").hexdigest()


def test_identity_of_a_folder_is_its_files(tmp_path: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place / "inner").mkdir(parents=True)
        (tmp_path / place / "inner" / "a").write_text("a")
        (tmp_path / place / "b").write_text("b")
    here, there = tmp_path / "here", tmp_path / "there"
    assert identify(here) == identify(there)
    (there / ".cache").mkdir()
    (there / ".cache" / "download").write_text("x")
    (there / ".lock").touch()
    assert identify(here) == identify(there)
    (there / "b").rename(there / "c")
    assert identify(here) != identify(there)
    (there / "c").rename(there / "b")
    (there / "b").write_text("B")
    assert identify(here) != identify(there)


def test_identity_of_a_finished_step_is_its_own(tmp_path: Path) -> None:
    one = step(tmp_path / "a")
    finish(one)
    assert identify(one.folder) == one.identity


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "does not exist; give a file or a folder"),
        (lambda p: p.mkdir(), "is an empty folder; give the one that holds the files"),
        (lambda p: [p.mkdir(), (p / ".hidden").touch()], "is an empty folder"),
    ],
    ids=["missing", "empty", "hidden files only"],
)
def test_nothing_has_no_identity(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "x")
    with pytest.raises(InputError, match=message):
        identify(tmp_path / "x")


def test_an_unreadable_file_has_no_identity() -> None:
    with (
        closed_folder("weights") as closed,
        pytest.raises(InputError, match=r"weights cannot be read \(Permission denied\); mend"),
    ):
        identify(closed)


# Records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"holds no finished Triune run \(record.json is missing\); run its verb to the end first"),
        ("{", "is not valid JSON .*; delete .* and run its verb again"),
        ("\xff", "is not valid JSON"),
        ("[]", "is not a Triune record"),
        ('{"verb": "train"}', r"is not a Triune record \(no identity\); choose another folder"),
    ],
)
def test_a_folder_without_a_readable_record(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / RECORD).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        read_record(tmp_path)


def test_a_record_says_how_the_result_came_about(tmp_path: Path) -> None:
    one = step(tmp_path / "runs" / "a", rate=0.1, places=Path("x"))
    with writing(one, seed=7) as draft:
        (draft / "result.txt").write_text("result")
    found = read_record(one.folder)
    assert names(one.folder) == [RECORD, "result.txt"]
    assert names(tmp_path / "runs") == ["a", f"a/{RECORD}", "a/result.txt"]
    assert (found["verb"], found["identity"], found["seed"]) == ("train", one.identity, 7)
    assert (found["settings"], found["inputs"]) == ({"rate": 0.1, "places": "x"}, {"base": "abc"})
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["begun"])
    assert 0 <= found["seconds"] < 60
    assert 0 <= found["cpu_seconds"] < 60
    assert found["peak_memory_bytes"] > 1 << 20
    assert found["versions"]["torch"] == torch.__version__
    assert {"machine", "git_commit"} <= found.keys()


def test_finished_is_same_settings_from_same_inputs(tmp_path: Path) -> None:
    one = step(tmp_path / "a", rate=0.1)
    assert not finished(one)
    finish(one)
    assert finished(one)
    assert not finished(step(tmp_path / "a", rate=0.2))
    assert not finished(replace(one, inputs={"base": "other"}))


# Claims


def test_a_claim_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    claim(tmp_path / "new" / "deep" / "folder")
    claim(tmp_path / "empty")
    assert names(tmp_path) == ["empty"]


def test_a_run_cut_short_in_its_first_moment_is_ours(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        pass
    claim(tmp_path / "run")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign, "exists and was not written by Triune; choose a new or empty folder with --out"),
        (lambda p: (foreign(p) / "recipe.yaml").touch(), "exists and was not written by Triune"),
        (lambda p: p.write_text("x"), "out is a file .*; give a folder for the output"),
        (lambda p: p.symlink_to("nowhere"), r"out is a file \(or a broken link\)"),
    ],
    ids=["foreign files", "a recipe of one's own", "a file", "a broken link"],
)
def test_what_is_not_ours_cannot_be_claimed(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "out")
    before = names(tmp_path)
    with pytest.raises(InputError, match=message):
        claim(tmp_path / "out")
    assert names(tmp_path) == before


def test_no_folder_can_be_made_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("x")
    with pytest.raises(InputError, match="notes is a file"):
        claim(tmp_path / "notes" / "out")


def test_no_permission_to_write() -> None:
    with closed_folder() as closed:
        for out in (closed, closed / "out", closed / "deep" / "out"):
            with pytest.raises(InputError, match=r"cannot write in .*closed \(.*denied\); choose another"):
                claim(out)
        with pytest.raises(InputError, match=r"cannot write in .*closed"), writing(step(closed / "out")):
            pytest.fail("the work began")
    claim(closed.parent)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_no_room_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: open("/dev/full", "wb"))  # noqa: SIM115
    with pytest.raises(InputError, match=r"cannot write in .* \(No space left on device\); choose another"):
        claim(tmp_path / "out")


def test_no_permission_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(InputError, match="cannot write"):
        claim(tmp_path)
