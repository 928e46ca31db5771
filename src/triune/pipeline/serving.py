"""A model behind a server as a row of a comparison: answers saved as any other model's, and no likelihoods."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from triune.errors import InputError
from triune.evaluation.served import check_server, served_subject
from triune.models.loading import load_tokenizer
from triune.pipeline.asking import ask_all, discard_kept
from triune.pipeline.evaluating import Exam, load_prompts, observe, samples_folder
from triune.pipeline.verbs import Context, unless_finished
from triune.record import Step, finished, identify, write_json
from triune.served_settings import Served

Model = Path | Served | None  # where a model of a comparison is; None: the base
WAITING = 4  # prompts a batch for each request at once, so that few requests wait at a batch's end
# Changes no answer: with another value, a finished step stays finished.
PATIENCE = {"key_env", "concurrency", "retries", "timeout", "backoff", "longest_wait", "base_url"}
ABSENT = "a server gives answers only, so that there is no score by likelihood, no latency, size or routing"


def check_servers(context: Context, models: Mapping[str, Model], exam: Exam, data: Step) -> None:
    """Ask each server whose answers are not all there yet for one token. `data` is the step that writes `exam.data`.

    Raises InputError as `check_server`, and says which model it is of.
    """
    for name, model in models.items():
        if isinstance(model, Served) and not (finished(data) and _has_answered(context, name, model, exam)):
            try:
                check_server(model)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error


def _has_answered(context: Context, name: str, served: Served, exam: Exam) -> bool:
    try:
        return finished(_step(context, name, served, exam, samples_folder(exam.data.parent, name)))
    except InputError:  # the base is not built yet
        return False


def observe_model(context: Context, name: str, model: Model, exam: Exam, out: Path) -> Path:
    """Save what scores need of a model in a folder (`observe`) or behind a server (`observe_served`)."""
    if isinstance(model, Served):
        return observe_served(context, name, model, exam, out)
    return observe(context, name, model, exam, out)


def observe_served(context: Context, name: str, served: Served, exam: Exam, out: Path) -> Path:
    """Save a server's answers to a data folder's prompts, with the base's template and tokenizer.

    The server's model is known by its name only: give another name, or another `out`, for other weights. Raises
    InputError as `served_subject`, and TriuneError where the server answers nothing of a batch.
    """
    step = _step(context, name, served, exam, out)
    with unless_finished(step, context) as draft:
        if draft is not None:
            subject = served_subject(served, context.base, load_tokenizer(context.folder))
            if load_prompts(exam.data):
                wide = replace(exam, batch_size=max(exam.batch_size, WAITING * served.concurrency))
                ask_all(name, context, step, subject, wide).write(draft)
            write_json(draft / "likelihoods.json", {})
            write_json(draft / "size.json", {"total": None, "active": None, "n_bytes": None, "generations": 1})
            discard_kept(step, exam)
    return out


def _step(context: Context, name: str, served: Served, exam: Exam, out: Path) -> Step:
    own = context.settings(name=name, served=served.model_dump(exclude=PATIENCE), **exam.limits)
    return Step(out, "observe", own, {"base": identify(context.folder), "data": identify(exam.data)})


def served_account(served: Served) -> dict[str, Any]:
    """What models.json says of a served model beside its (unknown) size."""
    note = f"{served.model} behind a server"
    return {"latency_ratio": None, "train_steps": None, "train_examples": None, "note": note, "absent": ABSENT}
