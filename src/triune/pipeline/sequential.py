"""Sequential fine-tuning: one LoRA trained on the axes one after the other, the baseline that forgets."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from triune.data.streaming import Rows
from triune.errors import InputError
from triune.experts.adapters import stamp
from triune.experts.training import train_adapter
from triune.models.store import hash_weights
from triune.parsing import read_json
from triune.pipeline.verbs import KEEPING, Context, identify_rows, resumable, unless_finished
from triune.recipe import NAME, Train
from triune.record import RECORD, Step, identify, write_json


def stage_folders(out: Path, axes: Sequence[str]) -> dict[str, Path]:
    """Where the adapter after each axis is: out/1-helpful, out/2-harmless, ….

    Raises InputError for fewer than two axes, or a name that is no folder's.
    """
    odd = [axis for axis in axes if not NAME.fullmatch(axis)]
    if odd or len(axes) < 2:
        raise InputError(
            f"got the axes {list(axes)}; a sequence has two or more, with names of letters, digits, - and _"
        )
    return {axis: out / f"{number}-{axis}" for number, axis in enumerate(axes, start=1)}


def train_sequence(context: Context, rows: Mapping[str, Rows], out: Path, settings: Train) -> dict[str, Path]:
    """One LoRA, trained on the axes in the order of `rows`; returns the adapter's folder after each.

    Each stage is a step of its own, which is skipped where it is finished: a change of a later axis's rows leaves the
    earlier stages. Raises InputError as `train_stage` and `stage_folders`.
    """
    steps = stages(context, rows, out, settings)
    for previous, (folder, train) in zip([None, *steps], steps.items(), strict=False):
        if context.dry and previous is not None and not (previous / RECORD).is_file():
            context.progress.say(f"{folder}: to do, after the steps before it")
        else:
            train()
    return dict(zip(rows, steps, strict=True))


def stages(context: Context, rows: Mapping[str, Rows], out: Path, settings: Train) -> dict[Path, Callable[[], Path]]:
    """What trains each stage, by its folder, in the order of `rows`. Raises InputError as `stage_folders`."""
    folders = stage_folders(out, list(rows))
    return {
        folder: partial(train_stage, context, rows[axis], folder, settings, previous)
        for previous, (axis, folder) in zip([None, *folders.values()], folders.items(), strict=False)
    }


def train_stage(context: Context, rows: Rows, out: Path, settings: Train, previous: Path | None = None) -> Path:
    """Train the adapter in `previous` further on these rows, or a new one without it; writes a PEFT adapter folder.

    spent.json counts what all stages up to this one took, curve.json has this one's loss alone. Raises InputError as
    `train`, for another `previous` than these settings make, and for an injection, which would be a second LoRA.
    """
    if settings.injection is not None:
        raise InputError("sequential fine-tuning continues one LoRA, and an injection adds a second; leave it out")
    inputs = {"base": identify(context.folder), "rows": identify_rows(rows)}
    inputs |= {} if previous is None else {"previous": identify(previous)}
    own = settings.model_dump(exclude={**KEEPING, "injection": True})
    step = Step(out, "train", context.settings(train=own), inputs)
    with unless_finished(step, context) as draft:
        if draft is not None:
            model, tokenizer = context.load()
            job = resumable(context.training(f"training {out.name}", rows, settings.fit, tokenizer), step)
            curve = train_adapter(model, settings.lora, job, draft, context.progress, previous)
            stamp(draft, hash_weights(context.folder))
            write_json(draft / "curve.json", curve)
            write_json(draft / "spent.json", _spent(previous, len(curve), job.n_rows))
    return out


def _spent(previous: Path | None, steps: int, examples: int) -> dict[str, int]:
    """With what was spent before; an adapter that was made elsewhere does not say."""
    place = None if previous is None else previous / "spent.json"
    before = read_json(place) if place is not None and place.is_file() else {}
    return {"steps": steps + before.get("steps", 0), "examples": examples + before.get("examples", 0)}
