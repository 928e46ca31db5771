"""The verbs that make baselines of several models: ensemble, ranking, instruct. Each leaves a manifest of them."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triune.baselines import ensemble as averaging
from triune.baselines import instruct as summarising
from triune.baselines import ranking as ranking_answers
from triune.baselines.panel import relative_paths
from triune.baselines.subject import MANIFEST, open_one
from triune.errors import InputError
from triune.experts.adapters import stamp
from triune.experts.training import train_adapter
from triune.fusion.opening import check_model
from triune.models.generation import Decoding
from triune.models.loading import load_tokenizer
from triune.models.store import hash_weights
from triune.pipeline.verbs import Context, identify_rows, unless_finished
from triune.recipe import Train
from triune.record import Step, identify, write_json, write_text
from triune.types import Example

ANSWERS = "answers.jsonl"  # {"prompt": …, "answers": {axis: …}}, one line a distinct prompt
SPENT = "spent.json"


def ensemble(
    context: Context, experts: Mapping[str, Path], out: Path, weights: Mapping[str, float] | None = None
) -> Path:
    """The average of the experts' next-token probabilities; equal shares unless `weights` has one for each expert.

    Raises InputError for fewer than two experts, one that is no model of this base, and weights that are not above 0
    and finite.
    """
    averaging.check_weights(weights, list(experts))
    paths = relative_paths(experts, out)
    step = Step(out, "ensemble", _settings(context, paths, weights=weights), _inputs(context, experts))
    with unless_finished(step, context) as draft:
        if draft is not None:
            _check(context, experts)
            shares = {} if weights is None else {"weights": {axis: float(weights[axis]) for axis in experts}}
            write_json(draft / MANIFEST, {"kind": averaging.KIND, "experts": paths, **shares})
    return out


def ranking(context: Context, experts: Mapping[str, Path], judge: Path | None, out: Path) -> Path:
    """Every expert's answer compared in pairs by likelihood under the model `judge`; None: under the experts' average.

    What the judge's training took counts as the ranking's own: spent.json is the judge's, where it has one. Raises
    InputError for fewer than two experts, and for an expert or a judge that is no model of this base.
    """
    paths = relative_paths(experts, out)
    named: dict[str, Any] = {"kind": "likelihood", "name": "likelihood under the ensemble", "model": None}
    if judge is not None:
        named |= {"name": f"likelihood under {judge.name}", "model": relative_paths({"": judge}, out)[""]}
    inputs = _inputs(context, experts) | ({} if judge is None else {"judge": identify(judge)})
    step = Step(out, "ranking", _settings(context, paths, judge=named), inputs)
    with unless_finished(step, context) as draft:
        if draft is not None:
            _check(context, experts)
            if judge is not None:
                check_model(judge, context.base)
                if (judge / SPENT).is_file():
                    shutil.copyfile(judge / SPENT, draft / SPENT)
            write_json(draft / MANIFEST, {"kind": ranking_answers.KIND, "experts": paths, "judge": named})
    return out


def instruct(
    context: Context,
    experts: Mapping[str, Path],
    rows: Sequence[Example],
    out: Path,
    settings: Train,
    new_tokens: int | None = None,
) -> Path:
    """H3Fusion Instruct: the experts answer the prompts of `rows`, which are training rows, and a summariser is
    trained to write the rows' responses from these answers.

    The answers are greedy and kept in answers.jsonl. Give as `new_tokens` the limit that answers have in use; None
    lets them be as long as a row may be. Raises InputError for no rows, fewer than two experts, one that is no model
    of this base, and as `train`.
    """
    paths = relative_paths(experts, out)
    own = _settings(
        context,
        paths,
        instruct=settings.model_dump(exclude={"injection": True, "fit": {"packing"}}),
        new_tokens=new_tokens,
    )
    inputs = _inputs(context, experts) | {"rows": identify_rows(rows)}
    step = Step(out, "instruct", own, inputs)
    with unless_finished(step, context) as draft:
        if draft is not None:
            _check(context, experts)
            usable = _usable(context, rows, len(experts))
            decoding = Decoding(context.base.max_length if new_tokens is None else new_tokens)
            answers = _answers(context, experts, usable, decoding, settings.fit.batch_size)
            lines = [{"prompt": prompt, "answers": found} for prompt, found in answers.items()]
            write_text(draft / ANSWERS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            _train(context, [(row, list(answers[row.prompt].values())) for row in usable], settings, draft)
            manifest = {"kind": summarising.KIND, "experts": paths, "summariser": summarising.SUMMARISER}
            write_json(draft / MANIFEST, manifest)
    return out


def _settings(context: Context, paths: Mapping[str, str], **own: Any) -> dict[str, Any]:
    # The order counts: ties and the numbers of answers go by it. So do the places, which the manifest holds.
    return context.settings(experts=[list(pair) for pair in paths.items()], **own)


def _inputs(context: Context, experts: Mapping[str, Path]) -> dict[str, str]:
    # Prefixed: an expert may be called "base" or "judge".
    return {"base": identify(context.folder), **{f"expert {n}": identify(place) for n, place in experts.items()}}


def _check(context: Context, experts: Mapping[str, Path]) -> None:
    if len(experts) < 2:
        raise InputError(f"got the experts {list(experts)}; a comparison of several models needs two or more")
    for folder in experts.values():
        check_model(folder, context.base)


def _usable(context: Context, rows: Sequence[Example], n_answers: int) -> list[Example]:
    """The rows whose prompt leaves room for answers; known before anything is generated."""
    tokenizer = load_tokenizer(context.folder)
    usable = [row for row in rows if summarising.share(row.prompt, n_answers, tokenizer, context.base)]
    if not usable:
        raise InputError(
            f"of {len(rows)} rows none leaves room for {n_answers} answers and one more in {context.base.max_length} "
            "tokens; give training rows, or raise max_length"
        )
    if len(usable) < len(rows):
        context.progress.say(f"  {len(rows) - len(usable)} of {len(rows)} rows do not fit and are left out")
    return usable


def _answers(
    context: Context, experts: Mapping[str, Path], rows: Sequence[Example], decoding: Decoding, batch_size: int
) -> dict[str, dict[str, str]]:
    """Each distinct prompt's answers by axis; one expert at a time is in memory."""
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    found: dict[str, dict[str, str]] = {prompt: {} for prompt in prompts}
    for axis, folder in experts.items():
        texts = open_one(folder, context.base).respond(prompts, decoding, batch_size, context.progress)
        for prompt, text in zip(prompts, texts, strict=True):
            found[prompt][axis] = text
    return found


def _train(context: Context, answered: Sequence[tuple[Example, Sequence[str]]], settings: Train, draft: Path) -> None:
    """The summariser's adapter in a folder of its own, and what its training took beside it."""
    model, tokenizer = context.load()
    taught, n_cut = summarising.training_rows(answered, tokenizer, context.base)
    if n_cut:
        context.progress.say(
            f"  the experts' answers in {n_cut} of {len(taught)} rows are cut to fit {context.base.max_length} tokens"
        )
    job = context.job("training the summariser", context.encode(tokenizer, taught), settings.fit, tokenizer)
    adapter = draft / summarising.SUMMARISER
    curve = train_adapter(model, settings.lora, job, adapter, context.progress)
    stamp(adapter, hash_weights(context.folder))
    write_json(draft / "curve.json", curve)
    write_json(draft / SPENT, {"steps": len(curve), "examples": len(job.rows)})
