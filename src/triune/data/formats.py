"""Supervised data: rows -> Example, by published formats and by two for a user's own data."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from triune.data.fields import Row, index_field, text_field, text_list, truth_field
from triune.data.nearest import unknown_name
from triune.data.reading import Format, Reading, parse_rows, row_items
from triune.data.sources import read_rows
from triune.errors import InputError
from triune.types import Example


def read_examples(
    source: str | Path, format: str, axis: str, *, config: str | None = None, split: str | None = None
) -> Reading[Example]:
    """The examples of `source` (see `read_rows`) in `format`, a row of FORMATS, as data of `axis`.

    Published sets hold a few empty answers, and BeaverTails also unsafe ones: `Reading.dropped` counts what
    was left out, by reason. Texts are kept as they are, white space included.

    Raises InputError for an unknown format, a missing field, a field of another type, and, in the formats
    "rows" and "messages", an empty prompt or answer; each names the row.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    rows = read_rows(source, config=config, split=split)
    reading = parse_rows(rows, str(source), format, FORMATS[format], _flaw)
    return replace(reading, items=tuple(_named(item, format, axis) for item in reading.items))


def row_examples(row: Row, format: str, axis: str, dropped: Counter[str]) -> list[Example]:
    """The examples of one row, as `read_examples` has them; what is left out is counted in `dropped`.

    Raises InputError as `read_examples`.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    return [_named(item, format, axis) for item in row_items(row, format, FORMATS[format], _flaw, dropped)]


def _named(item: Example, format: str, axis: str) -> Example:
    return replace(item, axis=axis, source=item.source or format)


def _flaw(example: Example) -> str | None:
    if not example.prompt.strip():
        return "empty prompt"
    return None if example.response.strip() else "empty answer"


def _example(prompt: str, response: str, kind: str = "", source: str = "") -> Example:
    return Example(axis="", prompt=prompt, response=response, source=source, kind=kind)


def _alpaca(row: Row) -> list[Example]:
    """An instruction; an input, where there is one, joined to it by a blank line."""
    instruction, given = text_field(row, "instruction"), text_field(row, "input")
    prompt = f"{instruction}\n\n{given}" if given.strip() else instruction
    return [_example(prompt, text_field(row, "output"))]


def _beavertails(row: Row) -> list[Example]:
    """The answer if it is labelled safe."""
    if not truth_field(row, "is_safe"):
        return []
    return [_example(text_field(row, "prompt"), text_field(row, "response"))]


def _safer_first(row: Row) -> list[Example]:
    """The first of two answers, the safer one by the file's order."""
    answers = text_list(row, "response")
    if len(answers) != 2:
        raise InputError(f"{row}: field 'response' has {len(answers)} answers; wanted two, the safer one first.")
    return [_example(text_field(row, "prompt"), answers[0])]


def _safe_of_two(row: Row) -> list[Example]:
    """The safe answer; of two safe ones the safer; of two unsafe ones none."""
    safe = [truth_field(row, f"is_response_{index}_safe") for index in (0, 1)]
    if not any(safe):
        return []
    index = index_field(row, "safer_response_id", 2) if all(safe) else safe.index(True)
    return [_example(text_field(row, "prompt"), text_field(row, f"response_{index}"))]


def _truthfulqa_csv(row: Row) -> list[Example]:
    """One example for each correct answer. Answers stand between semicolons; seven rows also end in one."""
    question = text_field(row, "Question").strip()
    answers = [answer.strip() for answer in text_field(row, "Correct Answers").split(";")]
    return [_example(question, answer, text_field(row, "Category")) for answer in answers if answer]


def _truthfulqa_hub(row: Row) -> list[Example]:
    """One example for each correct answer."""
    question = text_field(row, "question").strip()
    answers = [answer.strip() for answer in text_list(row, "correct_answers")]
    return [_example(question, answer, text_field(row, "category")) for answer in answers if answer]


def _own_rows(row: Row) -> list[Example]:
    """A user's own prompt and response; kind and source may be there."""
    kind, source = text_field(row, "kind"), text_field(row, "source")
    return [_example(text_field(row, "prompt"), text_field(row, "response"), kind, source)]


def _own_messages(row: Row) -> list[Example]:
    """The last user turn and the answer to it; where earlier turns are left out, the kind is "multi-turn"."""
    turns = row.values["messages"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InputError(f"{row}: field 'messages' wants a list of objects with role and content, got {turns!r:.60}.")
    roles = [turn.get("role") for turn in turns]
    last = max((index for index, role in enumerate(roles) if role == "user"), default=len(roles))
    if roles[last + 1 : last + 2] != ["assistant"]:
        raise InputError(f"{row}: wanted a user's turn and the assistant's answer to it, got the roles {roles}.")
    prompt, response = (text_field(Row(turn, row.number, row.source), "content") for turn in turns[last : last + 2])
    kind = text_field(row, "kind") or ("multi-turn" if roles.count("user") > 1 else "")
    return [_example(prompt, response, kind)]


FORMATS: dict[str, Format[Example]] = {
    # tatsu-lab/alpaca and what is written like it (Safety-Tuned LLaMAs); "input" may be absent.
    "alpaca": Format({("instruction", "output"): _alpaca}, published=True),
    "beavertails": Format(
        {("prompt", "response", "is_safe"): _beavertails}, published=True, skipped="answer labelled unsafe"
    ),
    "pku_saferlhf": Format(
        {
            (
                "prompt",
                "response_0",
                "response_1",
                "is_response_0_safe",
                "is_response_1_safe",
                "safer_response_id",
            ): _safe_of_two,
            ("prompt", "response"): _safer_first,
        },
        published=True,
        skipped="both answers labelled unsafe",
    ),
    "truthfulqa": Format(
        {
            ("Question", "Best Answer", "Correct Answers"): _truthfulqa_csv,
            ("question", "best_answer", "correct_answers"): _truthfulqa_hub,
        },
        published=True,
        skipped="no correct answer",
    ),
    "rows": Format({("prompt", "response"): _own_rows}, published=False),
    "messages": Format({("messages",): _own_messages}, published=False),
}
