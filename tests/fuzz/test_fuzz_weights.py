"""Safetensors files of any content: refused before memory is taken, or read."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save

from tests.fuzz.fuzzing import HUGE, Target, damaged, fast, json_bytes, long_all, spoiled
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


@pytest.fixture
def targets(tmp_path: Path) -> dict[str, Target]:
    def call(made: bytes) -> None:
        path = tmp_path / SINGLE_FILE
        path.unlink(missing_ok=True)  # a file that is mapped must not be changed
        path.write_bytes(made)
        read_header(path)
        load_tensors(path)
        folder_header(tmp_path)
        nonfinite_counts(tmp_path)
        hash_weights(tmp_path)

    headers = st.binary(max_size=32).flatmap(
        lambda more: spoiled(HEADER).map(lambda header: packed(header, DATA + more))
    )
    lengths = st.integers(0, 2**64 - 1).map(lambda n: n.to_bytes(8, "little") + SOUND[8:])
    return {"safetensors": Target(headers | damaged(SOUND) | lengths | st.binary(max_size=64), call, FOUND, SOUND)}


def test_any_safetensors(targets: dict[str, Target]) -> None:
    fast(targets["safetensors"])


@pytest.mark.slow
def test_any_safetensors_long(targets: dict[str, Target], capsys: pytest.CaptureFixture[str]) -> None:
    long_all(targets, 0.15, capsys)


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


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("read", [read_header, load_tensors, lambda path: hash_weights(path.parent)])
def test_a_promise_takes_no_memory(promise: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    content, message = PROMISES[promise]
    path = tmp_path / SINGLE_FILE
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message):
            read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000  # bytes, for a promise of 10,000,000,000
