"""The verbs that make models: train, merge, fuse, align. Each skips what is finished, and says so."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from triune.data.streaming import Rows, Stream
from triune.errors import InputError
from triune.experts import checkpoint, processes, task_vector
from triune.experts.adapters import stamp
from triune.experts.fitting import Job
from triune.experts.kinds import read_expert
from triune.experts.training import train_adapter
from triune.fusion import aligning
from triune.fusion.configuration import TriuneConfig
from triune.fusion.opening import check_base_hash, open_fused
from triune.fusion.weighting import write_card
from triune.launch_settings import Launch
from triune.models.encoding import Encoded, pad_id
from triune.models.hub import locate
from triune.models.loading import load_base, quiet
from triune.models.rows import encode_example, encode_examples
from triune.models.store import hash_weights
from triune.models.token_stream import TokenStream
from triune.pipeline.launching import launched
from triune.progress import SILENT, Progress
from triune.recipe import Align, Base, Fit, Train
from triune.recipe_file import validate
from triune.record import RECORD, Step, digest, finished, identify, lost, read_record, write_json, writing
from triune.types import Example

# Changes no result, or by rounding only: with or without it, a finished step stays finished.
KEEPING: Any = {"fit": {"save_every", "packing"}, "injection": {"fit": {"save_every", "packing"}}}
TOGETHER = ("train", "align")  # verbs that several processes share
PART = "part-"  # a step that trains several times keeps the checkpoints of each in a folder of its own
ONE_PROCESS = Launch()


@dataclass(frozen=True)
class Context:
    """What every verb shares: the base with its template and lengths, the seed, and who watches."""

    base: Base
    seed: int = 0
    progress: Progress = SILENT
    dry: bool = False  # only say what would be done
    launch: Launch = ONE_PROCESS  # changes results by rounding only, so that it is no part of a step's identity
    notice: Callable[[Step], None] | None = None  # told of each step on a dry run, in place of the watcher

    @property
    def folder(self) -> Path:
        """The base's local folder. Raises InputError where there is none and the hub cannot be reached."""
        return locate(str(self.base.path))

    def settings(self, **own: Any) -> dict[str, Any]:
        """What determines a step's result beside its inputs; the base's place does not."""
        # A step on float weights is what it was before there were others.
        plain = {"quantised"} if self.base.quantised is None else set()
        return {"base": self.base.model_dump(exclude={"path", "miniature", *plain}), "seed": self.seed, **own}

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The base model and its tokenizer."""
        return load_base(str(self.base.path), dtype=getattr(torch, self.base.dtype), quantised=self.base.quantised)

    def encode(self, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example]) -> list[Encoded]:
        """Token rows by the base's template and length; says how many do not fit."""
        encoded = encode_examples(tokenizer, rows, self.base.template, self.base.max_length)
        if len(encoded) < len(rows):
            self.progress.say(f"  {len(rows) - len(encoded)} of {len(rows)} rows do not fit and are left out")
        return encoded

    def job(self, title: str, rows: Sequence[Encoded], fit: Fit, tokenizer: PreTrainedTokenizerBase) -> Job:
        """A training job on these rows."""
        return Job(title, rows, fit, self.seed, pad_id(tokenizer))

    def training(self, title: str, rows: Rows, fit: Fit, tokenizer: PreTrainedTokenizerBase) -> Job:
        """A training job on these rows, encoded now or, of a stream, while it trains."""
        if not isinstance(rows, Stream):
            return self.job(title, self.encode(tokenizer, rows), fit, tokenizer)
        template, length = self.base.template, self.base.max_length
        tokens = TokenStream(rows, partial(encode_example, tokenizer, template=template, max_length=length), length)
        return Job(title, (), fit, self.seed, pad_id(tokenizer), stream=tokens)

    def account(self, job: Job) -> None:
        """Say what was left out of a stream; of rows in memory that was said before."""
        for line in job.stream.account() if job.stream is not None and processes.rank() == 0 else ():
            self.progress.say(line)


def identify_rows(rows: Rows) -> str:
    """The identity of examples, in memory or streamed."""
    return rows.identity if isinstance(rows, Stream) else digest([repr(row) for row in rows])


def context_of(folder: Path, seed: int = 0, progress: Progress = SILENT) -> Context:
    """The context that a fused model was made in, by its record. Raises InputError where it has none."""
    base = read_record(folder).get("settings", {}).get("base")
    if not isinstance(base, dict):
        raise InputError(f"{folder} was not made by `triune fuse` or `align`; give the folder of one of them")
    return Context(validate(Base, {**base, "path": str(folder)}, f"{folder / RECORD}, settings.base"), seed, progress)


@contextmanager
def unless_finished(step: Step, context: Context) -> Iterator[Path | None]:
    """The step's draft folder to write into, or None where its result is there already (or on a dry run).

    Of several processes the first one writes; the others get a folder that is thrown away, and go on when it is done.
    Raises InputError for a verb that trains nothing, which each of them would do anew.
    """
    if processes.world() > 1:
        with _together(step, context) as draft:
            yield draft
    elif context.dry and context.notice is not None:
        context.notice(step)
        yield None
    elif context.dry:
        context.progress.say(f"{step.folder}: {'finished' if finished(step) else 'to do'}")
        yield None
    elif finished(step):
        context.progress.say(f"{step.folder}: finished before, skipped")
        if _outdated(place := checkpoint_place(step), step):
            _discard(place)
        yield None
    else:
        with _alone(step, context) as draft:
            yield draft


@contextmanager
def _alone(step: Step, context: Context) -> Iterator[Path]:
    for damage in lost(step):
        context.progress.say(f"{step.folder}: {damage}; the step is done again")
    with writing(step, context.seed) as draft:
        yield draft
    _discard(checkpoint_place(step))


