"""The verb evaluate: every model answers and is asked for likelihoods first; the scores come from what was saved."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triune.baselines.opening import open_subject
from triune.data.rows import load_rows
from triune.diagnose.latency import latency_ratio
from triune.diagnose.routing import routing_map
from triune.diagnose.size import size
from triune.evaluation import likelihoods
from triune.evaluation.likelihoods import Scorer
from triune.fusion.modeling import TriuneForCausalLM
from triune.models.encoding import pad_id
from triune.models.likelihood import hidden_states
from triune.models.store import save_tensors
from triune.parsing import read_json
from triune.pipeline.asking import ask_all, ask_some, discard_kept, has_batches
from triune.pipeline.exam import VERDICTS, Exam, costs_folder, exact_prompts, load_prompts, samples_folder
from triune.pipeline.judging import judge_answers
from triune.pipeline.observed_routing import observe_routing
from triune.pipeline.scoring_step import score
from triune.pipeline.verbs import Context, unless_finished
from triune.record import Step, finished, identify, write_json
from triune.types import Example, Preference, Question

__all__ = [
    "Exam",
    "costs_folder",
    "evaluate",
    "load_prompts",
    "measure_cost",
    "observe",
    "observe_part",
    "samples_folder",
    "score",
]


def observe(context: Context, name: str, model: Path | None, exam: Exam, out: Path) -> Path:
    """Load one model once and save all that scores need: answers, likelihoods, hidden states, routing, size."""
    data = exam.data
    step = _observing(context, name, model, exam, out)
    with unless_finished(step, context) as draft:
        if draft is not None:
            subject = open_subject(model, context.base)
            prompts = load_prompts(data)
            if prompts:
                samples = ask_all(name, context, step, subject, exam).write(draft)
            found: dict[str, Any] = {}
            if subject.model is not None:
                scorer = Scorer(subject.model, subject.tokenizer, context.base, exam.batch_size)
                found = _likelihoods(scorer, data)
                if exact_prompts(prompts):  # whose answers' confidence is calibrated
                    found["answers"] = likelihoods.own_log_probs(scorer, samples)
                if subject.has_states:
                    _look_inside(scorer, context, data, draft)
                if isinstance(subject.model, TriuneForCausalLM):
                    observe_routing(scorer, context, data, model, draft)
            write_json(draft / "likelihoods.json", found)
            write_json(draft / "size.json", size(subject))
            discard_kept(step, exam)
    return out


def observe_part(
    context: Context, name: str, model: Path | None, exam: Exam, out: Path, *, part: tuple[int, int]
) -> Path:
    """Ask part (i, n) of the prompts that `observe` asks, i from 0, and keep the answers for it.

    Several parts may be under way at once, each with a model of its own in memory. The step itself stays unfinished.
    """
    step = _observing(context, name, model, exam, out)
    if context.dry and context.notice is not None:
        context.notice(step)
    elif not (context.dry or finished(step)) and has_batches(exam, part):
        ask_some(name, context, step, open_subject(model, context.base), exam, part)
    return out


def _observing(context: Context, name: str, model: Path | None, exam: Exam, out: Path) -> Step:
    inputs = {
        "model": identify(model or context.folder),
        "base": identify(context.folder),
        "data": identify(exam.data),
    }
    return Step(out, "observe", context.settings(name=name, **exam.limits), inputs)


def measure_cost(context: Context, name: str, model: Path | None, exam: Exam, out: Path) -> Path:
    """How long a model answers as against the base, both asked alternately in one process."""
    inputs = {
        "model": identify(model or context.folder),
        "base": identify(context.folder),
        "data": identify(exam.data),
    }
    step = Step(out, "cost", context.settings(name=name, new_tokens=exam.new_tokens), inputs)
    with unless_finished(step, context) as draft:
        if draft is not None:
            questions = [row.prompt for row in load_rows(exam.data / "probes.jsonl", Example)]
            base, subject = open_subject(None, context.base), open_subject(model, context.base)
            write_json(draft / "latency.json", latency_ratio(subject, base, questions, exam.new_tokens))
    return out


def _likelihoods(scorer: Scorer, data: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    axes = read_json(data / "summary.json")["test"]  # in the recipe's order
    tests = {axis: load_rows(data / f"test.{axis}.jsonl", Example) for axis in axes}
    if tests:
        found["nll"] = {axis: likelihoods.answer_nll(scorer, rows) for axis, rows in tests.items()}
    if (data / "preference.jsonl").is_file():
        pairs = load_rows(data / "preference.jsonl", Preference)
        found["preference"] = likelihoods.preference_log_probs(scorer, pairs)
    for name in ("mc1", "mc2"):
        if (data / f"{name}.jsonl").is_file():
            questions = load_rows(data / f"{name}.jsonl", Question)
            found[name] = likelihoods.choice_log_probs(scorer, questions)
    return found


def _look_inside(scorer: Scorer, context: Context, data: Path, draft: Path) -> None:
    probes = load_rows(data / "probes.jsonl", Example)
    rows = context.encode(scorer.tokenizer, probes) if probes else []
    if not rows:
        return
    padding = pad_id(scorer.tokenizer)
    states = hidden_states(scorer.model, rows, batch_size=scorer.batch_size, pad_id=padding)
    save_tensors(draft / "states.safetensors", {"states": states.contiguous()})
    write_json(draft / "state_axes.json", [row.axis for row in rows])
    if isinstance(scorer.model, TriuneForCausalLM):
        axes = list(dict.fromkeys(str(row.axis) for row in rows))
        write_json(draft / "routing.json", routing_map(scorer.model, rows, axes, padding))


def evaluate(context: Context, models: Mapping[str, Path | None], exam: Exam, out: Path) -> Path:
    """Observe every model (None is the base) on prepared data, then score them together under `out`/scores."""
    observed = {}
    for name, folder in models.items():
        observed[name] = samples_folder(out, name)
        observe(context, name, folder, exam, observed[name])
    if exam.benchmarks:
        judge_answers(context, exam, observed, out / VERDICTS)
    return score(context, observed, exam, out / "scores")
