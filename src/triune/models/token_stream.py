"""A stream's rows as tokens, in batches; each of several processes gets its own stretch of every batch."""

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice, repeat
from typing import Any

from triune.data.streaming import START, Part, Place, Stream
from triune.models.encoding import Encoded
from triune.types import Example

Mark = Mapping[str, Any]  # where a part goes on from, as JSON has it: `rows` were given before the block at `place`


@dataclass
class TokenStream:
    """What a training job reads in place of rows in memory.

    Row n of the stream is of part n mod A; batch k of size B has the rows from kB on, whatever the processes, epochs
    and stops. A row that does not fit into `max_length` tokens leaves its place in the batch empty, so that nobody
    needs to encode the rows of the others to know which ones are its own.
    """

    stream: Stream
    encode: Callable[[Example], Encoded | None]
    max_length: int
    n_encoded: int = 0  # by this process, since it began
    n_unfit: int = 0
    _walks: list["_Walk"] = field(default_factory=list)
    _readers: list[Generator[Example, None, None]] = field(default_factory=list)

    def batches(self, size: int, own: slice, n: int = 0, marks: Sequence[Mark] = ()) -> Iterator[list[Encoded]]:
        """Of every `size` rows those of `own` that fit, without an end; after the first `n`, as `marks(n)` knew them.

        Raises InputError where the data turn out damaged or empty.
        """
        parts = self.stream.parts
        self._walks = [_Walk(part, mark) for part, mark in zip(parts, marks or [{}] * len(parts), strict=True)]
        self._readers = [walk.rows(_taken(n, place, len(parts))) for place, walk in enumerate(self._walks)]
        whole = (next(self._readers[place]) for place in islice(cycle(range(len(parts))), n % len(parts), None))
        return (self._encoded(list(islice(whole, size))[own]) for _ in repeat(None))

    def marks(self, n: int) -> list[Mark]:
        """Where each part goes on from after the stream's first `n` rows. Must be asked with growing n."""
        return [walk.mark(_taken(n, place, len(self._walks))) for place, walk in enumerate(self._walks)]

    def account(self) -> list[str]:
        """What this process left out since it began, a line each: rows that do not fit, and of blocks read why."""
        unfit = f"  {self.n_unfit:,} of {self.n_encoded:,} streamed rows do not fit and are left out"
        reasons = sum((walk.left_out for walk in self._walks), Counter[str]())
        told = [f"  streamed rows left out: {count:,}, {reason}" for reason, count in reasons.items()]
        return [unfit, *told] if self.n_unfit else told

    def close(self) -> None:
        """Close the files; `batches` then has no more."""
        for reader in self._readers:
            reader.close()

    def _encoded(self, examples: Sequence[Example]) -> list[Encoded]:
        rows = [row for row in map(self.encode, examples) if row is not None]
        self.n_encoded += len(examples)
        self.n_unfit += len(examples) - len(rows)
        return rows


def _taken(n: int, place: int, n_parts: int) -> int:
    """How many of the first n rows are of the part at `place`."""
    return (n - place + n_parts - 1) // n_parts


class _Walk:
    """One part from a mark on, and the marks of its blocks since."""

    def __init__(self, part: Part, mark: Mark) -> None:
        self.part, self.begin = part, mark or {"rows": 0, "place": START}
        self.blocks: deque[tuple[int, Place]] = deque()  # where they begin, behind how many rows
        self.left_out: Counter[str] = Counter()  # by reason

    def rows(self, n: int) -> Generator[Example, None, None]:
        """The rows after the first `n`."""
        given = self.begin["rows"]
        for block in self.part.blocks(Place(*self.begin["place"])):
            self.blocks.append((given, block.place))
            self.left_out += block.left_out
            yield from block.examples[max(0, n - given) :]
            given += len(block.examples)

    def mark(self, n: int) -> Mark:
        """Where to go on from after the first `n` rows."""
        while len(self.blocks) > 1 and self.blocks[1][0] <= n:
            self.blocks.popleft()
        given, place = self.blocks[0] if self.blocks else (self.begin["rows"], self.begin["place"])
        return {"rows": given, "place": list(place)}
