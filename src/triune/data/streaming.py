"""Rows of an axis in one order that is drawn from the seed alone, without ever being in memory together.

The order: in each epoch the shards are put in an order of their own and read one after the other; as soon as `buffer`
rows are there, they are shuffled and given away, and the next block begins. A block's shuffle is drawn from the seed
and the place where the block begins, so that three numbers (epoch, shard, row) are enough to go on from anywhere.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from triune.data.formats import row_examples
from triune.data.shards import FileShards, HubShards, Shards
from triune.data.splits import prompt_key
from triune.errors import InputError
from triune.record import digest
from triune.types import Example

TESTED = "prompt that is tested"  # why a row is left out


class Place(NamedTuple):
    """Where a block begins: after row `row` (its number, 0 before the first) of the epoch's shard number `shard`."""

    epoch: int = 0
    shard: int = 0
    row: int = 0


START = Place()


@dataclass(frozen=True)
class Block:
    """Rows that are shuffled together, in the order of training, and what was left out on the way, by reason."""

    place: Place
    examples: list[Example] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class ShardedRows:
    """An axis's rows in shards.

    buffer: rows that are shuffled together, the most that are in memory; shuffled: False keeps the order of the files;
    longest: characters of prompt and response above which a row is left out; tested: `prompt_hash` of every prompt
    whose rows are left out; sealed: the identity, where it was computed before (by the process that started this one).
    """

    axis: str
    shards: Shards
    format: str
    buffer: int
    seed: int
    shuffled: bool = True
    longest: int | None = None
    tested: tuple[str, ...] = ()
    sealed: str = ""

    @property
    def identity(self) -> str:
        """Of the rows and their order. Reads every file once a process."""
        own = [self.axis, self.format, self.buffer, self.seed, self.shuffled, self.longest, sorted(self.tested)]
        return self.sealed or digest([self.shards.identity, own])

    @cached_property
    def _tested(self) -> frozenset[str]:
        return frozenset(self.tested)

    def blocks(self, begin: Place = START) -> Iterator[Block]:
        """The blocks from `begin` on, epoch after epoch, without an end.

        Raises InputError for a damaged row, and where an epoch has no row that could be trained on.
        """
        while True:
            n, left_out = 0, Counter[str]()
            for block in self._epoch(begin):
                n += len(block.examples)
                left_out += block.left_out
                yield block
            if not n and begin[1:] == (0, 0):
                reasons = ", ".join(f"{reason} {count:,}" for reason, count in left_out.items()) or "no rows"
                raise InputError(f"axis {self.axis!r}: no row of the stream is left to train on ({reasons}).")
            begin = Place(begin.epoch + 1)

    def check(self) -> None:
        """Read the first row of every file, or of the hub's first shard; what is wrong further on is found on the way.

        Raises InputError for a shard without rows, one of other columns than `format` wants, a damaged first row.
        """
        for index in range(len(self.shards.names) if isinstance(self.shards, FileShards) else 1):
            first = next(self.shards.rows(index), None)
            if first is None:
                raise InputError(
                    f"{self.shards.names[index]}: holds no rows; wanted at least one in every shard. Remove it."
                )
            row_examples(first, self.format, self.axis, Counter())

    def _epoch(self, begin: Place) -> Iterator[Block]:
        order = list(range(len(self.shards.names)))
        if self.shuffled:
            random.Random(f"{self.seed} {self.axis} {begin.epoch}").shuffle(order)
        block = Block(begin)
        for turn in range(begin.shard, len(order)):
            for row in self.shards.rows(order[turn], begin.row if turn == begin.shard else 0):
                found = row_examples(row, self.format, self.axis, block.left_out)
                block.examples.extend(one for one in found if self._wanted(one, block.left_out))
                if len(block.examples) >= self.buffer:
                    yield self._in_order(block)
                    block = Block(Place(begin.epoch, turn, row.number))
        if block.examples or block.left_out:
            yield self._in_order(block)

    def _wanted(self, example: Example, left_out: Counter[str]) -> bool:
        reason = ""
        if self.longest is not None and len(example.prompt) + len(example.response) > self.longest:
            reason = f"longer than {self.longest} characters"
        elif prompt_hash(example.prompt) in self._tested:
            reason = TESTED
        left_out.update([reason] if reason else [])
        return not reason

    def _in_order(self, block: Block) -> Block:
        if self.shuffled:
            random.Random(f"{self.seed} {self.axis} {tuple(block.place)}").shuffle(block.examples)
        return block


@dataclass(frozen=True)
class KeptRows:
    """An axis's rows in memory, which stand beside streamed ones in a mixture."""

    axis: str
    rows: tuple[Example, ...]
    seed: int

    @property
    def identity(self) -> str:
        """Of the rows and their order."""
        return digest([repr(self.rows), self.seed])

    def blocks(self, begin: Place = START) -> Iterator[Block]:
        """All rows, each epoch in a new order."""
        while True:
            order = list(self.rows)
            random.Random(f"{self.seed} {self.axis} {tuple(begin)}").shuffle(order)
            yield Block(begin, order)
            begin = Place(begin.epoch + 1)


Part = ShardedRows | KeptRows


@dataclass(frozen=True)
class Stream:
    """The rows of one axis or of several, one row of each in turn: equal shares, as the joint rows in memory have."""

    parts: tuple[Part, ...]

    @property
    def identity(self) -> str:
        """Of the rows and their order; where the files are and when they were written does not count."""
        return digest([part.identity for part in self.parts])

    @property
    def axes(self) -> tuple[str, ...]:
        """The parts' axes."""
        return tuple(part.axis for part in self.parts)


Rows = Sequence[Example] | Stream


def prompt_hash(prompt: str) -> str:
    """What stands for a prompt among those that are tested: 128 bits of BLAKE2b of `prompt_key`."""
    key = prompt_key(prompt).encode(errors="surrogatepass")
    return hashlib.blake2b(key, digest_size=16).hexdigest()


def first_rows(part: Part, n: int) -> list[Example]:
    """The first `n` rows of a stream, or as many as an epoch has."""
    found: list[Example] = []
    for block in part.blocks():
        if block.place.epoch or len(found) >= n:
            break
        found += block.examples
    return found[:n]


# As JSON, for the processes that train from it


def plain_rows(rows: Rows) -> Any:
    """Rows in memory or a stream as JSON has them; a stream takes its identity along, lest each process hash anew."""
    if not isinstance(rows, Stream):
        return [asdict(row) for row in rows]
    sealed = [replace(part, sealed=part.identity) if isinstance(part, ShardedRows) else part for part in rows.parts]
    return {"parts": [asdict(part) for part in sealed]}


def restored_rows(found: Any) -> Rows:
    """What `plain_rows` made plain. Raises KeyError or TypeError for anything else."""
    if isinstance(found, list):
        return [Example(**row) for row in found]
    return Stream(tuple(map(_restored, found["parts"])))


def _restored(part: Mapping[str, Any]) -> Part:
    if "rows" in part:
        return KeptRows(part["axis"], tuple(Example(**row) for row in part["rows"]), part["seed"])
    own = part["shards"]
    shards = FileShards(tuple(own["paths"])) if "paths" in own else HubShards(**own)
    return ShardedRows(**{**part, "shards": shards, "tested": tuple(part["tested"])})
