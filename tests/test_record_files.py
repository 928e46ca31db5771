"""What a record says of the machine, and files that are written whole or not at all."""

import errno
import json
import math
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.folders import names, step
from triune import record
from triune.peak_memory import peak_memory_bytes
from triune.record import (
    environment,
    read_record,
    write_json,
    write_text,
    writing,
)
from triune.types import Agreement, Score

# Machine


def test_the_commit_is_triunes_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = environment()["git_commit"]
    checkout = Path(__file__).parents[1]
    assert (checkout / ".git").exists() == (commit is not None)
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)
    # Installed in the environment of another project: its commit says nothing of Triune.
    monkeypatch.setattr(record, "__file__", str(checkout / ".venv/lib/site-packages/triune/record.py"))
    assert environment()["git_commit"] is None


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux lets a process reset its high-water mark")
def test_peak_memory_is_of_the_step(tmp_path: Path) -> None:
    size = 96 << 20
    bytearray(b"x") * size
    with writing(step(tmp_path / "small")):
        small = peak_memory_bytes()
    with writing(step(tmp_path / "large")):
        block = bytearray(b"x") * size
        del block
    peaks = [read_record(tmp_path / name)["peak_memory_bytes"] for name in ("small", "large")]
    assert peaks[1] - peaks[0] > 0.8 * size
    assert peaks[0] >= small > 1 << 20


def test_peak_memory_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: "VmRSS: 1 kB\n")
    assert peak_memory_bytes() > 1 << 20


# Files


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scores.json"
    write_text(path, "naïve\n")
    assert path.read_bytes() == "naïve\n".encode()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "naïve\n"
    assert names(tmp_path) == ["scores.json"]


def test_a_read_only_disk_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *given: object, **more: object) -> None:
        raise OSError(errno.EROFS, "opened" if given else "removed", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="opened"):
        write_text(tmp_path / "scores.json", "new")


def test_json_is_what_any_reader_accepts(tmp_path: Path) -> None:
    nothing = Score("nll", math.nan, 0, math.nan, math.nan, "lower", "nats", "none", Agreement(0.5, 2, "made up"))
    value = {
        "score": nothing,
        "infinite": [math.inf, -math.inf],
        "numpy": [np.float32(0.5), np.int64(3), np.bool_(True), np.array([[1.0, np.nan]])],
        "torch": torch.tensor([1, 2]),
        "place": Path("a/b"),
        3: (True, None, "λ"),
    }
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert '"λ"' in text
    found = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert found["score"] == {
        "name": "nll",
        "value": None,
        "n": 0,
        "low": None,
        "high": None,
        "better": "lower",
        "unit": "nats",
        "judge": "none",
        "agreement": {"accuracy": 0.5, "n": 2, "labels": "made up", "measures": []},
        "abstained": 0,
    }
    assert found["infinite"] == [None, None]
    assert found["numpy"] == [0.5, 3, True, [[1.0, None]]]
    assert (found["torch"], found["place"], found["3"]) == ([1, 2], "a/b", [True, None, "λ"])


@dataclass(frozen=True)
class Holder:
    content: object


@pytest.mark.parametrize(
    "value", [{1, 2}, object(), Holder(b"bytes"), Holder], ids=["set", "object", "bytes", "class"]
)
def test_json_refuses_what_it_has_no_form_for(tmp_path: Path, value: object) -> None:
    with pytest.raises(TypeError, match="has no JSON form"):
        write_json(tmp_path / "x.json", {"a": [value]})
    assert names(tmp_path) == []
