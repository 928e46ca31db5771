"""Training an expert in two passes, the second behind an injected instruction (AlignX's stage 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from triune.errors import InputError
from triune.experts import task_vector
from triune.experts.adapters import write_adapter
from triune.experts.fitting import Job
from triune.experts.injection import Pair, Passes, Trained, encode_both, injected
from triune.experts.injection import train_injected as train_passes
from triune.experts.task_feature import (
    TaskFeature,
    checked_layer,
    consistency,
    prompt_states,
    task_feature,
    write_feature,
)
from triune.method_settings import injected_texts
from triune.models.encoding import Encoded
from triune.models.rows import encode_examples
from triune.models.store import hash_weights
from triune.pipeline.launching import launched
from triune.pipeline.verbs import KEEPING, PART, Context, identify_rows, resumable, unless_finished
from triune.recipe import Injection, Train
from triune.record import Step, digest, identify, write_json
from triune.types import Example


@dataclass(frozen=True)
class _Data:
    """The rows of one expert in every form that is needed, and the texts by axis."""

    texts: Mapping[str, str]
    given: Sequence[Example]
    plain: Sequence[Encoded]
    injected: Sequence[Encoded]
    pairs: Sequence[Pair]


def train_injected(context: Context, rows: Sequence[Example], out: Path, settings: Train, *, title: str = "") -> Path:
    """One LoRA expert in two passes; writes one PEFT adapter (T = T_1 + T_2), injection.json and the task feature.

    The curve holds both passes, spent.json their sum. `fit.save_every` keeps checkpoints of the first pass,
    `injection.fit.save_every` of the second. Raises InputError as `train`, and before the base is loaded for an axis
    without a text; before anything is trained for a layer that the base does not have, or texts that leave no room.
    """
    injection = settings.injection
    if injection is None:
        raise InputError("train_injected needs settings.injection (injection.style=axis); plain experts are train's")
    if context.base.quantised is not None:
        raise InputError("an injection's second pass adds the first to the base's weights; leave base.quantised out")
    texts = injected_texts(injection, dict.fromkeys(row.axis for row in rows))
    inputs = {"base": identify(context.folder), "rows": identify_rows(rows)}
    # The texts as they are: the built-in ones may change.
    own = context.settings(train=settings.model_dump(exclude=KEEPING), texts=texts)
    step = Step(out, "train", own, inputs)
    if launched(context, step, rows, settings, title=title):
        return out
    with unless_finished(step, context) as draft:
        if draft is not None:
            model, tokenizer = context.load()
            layer = checked_layer(injection.layer, model.config.num_hidden_layers)
            data = _encode(context, tokenizer, rows, texts)
            title = title or f"training {out.name}"
            passes = _passes(context, tokenizer, data, settings, title, step)
            trained = train_passes(model, settings.lora, passes, injection.rank, context.progress)
            vector = replace(trained.merged.vector, base_hash=hash_weights(context.folder))
            write_adapter(vector, draft, str(context.folder))
            feature = _feature(model, data, layer, passes.first.pad_id, draft)
            write_json(draft / "injection.json", {**_account(injection, data, trained), "feature": feature})
            write_json(draft / "curve.json", trained.curve)
            spent = {"steps": len(trained.curve), "examples": len(data.plain) + len(data.injected)}
            write_json(draft / "spent.json", spent)
    return out


def _encode(
    context: Context, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Example], texts: Mapping[str, str]
) -> _Data:
    plain = context.encode(tokenizer, rows)
    longer = [injected(row, texts[row.axis]) for row in rows]
    template, max_length = context.base.template, context.base.max_length
    pairs = encode_both(tokenizer, rows, texts, template, max_length)
    second = encode_examples(tokenizer, longer, template, max_length)
    if len(second) < len(rows):
        lost = len(rows) - len(second)
        context.progress.say(f"  {lost} of {len(rows)} rows do not fit with the injected text: left out of pass 2")
    for axis, text in texts.items():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        unknown = ids.count(tokenizer.unk_token_id) if tokenizer.unk_token_id is not None else 0
        if unknown:
            context.progress.say(
                f"  {unknown} of {len(ids)} tokens of the text for {axis!r} are unknown to the tokenizer; set "
                f"injection.texts.{axis} in words that it has"
            )
    return _Data(texts, rows, plain, second, pairs)


def _passes(
    context: Context, tokenizer: PreTrainedTokenizerBase, data: _Data, settings: Train, title: str, step: Step
) -> Passes:
    injection = settings.injection or Injection()
    first = context.job(f"{title}, pass 1 of 2", data.plain, settings.fit, tokenizer)
    second = context.job(f"{title}, pass 2 of 2 (injected)", data.injected, injection.fit, tokenizer)
    # With the same seed the second LoRA would begin with the first one's A, and the sum would waste its rank.
    second = replace(second, seed=int(digest([context.seed, "second pass"])[:8], 16))

    def kept(job: Job, number: int) -> Job:
        return resumable(job, step, f"{PART}{number}")

    return Passes("+".join(data.texts), kept(first, 1), kept(second, 2), data.pairs)


def _feature(model: PreTrainedModel, data: _Data, layer: int, pad_id: int, draft: Path) -> dict[str, Any]:
    """Measure φ in the merged expert and write it; what injection.json says of it."""
    plain, longer = (
        prompt_states(model, [pair[place] for pair in data.pairs], layer=layer, pad_id=pad_id) for place in (0, 1)
    )
    phi = task_feature(plain, longer)
    write_feature(TaskFeature(phi.float(), layer, len(data.pairs)), draft)
    size = {"norm": float(phi.norm()), "consistency": consistency(plain, longer)}
    return {"layer": layer, "n": len(data.pairs), **size}


def _account(injection: Injection, data: _Data, trained: Trained) -> dict[str, Any]:
    """injection.json: texts, rows, ranks, sizes, what re-compression lost, losses before and after."""
    whole, rows = trained.merged, {"plain": data.plain, "injected": data.injected}
    vectors = {"first": trained.first, "second": trained.second, "merged": whole.vector}
    ranks = {name: max(v.parts[m].rank for m in v.parts) for name, v in vectors.items()}
    return {
        "style": injection.style,
        "texts": data.texts,
        "rows": {
            "given": len(data.given),
            **{name: len(own) for name, own in rows.items()},
            "both": len(data.pairs),
            "cut": {name: sum(row.truncated for row in own) for name, own in rows.items()},
        },
        "ranks": ranks,
        "norms": {name: task_vector.norm(vector) for name, vector in vectors.items()},
        "cosine": task_vector.cosine(trained.first, trained.second),
        "error": whole.error,
        "errors": whole.errors,
        "losses": trained.losses,
    }
