"""Answers on disk while not all of them are there: one line a batch, appended when it is whole."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triune.errors import TriuneError
from triune.parsing import parse_json
from triune.record import write_text

FORMAT = 1
NAME = "samples.partial.jsonl"


@dataclass(frozen=True, slots=True)
class Text:
    """An answer and how it ended (see triune.models.generation)."""

    text: str
    ended: str


class KeptAnswers:
    """The answers so far, by prompt number, in memory (`found`) and, where there is a path, in its file.

    The file's first line says whose answers they are; every other one holds a batch, so that a line that a kill cut in
    two loses its whole batch, and the next call asks the same batches. `batch_size` is the one to go on with: smaller
    than the one asked for where memory was short.
    """

    def __init__(self, path: Path | None, job: str, batch_size: int) -> None:
        self.path, self.batch_size = path, batch_size
        self.found: dict[int, Text] = {}
        self._head = {"format": FORMAT, "job": job, "batch_size": batch_size}

    def read(self, say: Callable[[str], None], parts: Iterable[Path] = ()) -> None:
        """Take over what an interrupted call left, and make the file whole; another job's is replaced, and said.

        `parts` are files in which others kept answers of the same job; they are only read.
        """
        if self.path is None:
            return
        for part in parts:
            self._lines(part, say)
        asked = len(self.found)
        lines = [json.dumps(self._head)]
        if self.path.is_file():
            lines += self._lines(self.path, say)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, "".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise self._refused(error) from error
        if len(self.found) > asked:
            say(f"  {len(self.found) - asked} answers were kept by an interrupted run; only the others are asked")

    def _lines(self, path: Path, say: Callable[[str], None]) -> list[str]:
        """The usable lines of a file, up to the first that is not."""
        lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")
        head, *rest = map(_parsed, lines)
        if head is None or head.get("job") != self._head["job"] or head.get("format") != FORMAT:
            say(f"  {path} has the answers of another model, other prompts or settings, and is not used")
            return []
        whole = []
        for line, batch in zip(lines[1:], rest, strict=True):
            answers = _answers(batch)
            if answers is None:
                break  # cut in two by a kill; nothing was appended after it
            self.found |= answers
            if head.get("batch_size") == self._head["batch_size"] and batch is not None:
                self.batch_size = min(self.batch_size, max(1, int(batch["batch_size"])))
            whole.append(line)
        return whole

    def add(self, answers: Mapping[int, Text]) -> None:
        """A batch's answers; on disk when this returns. Raises TriuneError where the disk refuses."""
        self.found |= answers
        if self.path is None:
            return
        rows = [{"number": number, "text": one.text, "ended": one.ended} for number, one in answers.items()]
        try:
            with self.path.open("a", encoding="utf-8", errors="surrogatepass") as file:
                # ASCII: a model may write half of a surrogate pair, which UTF-8 has no bytes for.
                file.write(json.dumps({"batch_size": self.batch_size, "answers": rows}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> TriuneError:
        return TriuneError(
            f"cannot keep answers in {self.path} ({error.strerror}); make room there, then the same command goes on "
            "from the last whole batch"
        )


def discard(path: Path) -> None:
    """Remove a file of kept answers, once they are where they belong."""
    path.unlink(missing_ok=True)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = parse_json(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _answers(batch: dict[str, Any] | None) -> dict[int, Text] | None:
    try:
        rows = batch["answers"] if batch is not None else None
        int(batch["batch_size"])  # type: ignore[index]
        return {int(row["number"]): Text(str(row["text"]), str(row["ended"])) for row in rows or ()} or None
    except (KeyError, TypeError, ValueError):
        return None
