"""What models and scores are called on the page, and which of them belong together."""

import unicodedata

from triune.report.run import ModelScore, Run
from triune.types import Better, Score

EXPERT = "expert:"
SCARCE = "scarce:"
# What names of models made otherwise, or elsewhere, begin with.
VARIANTS = {"fused:": "fused", "mixture:": "mixture", "served:": "served"}
FUSED = "fused"
BASE = "base"
MEAN = "mean"

# In a table, beside a mark in a figure, and in a sentence ("... for the average of task vectors").
MODEL_LABELS = {
    "base": ("base", "base", "the base"),
    "mixture": ("tuned on the mixture", "mixture", "one model tuned on the mixture"),
    "sequential": ("one LoRA, axes one after the other", "sequential", "one LoRA trained on the axes in turn"),
    "longer": ("the same, trained longer", "longer", "one model tuned longer on the mixture"),
    "average": ("average of task vectors", "average", "the average of task vectors"),
    "sum": ("sum of task vectors", "sum", "the sum of task vectors"),
    "linear": ("weighted mean of models", "linear", "the weighted mean of the models"),
    "task_arithmetic": ("task arithmetic", "task arithmetic", "task arithmetic"),
    "slerp": ("SLERP", "SLERP", "SLERP"),
    "ties": ("TIES", "TIES", "TIES"),
    "dare_linear": ("DARE, linear", "DARE linear", "DARE (linear)"),
    "dare_ties": ("DARE, TIES", "DARE TIES", "DARE with TIES"),
    "della": ("DELLA", "DELLA", "DELLA"),
    "breadcrumbs": ("breadcrumbs", "breadcrumbs", "breadcrumbs"),
    "model_stock": ("Model Stock", "Model Stock", "Model Stock"),
    "tsvm": ("TSV-M", "TSV-M", "TSV-M"),
    "rtsvm": ("R-TSVM", "R-TSVM", "R-TSVM"),
    "ensemble": ("average of probabilities", "ensemble", "the average of probabilities"),
    "ranking": ("best of the experts' answers", "ranking", "the ranking of the experts' answers"),
    "instruct": ("H3Fusion Instruct", "Instruct", "H3Fusion Instruct"),
    "xlora": ("X-LoRA", "X-LoRA", "X-LoRA"),
    "arrow": ("Arrow", "Arrow", "Arrow"),
    "mergekit_moe": ("mergekit-moe", "mergekit-moe", "mergekit-moe"),
    "fused": ("fused", "fused", "the fused model"),
    "calibrated": ("fused, calibrated", "calibrated", "the fused model with calibrated routing"),
}
# Kinds of comparison, of which a lead names the best each.
FAMILIES = {
    "merge": (
        *("average", "sum", "linear", "task_arithmetic", "slerp", "ties", "dare_linear", "dare_ties", "della"),
        *("breadcrumbs", "model_stock", "tsvm", "rtsvm"),
    ),
    "ensemble": ("ensemble", "ranking", "instruct"),
    "other mixture of experts": ("xlora", "arrow", "mergekit_moe"),
}
SCORE_LABELS = {
    "mean": "mean of axes",
    "over_refusal": "over-refusal",
    "facts": "facts kept",
    "preference": "preference accuracy",
    "mc1": "MC1",
    "mc2": "MC2",
    "win_rate": "win rate",
    "lc_win_rate": "win rate at equal length",
    "truthful_informative": "truthful and informative",
    "unsafe_compliance": "unsafe compliance",
    "admits_limits": "limits admitted",
    "admits_unknown": "unknown admitted",
    "answers_known": "known answered",
}
BROKEN = frozenset({"Cc", "Cs"})  # Unicode's categories of control characters and surrogates
ARROWS: dict[Better, str] = {"higher": "↑", "lower": "↓", "neither": ""}
DIRECTIONS: dict[Better, str] = {
    "higher": "higher is better",
    "lower": "lower is better",
    "neither": "neither direction is better",
}


def plain(text: str) -> str:
    """`text` without control characters, which could steer a terminal or break a page; tab and newline stay.

    Without halves of surrogate pairs too, which JSON can hold and no UTF-8 file.
    """
    return "".join("\ufffd" if unicodedata.category(c) in BROKEN and c not in "\t\n" else c for c in text)


