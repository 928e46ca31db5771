"""The weight that each expert's task vector is multiplied with before it is fused; below zero, it is subtracted.

−T_a takes away what T_a adds (arXiv 2212.04089, section 3; TrinityX, arXiv 2509.08486). A model with a negated expert
is made on purpose to do less of something, which may be what kept it safe: whoever gets it must be told.
"""

from collections.abc import Sequence
from pathlib import Path

from triune.errors import InputError
from triune.experts import task_vector
from triune.experts.task_vector import TaskVector
from triune.fusion.configuration import TriuneConfig
from triune.recipe import Fuse
from triune.record import write_text

CARD = "README.md"


def weighted(experts: Sequence[TaskVector], settings: Fuse) -> list[TaskVector]:
    """w_a T_a of every expert, made when it is read; one whose weight is 1 is left as it is."""
    weights = [settings.weights.get(expert.axis, 1.0) for expert in experts]
    return [
        expert if weight == 1 else task_vector.scaled(expert, weight)
        for expert, weight in zip(experts, weights, strict=True)
    ]


def weights_of(axes: Sequence[str], settings: Fuse) -> list[float] | None:
    """Every expert's weight, in order; None where all are 1."""
    weights = [settings.weights.get(axis, 1.0) for axis in axes]
    return weights if any(weight != 1 for weight in weights) else None


def warning(config: TriuneConfig) -> str:
    """One paragraph that names the subtracted experts, for a model card; "" where there are none."""
    weights = dict(zip(config.expert_names or [], config.expert_weights or [], strict=False))
    negated = [plain(name) for name in config.negated]
    if not negated:
        return ""
    shown = ", ".join(f"'{plain(name)}' (weight {weights[name]:g})" for name in config.negated)
    several = len(negated) > 1
    subject, verb, those = ("experts", "were", "those experts") if several else ("expert", "was", "that expert")
    return (
        f"The {subject} {shown} {verb} subtracted: this model was made less {' and less '.join(negated)} on purpose, "
        f"and does less of what {those} had been trained to do. Where {those} kept the base safe, this model is less "
        "safe than its base. Do not rely on it for anything that such an expert is for."
    )


def write_card(config: TriuneConfig, folder: Path) -> None:
    """README.md with the warning, in a folder that holds a model with a subtracted expert; nothing for another."""
    text = warning(config)
    if text:
        names = ", ".join(map(plain, config.expert_names or []))
        head = "---\ntags:\n- triune\n- mixture-of-experts\n---"
        body = (
            f"# A fused model with a subtracted expert\n\n**Warning.** {text}\n\nExperts: {names}. Made with Triune."
        )
        write_text(folder / CARD, f"{head}\n\n{body}\n")


def check_allowed(config: TriuneConfig, *, allow_negated: bool) -> None:
    """Raise InputError for a model with a subtracted expert, unless that is allowed in so many words."""
    if config.negated and not allow_negated:
        raise InputError(
            f"the experts {config.negated} were subtracted from this model, so that it does less of what they had "
            "been trained for; to pass such a model on, say so: --allow-negated (its model card will warn)"
        )


def plain(name: str) -> str:
    """A name that cannot break out of its paragraph, or out of its cell in a table."""
    return " ".join(str(name).replace("|", "/").split())
