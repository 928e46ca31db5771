"""Batches of a stream: the same rows for any number of processes, and after any stop."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from triune.data.shards import FileShards
from triune.data.streaming import KeptRows, ShardedRows, Stream, prompt_hash
from triune.models.encoding import Encoded
from triune.models.token_stream import TokenStream
from triune.types import Example

BATCH = 12
Batches = list[list[tuple[str | None, int]]]


def encode(example: Example) -> Encoded | None:
    """Numbers that end in 7 do not fit."""
    n = int(example.prompt)
    return None if n % 10 == 7 else Encoded((n, 1), 1, example.axis)


@pytest.fixture(params=["one axis", "three axes"])
def stream(request: pytest.FixtureRequest, tmp_path: Path) -> Stream:
    paths = []
    for index, size in enumerate((30, 11, 20)):
        lines = [json.dumps({"prompt": str(index * 100 + i), "response": "x"}) for i in range(size)]
        paths.append(tmp_path / f"{index}.jsonl")
        paths[-1].write_text("\n".join(lines), encoding="utf-8")
    own = ShardedRows("helpful", FileShards(tuple(map(str, paths))), "rows", 8, 5)
    if request.param == "one axis":
        return Stream((own,))
    kept = KeptRows("honest", tuple(Example("honest", str(n), "x") for n in range(500, 513)), 5)
    return Stream((own, kept, ShardedRows("harmless", FileShards((str(paths[1]),)), "rows", 100, 5)))


def taken(stream: Stream, n_batches: int, own: slice = slice(0, BATCH), **begin: Any) -> Batches:
    batches = TokenStream(stream, encode, 8).batches(BATCH, own, **begin)
    return [[(row.axis, row.input_ids[0]) for row in batch] for batch in islice(batches, n_batches)]


def test_the_axes_take_turns_and_unfit_rows_leave_their_places_empty(stream: Stream) -> None:
    tokens = TokenStream(stream, encode, 8)
    batches = list(islice(tokens.batches(BATCH, slice(0, BATCH)), 30))
    assert tokens.n_encoded == 30 * BATCH == sum(map(len, batches)) + tokens.n_unfit
    assert tokens.n_unfit > 0
    for batch in batches:
        counts = [sum(row.axis == axis for row in batch) for axis in stream.axes]
        assert all(BATCH // len(stream.parts) - 4 <= count <= BATCH // len(stream.parts) for count in counts)
    seen = [row.input_ids[0] for batch in batches for row in batch if row.axis == "helpful"]
    epoch = [index * 100 + i for index, size in enumerate((30, 11, 20)) for i in range(size) if i % 10 != 7]
    assert sorted(seen[: len(epoch)]) == epoch


@pytest.mark.parametrize("world", [2, 3, 4, 6])
def test_the_batches_do_not_depend_on_how_many_processes_there_are(stream: Stream, world: int) -> None:
    n = BATCH // world
    parts = [taken(stream, 25, slice(rank * n, (rank + 1) * n)) for rank in range(world)]
    assert [[row for part in batch for row in part] for batch in zip(*parts, strict=True)] == taken(stream, 25)


@pytest.mark.parametrize("begin", [1, 2, 3, 5, 6, 11, 19])
def test_a_stream_goes_on_after_any_batch(stream: Stream, begin: int) -> None:
    """Also though the loader has read further than what was trained on."""
    whole = taken(stream, 25)
    tokens = TokenStream(stream, encode, 8)
    batches = tokens.batches(BATCH, slice(0, BATCH))
    list(islice(batches, begin + 3))
    marks = json.loads(json.dumps(tokens.marks(begin * BATCH)))
    assert taken(stream, 25 - begin, n=begin * BATCH, marks=marks) == whole[begin:]
    # And from a mark that was itself made after a stop.
    again = TokenStream(stream, encode, 8)
    rest = again.batches(BATCH, slice(0, BATCH), begin * BATCH, marks)
    assert again.marks(begin * BATCH) == marks
    list(islice(rest, 2))
    later = again.marks((begin + 2) * BATCH)
    assert taken(stream, 23 - begin, n=(begin + 2) * BATCH, marks=later) == whole[begin + 2 :]


def test_a_mark_is_that_of_the_block_under_way(stream: Stream) -> None:
    tokens = TokenStream(stream, encode, 8)
    list(islice(tokens.batches(BATCH, slice(0, BATCH)), 20))
    (mark, *_others) = tokens.marks(18 * BATCH)
    taken_rows = 18 * BATCH // len(stream.parts)
    assert taken_rows - 8 <= mark["rows"] <= taken_rows
    assert mark["place"][0] >= 1


def test_what_is_left_out_is_told_by_reason(tmp_path: Path) -> None:
    """Ten rows of an epoch: one is tested, one is too long, one (7) does not fit; two epochs and a bit are read."""
    rows = [{"prompt": str(i), "response": "x" * (9 if i == 3 else 1)} for i in range(10)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    shards = FileShards((str(tmp_path / "a.jsonl"),))
    own = ShardedRows("helpful", shards, "rows", 100, 5, longest=5, tested=(prompt_hash("5"),))
    tokens = TokenStream(Stream((own,)), encode, 8)
    assert tokens.account() == []
    list(islice(tokens.batches(8, slice(0, 8)), 2))
    assert tokens.account() == [
        "  2 of 16 streamed rows do not fit and are left out",
        "  streamed rows left out: 2, longer than 5 characters",
        "  streamed rows left out: 2, prompt that is tested",
    ]
