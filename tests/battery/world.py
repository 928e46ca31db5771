"""The world that a battery's rows spoil, the ways to spoil it, and the command line that must notice."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.report.fake_run import fake_files, write_folder
from tests.spoiling import edit, fuse, make_world, poison

BATTERY = Path(__file__).with_name("battery.yaml")
RECIPE = """\
base: {path: base, template: plain, max_length: 32}
axes:
  helpful: {train: {source: helpful.jsonl, stop: 0.5}, test: {source: helpful.jsonl, start: 0.5}}
  honest: {train: {source: honest.jsonl, stop: 0.5}, test: {source: honest.jsonl, start: 0.5}}
compare: [base, experts, average, fused]
evaluate: [{kind: nll}]
"""
SHORT = {
    "$BASE": "--base base",
    "$EXPERTS": "--expert helpful=helpful --expert honest=honest",
    "$DATA": "--data helpful=helpful.jsonl --data honest=honest.jsonl",
    "$TEXT": "--template plain --max-length 32",
    "$OUT": "--out out",
}


@dataclass(frozen=True)
class Row:
    """One bad input: the verb, what is bad, how the sound world is spoiled, the words after the verb, what is said."""

    verb: str
    bad: str
    says: str
    words: str
    spoil: Sequence[Sequence[Any]] = ()
    code: int = 2

    @property
    def arguments(self) -> list[str]:
        """The command line after `triune`."""
        text = self.words
        for short, long in SHORT.items():
            text = text.replace(short, long)
        return [*self.verb.split(), *shlex.split(text)]


def read_battery(path: Path = BATTERY) -> list[Row]:
    """All rows; each verb has its own."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [Row(verb, **row) for verb, rows in content.items() for row in rows]


def make_battery_world(world: Path, monkeypatch: Any) -> None:
    """base/, helpful/, honest/, their data, recipe.yaml, fused/ of them, run/ with made-up numbers."""
    make_world(world)
    (world / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(world)
    fuse()
    Path("out").rename("fused")
    write_folder(world / "run", fake_files())
    Path("recipe-of-seeds.yaml").write_text(RECIPE + "seeds: [0, 1]\n")


def _write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def _bytes(path: str, hexadecimal: str) -> None:
    Path(path).write_bytes(bytes.fromhex(hexadecimal))


def _line(path: str, number: int, text: str) -> None:
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    lines[number - 1] = text
    Path(path).write_text("\n".join(lines), encoding="utf-8")


def _cut(path: str, n_bytes: int) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:n_bytes])


def _edit(path: str, changes: dict[str, Any]) -> None:
    edit(path, **changes)


def _forget(path: str, key: str) -> None:
    found = json.loads(Path(path).read_text())
    del found[key]
    Path(path).write_text(json.dumps(found))


def _replace(path: str, old: str, new: str) -> None:
    text = Path(path).read_text(encoding="utf-8")
    assert old in text
    Path(path).write_text(text.replace(old, new), encoding="utf-8")


def _folder(path: str) -> None:
    Path(path).mkdir(parents=True)


SPOIL: dict[str, Callable[..., object]] = {
    "write": _write,
    "bytes": _bytes,
    "line": _line,
    "cut": _cut,
    "edit": _edit,
    "forget": _forget,
    "replace": _replace,
    "folder": _folder,
    "remove": lambda path: Path(path).unlink(),
    "move": lambda here, there: Path(here).rename(there),
    "link": lambda path, to: Path(path).symlink_to(to),
    "nan": poison,
}
