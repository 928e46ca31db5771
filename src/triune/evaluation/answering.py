"""Answers to benchmark prompts: generated and saved before anything judges them; what is answered is not asked again.

With a `Keeping` every batch is appended to a file when it is there, and a second call after an interruption asks only
what that file does not have. The batches of both calls are the same, so that the answers are those of a call without
the interruption, bit for bit on the same machine and libraries; sampled ones too, because a prompt's random numbers
depend on (seed, its number) only.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from triune.baselines.subject import Respond
from triune.data.rows import write_rows
from triune.errors import TriuneError
from triune.evaluation.kept_answers import KeptAnswers, Text
from triune.models.generation import CUT, FAILED, NO_TOKENS, STOPPED, TOO_LONG, Decoding
from triune.parsing import read_json
from triune.progress import SILENT, Advance, Progress
from triune.record import digest, write_json
from triune.types import BenchmarkPrompt, Sample

UNANSWERED = {
    NO_TOKENS: "its prompt has no tokens",
    TOO_LONG: "its prompt fills the context",
    FAILED: "whoever was asked gave no answer",
}
FILE = "endings.json"  # beside samples.jsonl


@dataclass(frozen=True)
class Asking:
    """How prompts are asked: `decoding`, batches of at most `batch_size`, longest first by `length` of a prompt.

    keep: the file that answers are kept in while not all are there, None for nowhere; identity: what determines the
    answers beside prompts and decoding (the model); kept_by: files in which parts of the same job (`ask_part`) kept
    theirs.
    """

    decoding: Decoding
    batch_size: int
    length: Callable[[str], int] = len
    keep: Path | None = None
    identity: str = ""
    kept_by: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Answered:
    """One sample a prompt, in order, and how each ended (see triune.models.generation).

    The response of a sample whose ending is one of UNANSWERED is empty, and is no answer: nothing may judge it.
    """

    samples: list[Sample]
    endings: list[str]

    @property
    def unanswered(self) -> dict[int, str]:
        """Why there is no answer, by sample index."""
        return {i: UNANSWERED[ended] for i, ended in enumerate(self.endings) if ended in UNANSWERED}

    def write(self, folder: Path) -> list[Sample]:
        """Write samples.jsonl and `FILE`: how many answers ended how, and which prompts have none; the samples."""
        counts = Counter(self.endings)
        write_rows(folder / "samples.jsonl", self.samples)
        write_json(
            folder / FILE,
            {
                "counts": {ending: counts[ending] for ending in (STOPPED, CUT, *UNANSWERED)},
                "unanswered": [
                    {"index": i, "benchmark": self.samples[i].benchmark, "reason": reason}
                    for i, reason in self.unanswered.items()
                ],
            },
        )
        return self.samples


def read_unanswered(folder: Path) -> dict[int, str]:
    """Which samples of a model's folder are no answers, and why; none where the folder is older than that file."""
    path = folder / FILE
    if not path.is_file():
        return {}
    found = read_json(path)
    return {int(row["index"]): str(row["reason"]) for row in found["unanswered"]}


def answer(
    name: str,
    respond: Respond,
    prompts: Mapping[str, Sequence[BenchmarkPrompt]],
    asking: Asking,
    progress: Progress = SILENT,
) -> Answered:
    """One sample a prompt, in order; all benchmarks together in one sorted stream of batches.

    A batch that a GPU's memory does not hold is asked again in halves, and so is all that follows. How many answers
    were cut, and how many prompts have none, is said.

    Raises:
        InputError: as `respond`.
        TriuneError: one prompt alone does not fit in the GPU's memory, or the disk refuses.
    """
    rows = [row for found in prompts.values() for row in found]
    answers = _ask_all(name, respond, rows, asking, progress)
    done = Answered(
        [Sample(name, row.benchmark, i, row.prompt, answers[i].text) for i, row in enumerate(rows)],
        [answers[i].ended for i in range(len(rows))],
    )
    _say(name, done, asking.decoding, progress)
    return done