def model_label(model: str) -> str:
    """The name in a table; a name that is not known stays as it is."""
    model = model.removeprefix(SCARCE)
    if model.startswith(EXPERT):
        return f"{model.removeprefix(EXPERT)} expert"
    kind = next((kind for kind in VARIANTS if model.startswith(kind)), None)
    if kind is not None:
        return f"{VARIANTS[kind]}, {model.removeprefix(kind)}"
    return MODEL_LABELS[model][0] if model in MODEL_LABELS else model


def model_phrase(model: str) -> str:
    """The name within a sentence: "the base", "one model tuned on the mixture"."""
    model = model.removeprefix(SCARCE)
    return MODEL_LABELS[model][2] if model in MODEL_LABELS else f"the {model_label(model)}"


def column_label(model: str) -> str:
    """The name where models of both comparisons stand side by side."""
    return f"{model_label(model)} (scarce data)" if model.startswith(SCARCE) else model_label(model)


def short_label(model: str) -> str:
    """The name beside a mark in a figure, cut where it would crowd the picture out."""
    known = MODEL_LABELS.get(model.removeprefix(SCARCE))
    return known[1] if known else cut(model_label(model))


def cut(text: str, length: int = 22) -> str:
    """At most `length` characters on one line, the last an ellipsis where something is missing."""
    line = " ".join(plain(text).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def score_label(name: str) -> str:
    """The name of a score: "over-refusal", "NLL helpful"; of a benchmark with its own name "mine: win rate"."""
    if name.startswith("nll:"):
        return f"NLL {name.removeprefix('nll:')}"
    benchmark, colon, score = name.rpartition(":")
    return f"{benchmark}: {SCORE_LABELS[score]}" if colon and score in SCORE_LABELS else SCORE_LABELS.get(name, name)


def score_phrase(name: str) -> str:
    """The score within a sentence: "the mean of the axes"."""
    return "the mean of the axes" if name == MEAN else score_label(name)


def models_of(rows: tuple[ModelScore, ...], scarce: bool = False) -> tuple[str, ...]:
    """The models in file order: those of the scarce-data comparison, or all others."""
    return tuple(dict.fromkeys(row.model for row in rows if row.model.startswith(SCARCE) == scarce))


def score_names(rows: tuple[ModelScore, ...], models: tuple[str, ...]) -> tuple[str, ...]:
    """The scores in file order that at least one of `models` has."""
    return tuple(dict.fromkeys(row.score.name for row in rows if row.model in models))


def score_index(rows: tuple[ModelScore, ...]) -> dict[tuple[str, str], Score]:
    """(model, score name) -> score."""
    return {(row.model, row.score.name): row.score for row in rows}


def axis_names(run: Run) -> tuple[str, ...]:
    """The axes: one for each expert in the scores, otherwise those of the routing."""
    experts = [model.removeprefix(EXPERT) for model in models_of(run.scores) if model.startswith(EXPERT)]
    return tuple(experts) or (run.routing.axes if run.routing else ())


def axis_scores(run: Run) -> tuple[str, ...]:
    """The scores that measure the axes, one an axis, in the axes' order: `helpful` ... or `nll:helpful` ....

    The first family of names wins in which at least two axes have a score with one unit and one direction.
    """
    axes = axis_names(run)
    kinds = {row.score.name: (row.score.unit, row.score.better) for row in run.scores}
    prefixes = dict.fromkeys(
        name.removesuffix(axis) for name in kinds for axis in axes if name == axis or name.endswith(f":{axis}")
    )
    for prefix in prefixes:
        family = tuple(prefix + axis for axis in axes if prefix + axis in kinds)
        if len(family) >= 2 and len({kinds[name] for name in family}) == 1:
            return family
    return ()


def headline_scores(run: Run) -> tuple[str, ...]:
    """The scores that the lead paragraph reports: the mean of the axes, else every axis, else the first score."""
    names = score_names(run.scores, models_of(run.scores))
    if MEAN in names:
        return (MEAN,)
    return axis_scores(run) or names[:1]


def side_scores(run: Run) -> tuple[str, ...]:
    """The scores beside the axes, such as over-refusal and the facts kept."""
    taken = {*headline_scores(run), *axis_scores(run)}
    return tuple(name for name in score_names(run.scores, models_of(run.scores)) if name not in taken)
