"""How a step asks a model its prompts: with the recipe's limits, and answers kept through an interruption."""

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from triune.baselines.subject import Subject
from triune.data.templates import render
from triune.evaluation.answering import Answered, Asking, answer, ask_part
from triune.evaluation.kept_answers import NAME, discard
from triune.models.encoding import encode_prompt
from triune.models.generation import Decoding
from triune.pipeline.exam import Exam, load_prompts
from triune.pipeline.verbs import Context, checkpoint_place
from triune.record import Step
from triune.types import BenchmarkPrompt, Sample

ASKED = "asked-"  # begins the names of what parts of the job keep


def kept_answers(step: Step) -> Path:
    """Where a step keeps answers while it is not finished: with the checkpoints of one that trains."""
    return checkpoint_place(step) / NAME


def ask_as(
    context: Context, step: Step, tokenizer: PreTrainedTokenizerBase, *, new_tokens: int, batch_size: int
) -> Asking:
    """Greedy, at most `new_tokens`; prompts sorted by their tokens in the base's template."""

    def length(text: str) -> int:
        return len(encode_prompt(tokenizer, render(context.base.template, text, tokenizer)))

    decoding = Decoding(new_tokens, seed=context.seed)
    return Asking(decoding, batch_size, length, kept_answers(step), step.identity)


def ask_all(name: str, context: Context, step: Step, subject: Subject, exam: Exam) -> Answered:
    """Answers to all prompts, in their order: benchmarks with answers of one length in one stream of batches."""
    told: dict[str, list[tuple[Sample, str]]] = {benchmark: [] for benchmark in load_prompts(exam.data)}
    for length, asked in _by_length(exam).items():
        asking = ask_as(context, step, subject.tokenizer, new_tokens=length, batch_size=exam.batch_size)
        place = _kept(step, length, exam)
        asking = replace(asking, keep=place, kept_by=_kept_by(place))
        done = answer(name, subject.respond, asked, asking, context.progress)
        for sample, ended in zip(done.samples, done.endings, strict=True):
            told[sample.benchmark].append((sample, ended))
    rows = [row for own in told.values() for row in own]
    return Answered([replace(own, index=place) for place, (own, _) in enumerate(rows)], [ended for _, ended in rows])


def has_batches(exam: Exam, part: tuple[int, int]) -> bool:
    """Whether anything is left to ask for part (i, n)."""
    return any(sum(map(len, asked.values())) > part[0] * exam.batch_size for asked in _by_length(exam).values())


def ask_some(name: str, context: Context, step: Step, subject: Subject, exam: Exam, part: tuple[int, int]) -> None:
    """Ask part (i, n) of what `ask_all` asks, and keep the answers where that finds them."""
    for length, asked in _by_length(exam).items():
        asking = ask_as(context, step, subject.tokenizer, new_tokens=length, batch_size=exam.batch_size)
        place = _kept(step, length, exam)
        own = place.with_name(f"{ASKED}{part[0]}-of-{part[1]}.{place.name}")
        ask_part(name, subject.respond, asked, replace(asking, keep=own), part, context.progress)


def discard_kept(step: Step, exam: Exam) -> None:
    """Remove what `ask_all` and `ask_some` kept, once the step has its answers."""
    for length in {exam.new_tokens, *exam.lengths.values()}:
        place = _kept(step, length, exam)
        for path in (*_kept_by(place), place):
            discard(path)


def _by_length(exam: Exam) -> dict[int, dict[str, list[BenchmarkPrompt]]]:
    """The prompts of all benchmarks whose answers may be so long, by that length."""
    found: dict[int, dict[str, list[BenchmarkPrompt]]] = {}
    for benchmark, rows in load_prompts(exam.data).items():
        found.setdefault(exam.lengths.get(benchmark, exam.new_tokens), {})[benchmark] = rows
    return found


def _kept_by(place: Path) -> tuple[Path, ...]:
    """The files in which parts kept answers that belong to this one."""
    return tuple(sorted(place.parent.glob(f"{ASKED}*.{place.name}")))


def _kept(step: Step, length: int, exam: Exam) -> Path:
    """Where answers of this length are kept while not all are there."""
    place = kept_answers(step)
    return place if length == exam.new_tokens else place.with_name(f"{length}-{place.name}")
