"""A recipe's streamed axes: what is read of them before a run begins, and what a stream cannot do."""

from collections.abc import Iterable, Mapping

from triune.data.shards import find_shards
from triune.data.splits import Prompted
from triune.data.streaming import KeptRows, ShardedRows, Stream, first_rows, prompt_hash
from triune.data_settings import Slice, Streaming
from triune.errors import InputError
from triune.types import Example

REFUSED = ("start", "stop", "limit")  # they count prompts, of which a stream never sees all


def axis_stream(wanted: Slice, streaming: Streaming, axis: str, seed: int) -> ShardedRows:
    """The stream of an axis's training rows; the first rows of its shards are read.

    Raises InputError for keys of the slice that a stream cannot follow, and as `find_shards` and `ShardedRows.check`.
    """
    given = [key for key in REFUSED if getattr(wanted, key) != Slice.model_fields[key].default]
    if given:
        raise InputError(
            f"axes.{axis}.train has {', '.join(given)} beside streaming, which count prompts that a stream never sees "
            "together; leave them out (test rows may come from the same files: their prompts are not trained on)"
        )
    if wanted.source == "miniature":
        raise InputError(f"axes.{axis}: the source 'miniature' is made in memory; leave streaming out")
    stream = ShardedRows(
        axis,
        find_shards(wanted.source, config=wanted.config, split=wanted.split),
        wanted.format,
        streaming.buffer,
        seed,
        wanted.order == "shuffled",
        wanted.longest,
    )
    stream.check()
    return stream


def prompt_hashes(groups: Iterable[Iterable[Prompted]]) -> tuple[str, ...]:
    """What a stream knows the prompts by that it must leave out."""
    return tuple(sorted({prompt_hash(item.prompt) for items in groups for item in items}))


def mixture(train: Mapping[str, list[Example]], streams: Mapping[str, ShardedRows], seed: int) -> Stream:
    """The axes' rows in turn, those in memory too, without an end. Raises InputError for an axis without data."""
    empty = [axis for axis, rows in train.items() if not rows and axis not in streams]
    if empty:
        raise InputError(f"axis {empty[0]!r} has no data; give it a source, or leave the axis out.")
    return Stream(
        tuple(streams[axis] if axis in streams else KeptRows(axis, tuple(train[axis]), seed) for axis in train)
    )


def beginnings(
    train: Mapping[str, list[Example]], streams: Mapping[str, ShardedRows], n: int
) -> dict[str, list[Example]]:
    """Each axis's rows in memory: of a stream its first `n`."""
    return {axis: first_rows(streams[axis], n) if axis in streams else rows for axis, rows in train.items()}


def described(stream: ShardedRows) -> dict[str, object]:
    """What a run's data folder says of a stream, in place of its rows."""
    own = {"shards": stream.shards.names, "identity": stream.identity, "format": stream.format}
    return {**own, "buffer": stream.buffer, "tested_prompts": len(stream.tested)}
