"""What every model of a table is asked, and where a run keeps what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triune.data.rows import load_rows
from triune.data_settings import Generative, generative
from triune.evaluation import scoring
from triune.judge_settings import JudgeSettings
from triune.pipeline.judge_labels import LabelSet
from triune.recipe import Recipe
from triune.types import BenchmarkPrompt

CACHE = "verdicts.sqlite"  # in the run's folder
VERDICTS = "verdicts"  # the step's folder


@dataclass(frozen=True)
class Exam:
    """What every model of a table is asked: the prepared data, how it is asked, and who judges the answers.

    labels: the labelled answers that judges are measured on, where they were read before; None: the step reads them.
    """

    data: Path
    batch_size: int = 64
    new_tokens: int = 64
    benchmarks: tuple[Generative, ...] = ()
    judges: Mapping[str, JudgeSettings] = field(default_factory=dict)
    labels: Mapping[str, LabelSet] | None = None

    @property
    def lengths(self) -> dict[str, int]:
        """The longest answer of each benchmark that has its own."""
        return {own.called: own.new_tokens for own in self.benchmarks if own.new_tokens is not None}

    @property
    def limits(self) -> dict[str, Any]:
        """How long answers may be, for a step's record; `lengths` only where a benchmark has its own."""
        return {"new_tokens": self.new_tokens, **({"lengths": self.lengths} if self.lengths else {})}

    @property
    def judging(self) -> dict[str, Any]:
        """What of it decides scores beside the data, for a step's record; nothing without judged benchmarks."""
        return {"benchmarks": [own.model_dump() for own in self.benchmarks]} if self.benchmarks else {}


def exam_of(recipe: Recipe, out: Path, labels: Mapping[str, LabelSet] | None = None) -> Exam:
    """The exam of a recipe's run under `out`; `labels` as `check_judging` read them."""
    benchmarks = generative(recipe.evaluate)
    return Exam(out / "data", recipe.batch_size, recipe.new_tokens, benchmarks, recipe.judges, labels)


def samples_folder(out: Path, name: str) -> Path:
    """Where a run keeps what `observe` saved of a model ("expert:helpful" in samples/expert-helpful)."""
    return out / "samples" / name.replace(":", "-")


def costs_folder(out: Path, name: str) -> Path:
    """Where a run keeps what `measure_cost` measured of a model."""
    return out / "costs" / name.replace(":", "-")


def load_prompts(data: Path) -> dict[str, list[BenchmarkPrompt]]:
    """All prompts of a data folder by benchmark: the miniature world's tests in their usual order, then the others."""
    there = sorted(path.name.removeprefix("prompts.").removesuffix(".jsonl") for path in data.glob("prompts.*.jsonl"))
    exact = [name for name in scoring.GENERATIVE if name in there]
    names = [*exact, *(name for name in there if name not in exact)]
    return {name: load_rows(data / f"prompts.{name}.jsonl", BenchmarkPrompt) for name in names}


def exact_prompts(prompts: Mapping[str, list[BenchmarkPrompt]]) -> dict[str, list[BenchmarkPrompt]]:
    """Those of the miniature world's tests, which rules decide."""
    return {name: rows for name, rows in prompts.items() if name in scoring.GENERATIVE}
