"""Shards are read as `read_file` reads them, from any row on, and never whole."""

import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from triune.data import shards
from triune.data.files import read_file
from triune.data.shards import FileShards, HubShards, find_shards
from triune.errors import InputError, TriuneError

ROWS = [{"prompt": f"question {n}\u2028{n}", "response": "an answer", "n": n} for n in range(2500)]
Writer = Callable[[Path], None]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_parquet(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=700)


def write_arrow(path: Path) -> None:
    import pyarrow

    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1600)


WRITERS: dict[str, Writer] = {
    "a.jsonl": lambda path: path.write_bytes(lines(ROWS)) and None,
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines(ROWS))) and None,
    "a.ndjson.xz": lambda path: path.write_bytes(lzma.compress(lines(ROWS))) and None,
    "a.parquet": write_parquet,
    "a.arrow": write_arrow,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_shard_has_the_rows_of_the_file_from_any_row_on(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    found = find_shards(str(tmp_path / name))
    assert [row.values for row in found.rows(0)] == read_file(tmp_path / name) == ROWS
    for begin in (0, 1, 699, 700, 701, 1600, 2499, 2500, 2600):
        rows = list(found.rows(0, begin))
        assert [row.values["n"] for row in rows] == list(range(begin, 2500))
        assert [row.number for row in rows] == list(range(begin + 1, 2501))


def test_numbers_in_json_lines_are_those_of_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"n": 1}\n\n  \r\n{"n": 4}\r\n{"n": 5}')
    found = find_shards(str(path))
    assert [(row.number, row.values["n"]) for row in found.rows(0)] == [(1, 1), (4, 4), (5, 5)]
    assert [row.number for row in found.rows(0, 4)] == [5]


def test_sources_are_files_globs_and_folders(tmp_path: Path) -> None:
    for name in ("train-00001-of-00002.jsonl", "train-00000-of-00002.jsonl"):
        (tmp_path / name).write_bytes(lines(ROWS[:2]))
    wanted = tuple(str(tmp_path / f"train-0000{n}-of-00002.jsonl") for n in (0, 1))
    for source in (tmp_path, tmp_path / "*.jsonl", tmp_path / "**" / "train-*"):
        assert find_shards(str(source)) == FileShards(wanted)


