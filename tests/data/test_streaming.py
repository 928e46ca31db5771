"""One order of rows, drawn from the seed alone; and what a stream leaves out."""

import dataclasses
import gc
import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from triune.data.preparing import joint_of, prepare, write_prepared
from triune.data.streamed import axis_stream, beginnings, mixture, prompt_hashes
from triune.data.streaming import (
    TESTED,
    KeptRows,
    Place,
    ShardedRows,
    Stream,
    first_rows,
    plain_rows,
    prompt_hash,
    restored_rows,
)
from triune.data_settings import Slice, Streaming
from triune.errors import InputError
from triune.recipe import Recipe
from triune.record import write_json
from triune.types import Example

SIZES = (40, 7, 25)


def row(n: int, words: str = "") -> dict[str, Any]:
    return {"prompt": f"Question {n}?", "response": f"answer {n}{words}"}


def write(folder: Path, sizes: tuple[int, ...] = SIZES) -> Path:
    """Shards with rows numbered through."""
    folder.mkdir(exist_ok=True)
    n = 0
    for index, size in enumerate(sizes):
        lines = [json.dumps(row(n + i)) for i in range(size)]
        (folder / f"part-{index}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        n += size
    return folder


def stream(folder: Path, buffer: int = 10, seed: int = 0, **own: Any) -> ShardedRows:
    wanted = Slice(source=f"{folder}/*.jsonl", **own)
    return axis_stream(wanted, Streaming(buffer=buffer), "helpful", seed)


def numbers(examples: list[Example]) -> list[int]:
    return [int(example.prompt[9:-1]) for example in examples]


def epochs(own: ShardedRows, n: int) -> list[list[int]]:
    """The rows of the first n epochs."""
    found: list[list[int]] = [[] for _ in range(n)]
    for block in own.blocks():
        if block.place.epoch == n:
            return found
        found[block.place.epoch] += numbers(block.examples)
    raise AssertionError("a stream ended")


def test_every_epoch_has_every_row_once_in_a_new_order(tmp_path: Path) -> None:
    own = stream(write(tmp_path / "s"))
    first, second = epochs(own, 2)
    assert sorted(first) == sorted(second) == list(range(sum(SIZES)))
    assert first != second != sorted(second)
    assert epochs(stream(tmp_path / "s"), 2) == [first, second]
    assert epochs(stream(tmp_path / "s", seed=1), 1) != [first]
    # Further than a block and the next shard nothing moves.
    assert all({n // 10 for n in first[i : i + 10]} <= set(range(8)) for i in range(0, 70, 10))


def test_file_order_is_that_of_the_files(tmp_path: Path) -> None:
    assert epochs(stream(write(tmp_path / "s"), order="file"), 2) == [list(range(72))] * 2


def test_a_block_is_shuffled_and_no_larger_than_the_buffer(tmp_path: Path) -> None:
    blocks = list(islice(stream(write(tmp_path / "s", (40,))).blocks(), 4))
    assert [sorted(numbers(block.examples)) for block in blocks] == [list(range(i, i + 10)) for i in (0, 10, 20, 30)]
    assert all(numbers(block.examples) != sorted(numbers(block.examples)) for block in blocks)


@pytest.mark.parametrize("buffer", [1, 10, 1000])
def test_a_stream_goes_on_from_any_block(tmp_path: Path, buffer: int) -> None:
    own = stream(write(tmp_path / "s"), buffer)
    n = 12 if buffer < 1000 else 3
    blocks = list(islice(own.blocks(), n))
    for index in (1, n // 2, n - 1):
        rest = list(islice(own.blocks(Place(*blocks[index].place)), n - index))
        assert rest == blocks[index:]


def test_rows_that_are_gone_are_freed(tmp_path: Path) -> None:
    """No more rows than two blocks are alive at any time."""

    def alive() -> int:
        return sum(type(thing) is Example for thing in gc.get_objects())

    own = stream(write(tmp_path / "s", (300, 300)), 50)
    gc.collect()
    before, counts = alive(), []
    for index, _block in enumerate(islice(own.blocks(), 12)):
        counts += [alive() - before] if index in (5, 11) else []
    assert all(50 <= count <= 110 for count in counts)
    kept = list(islice(own.blocks(), 12))  # what the count would have seen
    assert alive() - before >= sum(len(block.examples) for block in kept) == 600


def test_tested_and_long_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", (30,))
    held = [Example("helpful", "  question\u00a03? ", "x"), Example("helpful", "QUESTION 4?", "x")]
    own = dataclasses.replace(stream(folder, 1000, longest=20), tested=prompt_hashes([held]))
    (block,) = islice(own.blocks(), 1)
    # "Question 10?" and "answer 10" have 21 characters.
    assert sorted(numbers(block.examples)) == [0, 1, 2, 5, 6, 7, 8, 9]
    assert block.left_out == Counter({"longer than 20 characters": 20, TESTED: 2})
    assert own.identity != stream(folder, 1000, longest=20).identity


def test_a_stream_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    own = stream(write(tmp_path / "s", (3,)))
    own = dataclasses.replace(own, tested=tuple(prompt_hash(f"Question {n}?") for n in range(3)))
    with pytest.raises(InputError, match=r"axis 'helpful': no row .* left to train on \(prompt that is tested 3\)"):
        list(own.blocks())


def test_a_published_format_drops_and_an_own_one_refuses(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"instruction": "a", "output": "b"}) + "\n" + json.dumps({"instruction": "c", "output": ""}),
        encoding="utf-8",
    )
    (block,) = islice(stream(tmp_path, format="alpaca").blocks(), 1)
    assert [(e.prompt, e.axis, e.source) for e in block.examples] == [("a", "helpful", "alpaca")]
    assert block.left_out == Counter({"empty answer": 1})
    lines = [json.dumps(row(0)), json.dumps({"prompt": "c", "response": " "})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.jsonl, row 2: empty answer; mend or remove the row"):
        next(stream(tmp_path).blocks())


def test_what_is_wrong_with_a_shard_is_said_at_the_start(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "part-3.jsonl").write_text("\n\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"part-3\.jsonl: holds no rows; wanted at least one in every shard"):
        stream(tmp_path)
    (tmp_path / "part-3.jsonl").write_text('{"instruction": "a", "output": "b"}\n', encoding="utf-8")
    with pytest.raises(
        InputError, match=r"part-3\.jsonl, row 1: has the fields \(instruction, output\).*'rows' wants"
    ):
        stream(tmp_path)
    (tmp_path / "part-3.jsonl").write_text(f"{json.dumps(row(1))}\n{{'a': 1}}\n", encoding="utf-8")
    own = stream(tmp_path)
    with pytest.raises(InputError, match=r"part-3\.jsonl:2: not JSON"):
        list(islice(own.blocks(), 40))


def test_keys_that_count_prompts_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(InputError, match=r"axes\.helpful\.train has start, limit beside streaming"):
        stream(tmp_path, start=0.1, limit=5)
    with pytest.raises(InputError, match="the source 'miniature' is made in memory; leave streaming out"):
        axis_stream(Slice(source="miniature"), Streaming(), "helpful", 0)
    with pytest.raises(InputError, match="format 'row'"):
        stream(tmp_path, format="row")


@pytest.mark.parametrize("buffer", [0, -3, True, "many"])
def test_a_buffer_is_a_number_of_rows(buffer: Any) -> None:
    with pytest.raises(ValueError, match="buffer"):
        Streaming(buffer=buffer)


# Mixtures


def test_rows_in_memory_stand_beside_streamed_ones(tmp_path: Path) -> None:
    kept = [Example("honest", f"Question {n}?", "x") for n in range(5)]
    streams = {"helpful": stream(write(tmp_path / "s"))}
    joint = mixture({"helpful": [], "honest": kept}, streams, 3)
    assert joint.axes == ("helpful", "honest")
    blocks = list(islice(joint.parts[1].blocks(), 3))
    assert [sorted(numbers(block.examples)) for block in blocks] == [list(range(5))] * 3
    assert len({tuple(numbers(block.examples)) for block in blocks}) > 1
    assert list(islice(joint.parts[1].blocks(blocks[1].place), 2)) == blocks[1:]
    few = beginnings({"helpful": [], "honest": kept}, streams, 15)
    assert few["honest"] is kept
    assert numbers(few["helpful"]) == epochs(streams["helpful"], 1)[0][:15]
    assert len(first_rows(streams["helpful"], 1000)) == 72
    with pytest.raises(InputError, match="axis 'honest' has no data"):
        mixture({"helpful": [], "honest": []}, streams, 0)


def test_streams_survive_json_with_their_identity(tmp_path: Path) -> None:
    own = dataclasses.replace(stream(write(tmp_path / "s")), tested=(prompt_hash("x"),))
    joint = Stream((own, KeptRows("honest", (Example("honest", "a", "b"),), 3)))
    identity = joint.identity
    write_json(tmp_path / "rows.json", plain_rows(joint))
    found = restored_rows(json.loads((tmp_path / "rows.json").read_text(encoding="utf-8")))
    assert found.identity == identity
    assert [list(islice(a.blocks(), 9)) for a in found.parts] == [list(islice(a.blocks(), 9)) for a in joint.parts]
    (tmp_path / "s" / "part-0.jsonl").write_text(json.dumps(row(0)), encoding="utf-8")
    assert found.identity == identity != joint.identity  # not hashed anew by each process
    rows = [Example("a", "b", "c")]
    assert restored_rows(json.loads(json.dumps(plain_rows(rows)))) == rows


# In a recipe


def recipe(folder: Path, **own: Any) -> Recipe:
    test = folder / "test.jsonl"
    test.write_text("\n".join(json.dumps(row(n)) for n in (3, 50)), encoding="utf-8")
    other = folder / "other.jsonl"
    other.write_text("\n".join(json.dumps(row(n, " more")) for n in range(100, 120)), encoding="utf-8")
    axes = {
        "helpful": {
            "train": {"source": f"{folder}/s/*.jsonl"},
            "streaming": {"buffer": 10},
            "test": {"source": str(test)},
        },
        "honest": {"train": {"source": str(other), "stop": 0.5}, "test": {"source": str(other), "start": 0.5}},
    }
    return Recipe.model_validate({"base": {"path": "x"}, "axes": axes, "evaluate": [{"kind": "nll"}], **own})


def test_what_is_tested_is_never_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "s")
    prepared = prepare(recipe(tmp_path))
    assert (prepared.train["helpful"], len(prepared.train["honest"])) == ([], 10)
    (first,) = epochs(prepared.streams["helpful"], 1)
    assert sorted(first) == [n for n in range(72) if n not in (3, 50)]
    assert isinstance(prepared.rows("helpful"), Stream)
    assert prepared.rows("honest") == prepared.train["honest"]
    joint, few = joint_of(prepared, None, 0), joint_of(prepared, 4, 0)
    assert isinstance(joint, Stream)
    assert [sum(e.axis == axis for e in few) for axis in ("helpful", "honest")] == [4, 4]


def test_the_data_folder_describes_a_stream(tmp_path: Path) -> None:
    write(tmp_path / "s")
    own = recipe(tmp_path)
    out = tmp_path / "data"
    out.mkdir()
    write_prepared(prepare(own), own, out)
    found = json.loads((out / "streams.json").read_text(encoding="utf-8"))["helpful"]
    assert [Path(name).name for name in found["shards"]] == ["part-0.jsonl", "part-1.jsonl", "part-2.jsonl"]
    assert (found["buffer"], found["tested_prompts"]) == (10, 12)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["train"], summary["joint"]) == ({"honest": 10}, None)
    assert not (out / "train.helpful.jsonl").exists()
    assert not (out / "joint.jsonl").exists()


def test_streaming_true_has_the_defaults(tmp_path: Path) -> None:
    content = recipe(write(tmp_path / "s").parent).model_dump(mode="json")
    for value, wanted in ((True, Streaming()), (False, None)):
        content["axes"]["helpful"]["streaming"] = value
        assert Recipe.model_validate(content).axes["helpful"].streaming == wanted
