"""Safetensors files of any content: refused before memory is taken, or read."""

import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save

from tests.fuzz.fuzzing import HUGE, Target, bounded, damaged, fast, json_bytes, long_all, spoiled
from triune.errors import InputError
from triune.models.store import SINGLE_FILE, folder_header, hash_weights, load_tensors, nonfinite_counts, read_header

# Libraries warn of strange settings that they take; only what is raised counts here.
pytestmark = pytest.mark.filterwarnings("ignore")
SOUND = save({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16), "c": torch.zeros(0)}, {"format": "pt"})
LENGTH = int.from_bytes(SOUND[:8], "little")
HEADER = json.loads(SOUND[8 : 8 + LENGTH])
DATA = SOUND[8 + LENGTH :]
TEN_GB = 10_000_000_000


def packed(header: Any, data: bytes = DATA) -> bytes:
    text = header if isinstance(header, bytes) else json_bytes(header)
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: list[Any], offsets: list[Any], dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


FOUND = [
    packed({"a": entry([0, HUGE], [0, 0])}, b""),
    packed({"a": entry([0, 2**63 - 1, 2**63 - 1], [0, 0])}, b""),
    packed({"a": entry([0, 2**62, 4], [0, 0])}, b""),
    packed({"a": entry([2**62, 4, 0], [0, 0], "U8")}, b""),
    packed({"a": entry([10**290] * 20, [0, 4])}, b"1234"),
    packed(b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,-0]}}', b""),
    packed(
        b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
        b"1234",
    ),
    packed('{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}'.encode("utf-16"), b"1234"),
    packed({"__metadata__": {"n": 3}, "a": entry([], [0, 4])}, b"1234"),
    packed({"__metadata__": None, "a": entry([], [0, 4])}, b"1234"),
    packed({"a": entry([], [0, 4], [])}, b"1234"),
    packed({"\ud800": entry([], [0, 4])}, b"1234"),
    packed(b"  " + json.dumps({"a": entry([], [0, 4])}).encode(), b"1234"),
    packed(b"[" * 100_000),
    packed(b"9" * 5000),
    b"\xff" * 8,
    b"",
]


def safetensors(place: Path) -> Target:
    def call(made: bytes) -> None:
        path = place / SINGLE_FILE
        path.unlink(missing_ok=True)  # a file that is mapped must not be changed
        path.write_bytes(made)
        read_header(path)
        load_tensors(path)
        folder_header(place)
        nonfinite_counts(place)
        hash_weights(place)

    headers = st.binary(max_size=32).flatmap(
        lambda more: spoiled(HEADER).map(lambda header: packed(header, DATA + more))
    )
    lengths = st.integers(0, 2**64 - 1).map(lambda n: n.to_bytes(8, "little") + SOUND[8:])
    return Target(headers | damaged(SOUND) | lengths | st.binary(max_size=64), call, FOUND, SOUND)


def test_any_safetensors(tmp_path: Path) -> None:
    fast(safetensors(tmp_path))


@pytest.mark.slow
def test_any_safetensors_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long_all({"safetensors": safetensors(tmp_path)}, 0.15, capsys)


PROMISES: dict[str, tuple[bytes, str]] = {
    "a header of 10 GB": (TEN_GB.to_bytes(8, "little") + b"{}", "the header claims 10,000,000,000 bytes"),
    "a header of 2^64 bytes": (
        (2**64 - 1).to_bytes(8, "little") + b"{}",
        "the header claims 18,446,744,073,709,551,615",
    ),
    "a tensor of 10 GB": (
        packed({"a": entry([TEN_GB // 4], [0, TEN_GB])}, b"1234"),
        "a ends at byte 10,000,000,000 of the data and the file holds 4",
    ),
    "10 GB in 4 bytes": (packed({"a": entry([TEN_GB // 4], [0, 4])}, b"1234"), "needs 10,000,000,000 bytes"),
    "tensors over each other": (
        packed({"a": entry([1], [0, 4]), "b": entry([1], [0, 4])}, b"1234"),
        "b starts at byte 0 of the data; the one before it ends at 4",
    ),
    "a gap": (packed({"a": entry([1], [4, 8])}, b"12345678"), "a starts at byte 4 of the data"),
    "cut short": (SOUND[:-1], "and the file holds"),
}


READERS: dict[str, Callable[[Path], object]] = {
    "read_header": read_header,
    "load_tensors": load_tensors,
    "hash_weights": lambda path: hash_weights(path.parent),
}
MOST = 64 << 20  # bytes that a refusal may take, in Python, resident or as addresses, for a promise of 10,000,000,000


@contextmanager
def little() -> Iterator[None]:
    """Fail where a call takes MOST in any of the three ways in which memory can be taken."""
    tracemalloc.start()
    try:
        with bounded(n_bytes=MOST, addresses=MOST):
            yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000, f"{peak:,} bytes of Python's"


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("reader", READERS)
def test_a_promise_takes_no_memory(promise: str, reader: str, tmp_path: Path) -> None:
    content, message = PROMISES[promise]
    path = tmp_path / SINGLE_FILE
    path.write_bytes(content)
    with little(), pytest.raises(InputError, match=message):
        READERS[reader](path)


@pytest.mark.parametrize("reader", READERS)
def test_a_promise_that_the_file_keeps(reader: str, tmp_path: Path) -> None:
    """Ten gigabytes that are there, as a hole in the file: a header of that size is none."""
    path = tmp_path / SINGLE_FILE
    path.write_bytes(TEN_GB.to_bytes(8, "little"))
    os.truncate(path, 8 + TEN_GB)
    with little(), pytest.raises(InputError, match="the header claims 10,000,000,000 bytes"):
        READERS[reader](path)


def believing(path: Path) -> None:
    """A reader that believes the header's length."""
    with path.open("rb") as file:
        file.read(int.from_bytes(file.read(8), "little"))


GREEDY: dict[str, Callable[[Path], object]] = {
    "a header that is believed": believing,
    "a tensor that nobody touches": lambda path: torch.empty(TEN_GB // 4),
    "bytes": lambda path: bytes(2 * MOST),
    "many small ones": lambda path: [bytes(1000) for _ in range(20_000)],
}


@pytest.mark.parametrize("way", GREEDY)
def test_a_reader_that_takes_memory_would_be_noticed(way: str, tmp_path: Path) -> None:
    path = tmp_path / SINGLE_FILE
    path.write_bytes(TEN_GB.to_bytes(8, "little"))
    os.truncate(path, 8 + TEN_GB)
    with pytest.raises((MemoryError, RuntimeError, AssertionError)), little():
        GREEDY[way](path)