def test_identity_is_of_the_bytes_in_order(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, names in ((first, "ab"), (second, "cd")):
        folder.mkdir()
        for name, row in zip(names, ROWS, strict=False):
            (folder / f"{name}.jsonl").write_bytes(lines([row]))
    one = find_shards(f"{first}/*").identity
    assert find_shards(f"{second}/*").identity == one
    (second / "d.jsonl").write_bytes(lines([ROWS[2]]))  # of the same size
    assert find_shards(f"{second}/*").identity != one
    assert FileShards(tuple(reversed(find_shards(f"{first}/*").names))).identity != one


# What is wrong


BAD: dict[str, tuple[str, bytes, str]] = {
    "damaged line": ("a.jsonl", b'{"n": 1}\n{"n": \n', r"a\.jsonl:2: not JSON.*one object a line"),
    "no object": ("a.jsonl", b'{"n": 1}\n[2]\n', r"a\.jsonl:2: wanted one object a line, got '\[2\]'"),
    "latin-1": ("a.jsonl", b'{"n": 1}\n{"n": "\xe9"}\n', r"a\.jsonl:2: byte 7 of the line is not UTF-8"),
    "cut archive": ("a.jsonl.gz", gzip.compress(lines(ROWS))[:-4000], "damaged archive"),
    "no archive": ("a.jsonl.gz", lines(ROWS[:1]), "damaged archive"),
    "no parquet": ("a.parquet", b"PAR1" + bytes(40), "not a readable parquet file"),
    "no arrow": ("a.arrow", b"ARROW" + bytes(40), "not a readable arrow file"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_shard_names_the_place(tmp_path: Path, case: str) -> None:
    name, content, said = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        list(find_shards(str(tmp_path / name)).rows(0))


def test_a_line_without_an_end_is_refused_before_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_LINE", 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"n": 1}\n"' + bytes(100_000_000), 1))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"a\.jsonl\.gz:2: over 1,000 bytes"):
            list(find_shards(str(tmp_path / "a.jsonl.gz")).rows(0))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_missing_and_strange_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match=r"\*\.jsonl: no file matches; check the pattern"):
        find_shards(f"{tmp_path}/*.jsonl")
    with pytest.raises(InputError, match=r"b\.json does not exist; did you mean .*a\.json"):
        find_shards(str(tmp_path / "b.json"))
    with pytest.raises(InputError, match=r"a\.json: cannot be streamed; a shard is \.jsonl.*Convert it"):
        find_shards(str(tmp_path / "a.json"))


def test_memory_stays_flat_while_the_file_is_large(tmp_path: Path) -> None:
    """20 MB of rows; the limit is a tenth of what the reader of whole files needs."""
    rows = 20_000
    with (tmp_path / "a.jsonl").open("w", encoding="utf-8") as file:
        for n in range(rows):
            file.write(json.dumps({"prompt": f"{n} " + "x" * 1000}) + "\n")

    def peak(read: Callable[[], int]) -> int:
        tracemalloc.start()
        try:
            assert read() == rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    found = find_shards(str(tmp_path / "a.jsonl"))
    assert peak(lambda: sum(1 for _ in found.rows(0))) < 2_000_000
    assert peak(lambda: len(read_file(tmp_path / "a.jsonl"))) > 20_000_000


# The hub; the network alone is stood in for


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A data set of three parquet files at two commits, which `datasets` itself streams; the calls are noted."""
    import datasets
    import pyarrow
    from pyarrow import parquet

    for index in range(3):
        table = pyarrow.Table.from_pylist(ROWS[index * 100 : (index + 1) * 100])
        parquet.write_table(table, tmp_path / f"{index}.parquet", row_group_size=30)
    plain, calls = datasets.load_dataset, []

    def stood_in(name: str, config: str | None = None, **own: Any) -> Any:
        calls.append({"name": name, "config": config, **own})
        own.pop("revision")
        return plain("parquet", data_files=str(tmp_path / "*.parquet"), **own)

    monkeypatch.setattr(datasets, "load_dataset", stood_in)
    monkeypatch.setattr(shards, "_revision", lambda name: "c0ffee")
    shards._hub.cache_clear()
    yield calls
    shards._hub.cache_clear()


def test_a_hub_data_set_is_streamed_at_one_commit(hub: list[dict[str, Any]]) -> None:
    found = find_shards("someone/rows", split="train")
    assert found == HubShards("someone/rows", None, "train", "c0ffee", 3)
    rows = [row for index in range(3) for row in found.rows(index)]
    assert [row.values for row in rows] == ROWS[:300]
    assert [row.values["n"] for row in found.rows(1, 45)] == list(range(145, 200))
    assert next(found.rows(1, 45)).number == 46
    assert next(found.rows(1)).source == "someone/rows, shard 2 of 3"
    wanted = {"name": "someone/rows", "config": None, "split": "train", "revision": "c0ffee", "streaming": True}
    assert hub == [wanted]
    assert found.identity != HubShards("someone/rows", None, "train", "c0ffef", 3).identity


def test_the_hub_needs_a_split_and_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no split given"):
        find_shards("someone/rows")

    def away(name: str) -> str:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(shards, "_revision", away)
    with pytest.raises(InputError, match=r"cannot be streamed: no route to host\. Without a network, fetch it"):
        find_shards("someone/rows", split="train")


def test_a_lost_connection_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_all: Any) -> Any:
        raise ConnectionError("lost")

    monkeypatch.setattr(shards, "_hub", away)
    with pytest.raises(TriuneError, match=r"shard 2 of 3: cannot be read on \(lost\); the same command goes on"):
        next(HubShards("someone/rows", None, "train", "c0ffee", 3).rows(1))
