"""Every saved answer of a run with what judges said of it: samples.jsonl, verdicts.jsonl, or samples.json alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from triune.data.rows import load_rows
from triune.errors import InputError
from triune.parsing import parse_json
from triune.report import fields
from triune.report.compare_run import Answer, Said
from triune.report.run import SideBySide
from triune.types import BenchmarkPrompt, Better, Sample

VERDICTS = "verdicts.jsonl"
WAY_OUT = "score the run again (`triune run`), so that its files belong together"
Place = tuple[str, str, int]  # model, benchmark, index
Directions = Mapping[tuple[str, str], Better]  # (model, score) -> the side that is better


def samples_path(folder: Path, model: str) -> Path:
    """Where a run keeps a model's answers."""
    return folder / "samples" / model.replace(":", "-") / "samples.jsonl"


def load_answers(
    folder: Path, directions: Directions, shown: Sequence[SideBySide]
) -> tuple[Mapping[str, tuple[Answer, ...]], bool]:
    """Every model's answers in order, and whether each was judged one by one.

    `shown` is samples.json: it has the verdicts on a few answers of runs older than verdicts.jsonl, and all there is
    of runs that kept no samples.

    Raises InputError, naming file and line, for a line that is no sample or verdict, two of one kind, and a verdict
    on a sample or a score that the run does not have.
    """
    models = list(dict.fromkeys(model for model, _ in directions))
    samples = {model: _samples(folder, model) for model in models}
    path = folder / VERDICTS
    if not path.is_file():
        if not any(samples.values()):
            return _shown_answers(shown), False
        return _marked(samples, shown, _categories(folder, samples)), False
    said = _verdicts(path, samples, directions)
    categories = _categories(folder, samples)
    return {
        model: tuple(_answer(row, tuple(said.get((model, row.benchmark, row.index), ())), categories) for row in rows)
        for model, rows in samples.items()
    }, True


def _answer(row: Sample, said: tuple[Said, ...], categories: Mapping[tuple[str, str], str]) -> Answer:
    return Answer(row.benchmark, row.prompt, row.response, said, categories.get((row.benchmark, row.prompt), ""))


def _samples(folder: Path, model: str) -> list[Sample]:
    path = samples_path(folder, model)
    rows = load_rows(path, Sample) if path.is_file() else []
    seen = set()
    for row in rows:
        if (row.benchmark, row.index) in seen:
            raise InputError(f"{path} has sample {row.index} of {row.benchmark!r} twice; {WAY_OUT}.")
        seen.add((row.benchmark, row.index))
    return rows


def _categories(folder: Path, samples: Mapping[str, Sequence[Sample]]) -> Mapping[tuple[str, str], str]:
    """(benchmark, prompt) -> the prompt's category, of the benchmarks whose prompts the run kept."""
    benchmarks = dict.fromkeys(row.benchmark for rows in samples.values() for row in rows)
    paths = {name: folder / "data" / f"prompts.{name}.jsonl" for name in benchmarks if Path(name).name == name}
    return {
        (name, row.prompt): row.kind
        for name, path in paths.items()
        if path.is_file()
        for row in load_rows(path, BenchmarkPrompt)
    }


def _verdicts(
    path: Path, samples: Mapping[str, Sequence[Sample]], directions: Directions
) -> Mapping[Place, Sequence[Said]]:
    found: dict[Place, list[Said]] = {
        (model, row.benchmark, row.index): [] for model, rows in samples.items() for row in rows
    }
    for place, row in _lines(path):
        model, score = fields.text(row, "model", place), fields.text(row, "score", place)
        if (model, score) not in directions:
            raise InputError(f"{place} is of {score!r} of {model!r}, which scores.json does not have; {WAY_OUT}.")
        key = (model, fields.text(row, "benchmark", place), fields.whole(row, "index", place))
        if key not in found:
            raise InputError(
                f"{place} is on sample {key[2]} of {key[1]!r}, which is not in "
                f"{samples_path(path.parent, model)}; {WAY_OUT}."
            )
        if any(said.score == score for said in found[key]):
            raise InputError(f"{place} is a second verdict of {score!r} on sample {key[2]} of {model!r}; {WAY_OUT}.")
        value = fields.number(row, "value", place)
        if not (math.isnan(value) or 0 <= value <= 1):
            raise fields.fail(f"value in {place}", value, "0 to 1, or null where the judge abstained")
        judge, reason = (fields.text(row, name, place, default="") for name in ("judge", "reason"))
        found[key].append(Said(score, judge, directions[model, score], value, reason))
    return found


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """The rows of a file of JSON lines, each with its place."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); {WAY_OUT}.") from error
    # Not splitlines: it would also break at the line separators that a text may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{path}:{number}"
            try:
                row = parse_json(line)
            except ValueError as error:
                raise InputError(f"{place} is not JSON ({error}); {WAY_OUT}.") from error
            yield place, fields.mapping(row, place)


def _shown_answers(shown: Sequence[SideBySide]) -> Mapping[str, tuple[Answer, ...]]:
    models = dict.fromkeys(model for row in shown for model in row.answers)
    return {
        model: tuple(
            Answer(row.benchmark, row.prompt, row.answers[model], _mark(row, model))
            for row in shown
            if model in row.answers
        )
        for model in models
    }


def _marked(
    samples: Mapping[str, Sequence[Sample]], shown: Sequence[SideBySide], categories: Mapping[tuple[str, str], str]
) -> Mapping[str, tuple[Answer, ...]]:
    marks = {(row.benchmark, row.prompt): row for row in shown}
    found = {}
    for model, rows in samples.items():
        pairs = [(row, marks.get((row.benchmark, row.prompt))) for row in rows]
        found[model] = tuple(_answer(row, _mark(mark, model) if mark else (), categories) for row, mark in pairs)
    return found


def _mark(row: SideBySide, model: str) -> tuple[Said, ...]:
    """What samples.json says of an answer: right or wrong, whichever way the score runs."""
    if model not in row.verdicts:
        return ()
    right = row.verdicts[model]
    return (Said(row.benchmark, "", "higher", math.nan if right is None else float(right)),)