def ask_part(
    name: str,
    respond: Respond,
    prompts: Mapping[str, Sequence[BenchmarkPrompt]],
    asking: Asking,
    part: tuple[int, int],
    progress: Progress = SILENT,
) -> None:
    """Ask part (i, n) of what `answer` asks, i from 0: every n-th of the same batches, kept in `asking.keep`.

    An `answer` with this file among its `kept_by` takes them over, so that the answers are those of one call, bit for
    bit on like machines: the batches are the same. Raises as `answer`.
    """
    rows = [row for found in prompts.values() for row in found]
    _ask_all(name, respond, rows, asking, progress, part)


def _ask_all(
    name: str,
    respond: Respond,
    rows: Sequence[BenchmarkPrompt],
    asking: Asking,
    progress: Progress,
    part: tuple[int, int] = (0, 1),
) -> dict[int, Text]:
    """The answers by the prompts' numbers, of a part's own batches."""
    texts = [row.prompt for row in rows]
    kept = KeptAnswers(asking.keep, _job(name, rows, asking), asking.batch_size)
    kept.read(progress.say, asking.kept_by)
    order = sorted(range(len(rows)), key=lambda index: -asking.length(texts[index]))
    own = [index for place, index in enumerate(order) if place // asking.batch_size % part[1] == part[0]]
    left = [index for index in own if index not in kept.found]
    with progress.task(f"answers of {name}", len(own)) as advance:
        advance(len(own) - len(left))
        watcher = _Lines(progress)
        while left:
            batch = left[: kept.batch_size]
            try:
                found = _ask(respond, texts, batch, asking.decoding, watcher)
            except torch.OutOfMemoryError:
                found = None
            if found is None:
                kept.batch_size = _halved(kept.batch_size, len(batch), progress)
                continue
            kept.add(found)
            left = left[len(batch) :]
            advance(len(batch))
    return kept.found


def _job(name: str, rows: Sequence[BenchmarkPrompt], asking: Asking) -> str:
    how = asking.decoding
    decoding = [how.max_new_tokens, how.temperature, how.top_p, how.seed, how.stop_at]
    return digest([asking.identity, name, decoding, [[row.benchmark, row.prompt] for row in rows]])


def _ask(
    respond: Respond, texts: Sequence[str], batch: Sequence[int], decoding: Decoding, progress: Progress
) -> dict[int, Text]:
    """The answers to one batch. Of several generations for one answer, the last one's ending is the answer's."""
    endings: dict[int, str] = {}
    told = replace(decoding, numbers=tuple(batch), heard=endings.__setitem__)
    said = respond([texts[index] for index in batch], told, len(batch), progress)
    return {
        # An answer that several models made may be one although the last of them could not read its prompt.
        index: Text(text, STOPPED if text and endings.get(index) in UNANSWERED else endings.get(index, STOPPED))
        for index, text in zip(batch, said, strict=True)
    }


def _halved(batch_size: int, asked: int, progress: Progress) -> int:
    torch.cuda.empty_cache()
    size = min(batch_size, asked) // 2
    if size < 1:
        raise TriuneError(
            "the GPU's memory does not hold one prompt with its answer; shorten prompts or new_tokens, or choose a "
            "smaller dtype; what is answered is kept, and the same command goes on from there"
        )
    progress.say(f"  out of GPU memory with {asked} prompts at once; going on with {size}")
    return size


def _say(name: str, done: Answered, decoding: Decoding, progress: Progress) -> None:
    n, counts = len(done.samples), Counter(done.endings)
    if counts[CUT]:
        progress.say(f"  {counts[CUT]} of {n} answers of {name} are cut at {decoding.max_new_tokens} new tokens")
    for ending, reason in UNANSWERED.items():
        if counts[ending]:
            progress.say(f"  {counts[ending]} of {n} prompts have no answer of {name}: {reason}")


class _Lines:
    """Passes on what is said, and shows no bar of its own for every batch."""

    def __init__(self, watcher: Progress) -> None:
        self.watcher = watcher

    def task(self, title: str, total: int) -> AbstractContextManager[Advance]:
        return SILENT.task(title, total)

    def say(self, text: str) -> None:
        self.watcher.say(text)
