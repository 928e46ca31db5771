"""Memory and speed of streamed rows, and what the library's own shuffle and split would do in their place.

    python -m benchmarks.streaming --json docs/results/streaming.json

Shards of made-up rows are written below --place and deleted afterwards. Each reading runs in a process of its own;
"growth" is how far the kernel's high-water mark of its memory (VmHWM) rises above what the imports took. "seconds" are
of the process's own CPU time.
"""

import argparse
import gzip
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

BATCH = 32
BUFFER = 1000


def write_shards(place: Path, kind: str, n_shards: int, n_rows: int) -> None:
    """`n_shards` files of `n_rows` rows of about 1,000 bytes."""
    import pyarrow
    from pyarrow import parquet

    words = [f"{n:x}" for n in range(4096)]
    rng = random.Random(0)
    for shard in range(n_shards):
        rows = [
            {
                "prompt": f"{shard * n_rows + n} " + " ".join(rng.choices(words, k=120)),
                "response": " ".join(rng.choices(words, k=120)),
            }
            for n in range(n_rows)
        ]
        path = place / f"train-{shard:05}-of-{n_shards:05}.{kind}"
        if kind == "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=5000)
        else:
            text = "".join(json.dumps(row) + "\n" for row in rows).encode()
            path.write_bytes(gzip.compress(text, 1) if kind.endswith(".gz") else text)


def streamed(place: Path) -> Iterator[Any]:
    """One epoch of the stream."""
    from triune.data.streamed import axis_stream
    from triune.data_settings import Slice, Streaming

    stream = axis_stream(Slice(source=str(place)), Streaming(buffer=BUFFER), "helpful", 0)
    for block in stream.blocks():
        if block.place.epoch:
            return
        yield from block.examples


def whole(place: Path) -> Iterator[Any]:
    """The same rows by the readers of whole files."""
    from triune.data.formats import read_examples

    found = [read_examples(path, "rows", "helpful").items for path in sorted(place.iterdir())]
    yield from (row for rows in found for row in rows)


def library(place: Path) -> Iterator[Any]:
    """`datasets` with its shuffle buffer."""
    from datasets import load_dataset

    kind = "parquet" if any(place.glob("*.parquet")) else "json"
    found = load_dataset(kind, data_files=f"{place}/*", split="train", streaming=True)
    yield from found.shuffle(seed=0, buffer_size=BUFFER)


READERS: dict[str, Callable[[Path], Iterator[Any]]] = {"streamed": streamed, "whole": whole, "library": library}


def peak() -> int:
    """The high-water mark of this process's memory, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def measure(reader: str, place: Path) -> dict[str, Any]:
    """In a process of its own: read everything once."""
    next(islice(READERS[reader](place / "warm"), 1))
    before, begin = peak(), time.process_time()
    n = sum(1 for _ in READERS[reader](place / "rows"))
    seconds = time.process_time() - begin
    return {"rows": n, "growth": peak() - before, "seconds": round(seconds, 3), "rows_per_second": round(n / seconds)}


def library_order(place: Path, n_processes: int = 2) -> dict[str, Any]:
    """How many batches of several processes are those of one, and how many rows a stop in the middle loses."""
    from datasets import load_dataset
    from datasets.distributed import split_dataset_by_node

    def opened() -> Any:
        return load_dataset("json", data_files=f"{place}/*", split="train", streaming=True)

    def order(found: Any) -> list[str]:
        return [row["prompt"] for row in found.shuffle(seed=0, buffer_size=BUFFER)]

    one, own = order(opened()), BATCH // n_processes
    parts = [order(split_dataset_by_node(opened(), rank, n_processes)) for rank in range(n_processes)]
    alone = [set(one[i : i + BATCH]) for i in range(0, len(one), BATCH)]
    shared = [set().union(*(part[i : i + own] for part in parts)) for i in range(0, len(parts[0]), own)]
    stopped = opened().shuffle(seed=0, buffer_size=BUFFER)
    seen = [row["prompt"] for row in islice(stopped, len(one) // 2)]
    again = opened().shuffle(seed=0, buffer_size=BUFFER)
    again.load_state_dict(stopped.state_dict())
    rest = [row["prompt"] for row in again]
    return {
        "batches": len(alone),
        "same_batches": sum(a == b for a, b in zip(alone, shared, strict=False)),
        "rows": len(one),
        "lost_by_a_stop": len(set(one) - set(seen) - set(rest)),
    }


def resumed(place: Path) -> dict[str, Any]:
    """Seconds to go on from the middle by a mark, beside those of reading up to there again; and of hashing."""
    from triune.data.streamed import axis_stream
    from triune.data_settings import Slice, Streaming

    stream = axis_stream(Slice(source=str(place)), Streaming(buffer=BUFFER), "helpful", 0)
    blocks = list(islice(stream.blocks(), 60))
    middle = blocks[len(blocks) // 2]
    times = []
    for begin, n in ((middle.place, 1), (type(middle.place)(), len(blocks) // 2 + 1)):
        start = time.process_time()
        last = list(islice(stream.blocks(begin), n))[-1]
        times.append(round(time.process_time() - start, 3))
        if last != middle:
            raise SystemExit("the rows after a stop are others")
    start = time.process_time()
    identity = stream.identity
    hashed = time.process_time() - start
    size = sum(path.stat().st_size for path in place.iterdir())
    found = {"mark_seconds": times[0], "read_again_seconds": times[1], "identity": identity[:8]}
    return {**found, "hash_megabytes_per_second": round(size / hashed / 1e6)}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--place", type=Path)
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--rows", type=int, default=5000, help="of a shard")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], Path(given.one[1]))))
        return
    found: dict[str, Any] = {"shards": given.shards, "rows": given.rows, "buffer": BUFFER, "readings": []}
    with tempfile.TemporaryDirectory(dir=given.place) as scratch:
        for kind in ("jsonl", "jsonl.gz", "parquet"):
            place = Path(scratch) / kind
            for name, n_shards, n_rows in (("warm", 1, 2), ("rows", given.shards, given.rows)):
                (place / name).mkdir(parents=True)
                write_shards(place / name, kind, n_shards, n_rows)
            size = sum(path.stat().st_size for path in (place / "rows").iterdir())
            for reader in READERS:
                command = [sys.executable, "-m", "benchmarks.streaming", "--one", reader, str(place)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                own = json.loads(done.stdout.splitlines()[-1])
                found["readings"].append({"kind": kind, "bytes": size, "reader": reader, **own})
                print(found["readings"][-1], flush=True)
            if kind == "jsonl":
                found["library_order"] = library_order(place / "rows")
                found["resumed"] = resumed(place / "rows")
                print(found["library_order"], found["resumed"], flush=True)
            shutil.rmtree(place)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
