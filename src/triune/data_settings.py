"""Where a run's rows come from, and what its models are asked: slices of sources, axes, benchmarks."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from triune.settings import Count, Fraction, Settings

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # of an axis, a variant, a benchmark: files are named after it


class WorldSettings(Settings):
    """Which miniature world: how large, and how far its axes conflict. What is true in it is drawn from the seed."""

    size: Literal["small", "large"] = Field("small", description="a row of triune.data.miniature.sizes.SIZES")
    sharing: Fraction = Field(
        1.0, description="part of the phrasings that the axes which could conflict in them ask in the same words"
    )


class Slice(Settings):
    """Rows of one source: a file, a folder or a hub data set; whole prompts, from one fraction to another."""

    source: str = Field(description="local path or hub name; 'miniature' for the built-in world")
    format: str = Field("rows", description="how its rows are read, a name of triune.data.formats.FORMATS")
    config: str | None = Field(None, description="configuration of a hub data set")
    split: str | None = Field(None, description="split of a hub data set")
    order: Literal["shuffled", "file"] = Field("shuffled", description="order of the prompts before cutting")
    start: Fraction = Field(0.0, description="first prompt taken, as a fraction of the distinct prompts")
    stop: Fraction = Field(1.0, description="where to stop")
    limit: Count | None = Field(None, description="at most this many rows")
    longest: Count | None = Field(None, description="drop rows whose prompt and response have more characters")

    @model_validator(mode="after")
    def _ordered(self) -> "Slice":
        if self.start >= self.stop:
            raise ValueError(f"start {self.start} is not below stop {self.stop}, so the slice is empty")
        return self


class Streaming(Settings):
    """Training rows that are read while they are trained on, and never all in memory."""

    buffer: Count = Field(10_000, description="rows that are shuffled together, the most of an axis in memory")


class AxisData(Settings):
    """What one axis is trained on, and what its likelihood is measured on."""

    train: Slice
    streaming: Streaming | None = Field(
        None, description="stream the training rows (true has the defaults); fit.steps must be set then"
    )
    test: Slice | None = None
    calibration: Slice | None = Field(
        None, description="held-out rows that the routing is calibrated on; never tested"
    )
    shifted: Slice | None = Field(
        None,
        description="prompts of another source that the axis should still get (format: a name of "
        "triune.data.shifted.PROMPT_FORMATS); routing is measured on them",
    )
    expert: str | None = Field(
        None, description="an expert made elsewhere: the folder of an adapter or of a full fine-tune; then not trained"
    )

    @field_validator("streaming", mode="before")
    @classmethod
    def _switched(cls, value: object) -> object:
        return {True: {}, False: None}[value] if isinstance(value, bool) else value


class Likelihood(Settings):
    """Answer negative log-likelihood per token on every axis's test slice."""

    kind: Literal["nll"]


class PreferenceAccuracy(Settings):
    """How often the better answer is the more likely one, by mean log-probability per token."""

    kind: Literal["preference"]
    data: Slice


class MultipleChoice(Settings):
    """MC1 and MC2 of TruthfulQA by likelihood; `prompts` says which questions (by text) are test questions."""

    kind: Literal["multiple_choice"]
    data: Slice
    prompts: Slice | None = None


class MiniatureTests(Settings):
    """The miniature world's exact tests."""

    kind: Literal["miniature"]
    limit: Count | None = Field(None, description="at most this many prompts a test")


class Generative(Settings):
    """Prompts that every model answers, and judges that decide what the answers are worth."""

    kind: Literal["generative"]
    benchmark: Literal["alpaca_eval", "beavertails", "truthfulqa", "xstest", "honeset", "selfaware", "local"]
    data: Slice
    judge: str | dict[str, str] = Field(description="a name of `judges`, or one for each role")
    name: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="in files and before the scores' names; needed where one stands twice"
    )
    new_tokens: Count | None = Field(None, description="longest answer; the recipe's by default")
    limit: Count | None = Field(None, description="at most this many prompts, spread evenly over the slice")

    @property
    def called(self) -> str:
        """Its name in files and tables."""
        return self.name or self.benchmark


Benchmark = Annotated[
    Likelihood | PreferenceAccuracy | MultipleChoice | MiniatureTests | Generative, Field(discriminator="kind")
]


def generative(benchmarks: Sequence[Benchmark]) -> tuple[Generative, ...]:
    """Those whose answers judges decide."""
    return tuple(benchmark for benchmark in benchmarks if isinstance(benchmark, Generative))


def check_judged(benchmarks: Sequence[Generative], judges: Mapping[str, object]) -> None:
    """Raise ValueError for benchmarks of one name, for judges that are not there, and for some that nobody asks."""
    names = [benchmark.called for benchmark in benchmarks]
    odd = [name for name in names if not NAME.fullmatch(name)]
    if odd:
        raise ValueError(f"evaluate names {odd}; a name is letters, digits, - and _ (files are named after it)")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"evaluate has {twice} more than once; give all but one of them a name of its own (name: …)")
    asked = {
        benchmark.called: [benchmark.judge] if isinstance(benchmark.judge, str) else list(benchmark.judge.values())
        for benchmark in benchmarks
    }
    for name, wanted in asked.items():
        unknown = [judge for judge in wanted if judge not in judges]
        if unknown:
            raise ValueError(f"{name} asks the judges {unknown}; judges has {list(judges) or 'none'}: add them there")
    idle = [judge for judge in judges if not any(judge in wanted for wanted in asked.values())]
    if idle:
        raise ValueError(f"judges has {idle}, which no benchmark asks; give them to one (judge: …), or leave them out")
