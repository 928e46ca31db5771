"""What a run folder comes to, but for what no two runs have in common."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.folders import names
from triune.models.store import INDEX_FILE, hash_weights, load_tensors

# What says how long things took, or how much memory, and so differs from run to run.
MEASURED = {"timings.json", "models.json", "report.html", "report.md", "record.json", "latency.json"}


def weights(out: Path) -> dict[str, Any]:
    """The hash of every weight file below a run's folder, by its path; tensors, whose order in a file may differ."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*.safetensors")):
        name = path.relative_to(out).as_posix()
        if path.name == "model.safetensors" or (path.parent / INDEX_FILE).is_file():
            found[name] = hash_weights(path.parent)
        else:
            found[name] = {key: tensor.numpy().tobytes() for key, tensor in load_tensors(path).items()}
    return found


def numbers(out: Path) -> dict[str, object]:
    """What every other file says that does not say how long something took."""
    return {
        path.relative_to(out).as_posix(): _settled(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.suffix != ".safetensors" and path.name not in MEASURED
    }


def _settled(path: Path) -> object:
    """What a file says, without the order of a set and the time of a verdict; other files' bytes."""
    if path.name == "adapter_config.json":  # PEFT writes a set as a list, in the order of this process's hashes
        found = json.loads(path.read_text(encoding="utf-8"))
        return {**found, "target_modules": sorted(found["target_modules"])}
    if path.suffix == ".json":  # keys have no order; those of a curve that a checkpoint kept are sorted
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".sqlite":
        with closing(sqlite3.connect(path)) as connection:
            asked = "SELECT key, name, version, prompt, value, reason, payload, cost"
            return connection.execute(
                f"{asked} FROM verdicts JOIN judges ON judge = judges.id ORDER BY key"
            ).fetchall()
    return path.read_bytes()


def reported(out: Path) -> list[str]:
    """The tables of report.md whose numbers are scores: its rows without those of time and memory."""
    text = (out / "report.md").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if (line.startswith("|") and "%" in line) or "nats" in line]


def equal(out: Path, whole: Path) -> None:
    """Assert that a run ended as the one that nobody stopped, and left nothing beside."""
    assert names(out) == names(whole)
    assert weights(out) == weights(whole)
    found, wanted = numbers(out), numbers(whole)
    assert [name for name in wanted if found[name] != wanted[name]] == []
    assert {"scores.json", "scores.csv"} <= wanted.keys()
    assert reported(out) == reported(whole) != []