def _outdated(place: Path, step: Step) -> bool:
    """Whether checkpoints are older than the result: the process was killed after its last rename, before `_discard`.

    Younger ones are of a run with other settings, which may still be wanted. Folders do not count: one that a kill
    found half discarded was changed after the result.
    """
    times = [path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()]
    return place.is_dir() and all(time <= (step.folder / RECORD).stat().st_mtime_ns for time in times)


def _discard(place: Path) -> None:
    for own in (*place.glob(f"{PART}*"), place):
        checkpoint.discard(own)


@contextmanager
def _together(step: Step, context: Context) -> Iterator[Path | None]:
    if step.verb not in TOGETHER:
        processes.alone(f"triune {step.verb}")
    processes.join()
    first = processes.rank() == 0
    if processes.agreed(first and finished(step)):
        if first:
            context.progress.say(f"{step.folder}: finished before, skipped")
        yield None
        return
    with _alone(step, context) if first else _thrown_away() as draft:
        yield draft
    processes.wait()


@contextmanager
def _thrown_away() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="triune-") as scratch:
        yield Path(scratch)


def checkpoint_place(step: Step) -> Path:
    """Where a step that trains keeps its checkpoints: beside its draft, which is removed when the step fails."""
    final = Path(os.path.realpath(step.folder))
    return final.with_name(f".{final.name}.checkpoint")


def resumable(job: Job, step: Step, part: str = "") -> Job:
    """The job with the step's place for checkpoints; they are its own only while the step's identity is the same.

    `part` (PART and a number) is for a step of several jobs.
    """
    return replace(job, checkpoint=checkpoint_place(step) / part, identity=step.identity)


def train(context: Context, rows: Rows, out: Path, settings: Train, *, title: str = "") -> Path:
    """One LoRA expert from examples; writes a PEFT adapter folder with its loss curve.

    With `settings.injection` in two passes (see `triune.pipeline.injecting`). Raises InputError for a base that cannot
    be used, rows that do not fit, strange targets, an axis without a text to inject.
    """
    if settings.injection is not None:
        from triune.pipeline.injecting import train_injected

        if isinstance(rows, Stream):
            raise InputError("an injection's second pass needs its rows in memory; leave it or streaming out")
        return train_injected(context, rows, out, settings, title=title)
    inputs = {"base": identify(context.folder), "rows": identify_rows(rows)}
    # A plain expert's identity is what it was before there were injections.
    own = settings.model_dump(exclude={**KEEPING, "injection": True})
    step = Step(out, "train", context.settings(train=own), inputs)
    if launched(context, step, rows, settings, title=title):
        return out
    with unless_finished(step, context) as draft:
        if draft is not None:
            model, tokenizer = context.load()
            job = context.training(title or f"training {out.name}", rows, settings.fit, tokenizer)
            curve = train_adapter(model, settings.lora, resumable(job, step), draft, context.progress)
            context.account(job)
            stamp(draft, hash_weights(context.folder))
            write_json(draft / "curve.json", curve)
            write_json(draft / "spent.json", {"steps": len(curve), "examples": job.n_rows})
    return out


def expert_inputs(context: Context, experts: Mapping[str, Path]) -> dict[str, str]:
    # Prefixed: an expert may be called "base".
    return {"base": identify(context.folder), **{f"expert {n}": identify(place) for n, place in experts.items()}}


def read_experts(context: Context, experts: Mapping[str, Path]) -> list[task_vector.TaskVector]:
    """The experts' task vectors, of adapters and full fine-tunes alike; what is large is read when it is asked for.

    Raises InputError as `read_expert`, and for an adapter that was trained on other base weights.
    """
    vectors = [read_expert(folder, name, context.folder) for name, folder in experts.items()]
    # One expert for each hash that they carry: experts of one base have it read and hashed once.
    for vector in {vector.base_hash: vector for vector in vectors}.values():
        check_base_hash(vector, context.base)
    return vectors


def align(context: Context, fused: Path, rows: Rows, out: Path, settings: Align) -> Path:
    """Stage 2: tune a fused model on the joint examples; writes the tuned model with its loss curve.

    Raises InputError for a folder without a fused model, or rows of an axis that it has no expert for.
    """
    inputs = {"fused": identify(fused), "rows": identify_rows(rows)}
    step = Step(out, "align", context.settings(align=settings.model_dump(exclude=KEEPING)), inputs)
    if launched(context, step, rows, settings, fused=str(fused)):
        return out
    with unless_finished(step, context) as draft:
        if draft is not None:
            model, tokenizer = open_fused(fused, getattr(torch, context.base.dtype))
            axes = rows.axes if isinstance(rows, Stream) else {row.axis for row in rows}
            strangers = sorted(set(axes) - set(model.config.expert_names))
            if strangers:
                raise InputError(
                    f"the examples have rows of {strangers}; the model's experts are {model.config.expert_names}"
                )
            job = context.training(f"aligning {out.name}", rows, settings.fit, tokenizer)
            curve = aligning.align(model, settings, resumable(job, step), context.progress)
            context.account(job)
            if processes.rank() == 0:  # the others' folder is thrown away
                save_model(model, tokenizer, draft)
            write_json(draft / "curve.json", curve)
            write_json(draft / "spent.json", {"steps": len(curve), "examples": job.n_rows})
    return out


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Weights (safetensors), configuration, generation configuration and tokenizer, as transformers writes them.

    A fused model with a subtracted expert keeps the README.md that warns of it.
    """
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if isinstance(model.config, TriuneConfig):
        write_card(model.config, folder)


def report(run: Path) -> Path:
    """Write report.html, report.md and scores.csv of a finished run from its files; nothing is computed anew."""
    from triune.report.files import write_report

    return write_report(run)
