"""What TrinityX (arXiv 2509.08486) claims, and what of our result files decides about it; no number in the prose."""

from claims_asked import Claim, Comparison, Costs, Path, at, less, models

FILE = "trinityx.json"
FORMS = "trinityx_forms.json"
NEGATION = "negation.json"
WORKS = ("prefill, one row", "decoding, one row", "decoding, several rows")
GAINS = {"helpful": ("win rate", 32.5), "harmless": ("safety", 33.9), "honest": ("truthfulness", 28.4)}


def mean(model: str) -> Path:
    """Where the mean of the axes stands."""
    return ("models", model, "mean")


def top_1_loss(ours: str, theirs: str, label: str) -> Comparison:
    """What top-1 loses in one form, less what it loses in the plain mixture."""
    return Comparison(
        "mean, top-1 less top-2",
        FILE,
        less(label, mean(ours), mean(theirs)),
        less("plain", mean("fused:plain-1"), mean("fused:plain-2")),
    )


def time(form: str, over: str = "dense_moe") -> Costs:
    """Processor time of a form, by work."""
    works = tuple((name, ("speed", place, "cpu", f"over_{over}", form), None) for place, name in enumerate(WORKS))
    return Costs("processor time", FORMS, works, form, over)


def memory(form: str, over: str = "dense_moe") -> Costs:
    """Bytes of the weights, and the largest resident set."""
    works = (
        ("weights", ("weight_bytes", form), ("weight_bytes", over)),
        ("peak", ("peak_bytes", form), ("peak_bytes", over)),
    )
    return Costs("memory", FORMS, works, form, over)


def gain(axis: str, score: str, published: float) -> Claim:
    """One of the three headline figures."""
    return Claim(
        f"The mixture of calibrated experts gains on {axis} ({score})",
        "headline result, relative to earlier methods",
        "Axes that are not near their ceiling, loss weights tuned for this model, or experts that conflict otherwise.",
        decides=(models(FILE, axis, "fused", "fused:plain-1"),),
        beside=(
            models(FILE, axis, "fused:mocae-2", "fused:plain-2"),
            models(FILE, axis, "fused", "task_arithmetic"),
            models(FILE, axis, "fused", "mixture"),
            models(FILE, axis, "fused", "base"),
        ),
        published=published,
        note="The rival that decides is the plain mixture of the same experts, trained alike: what calibration adds.",
    )


ROWS = (
    *(gain(axis, *figure) for axis, figure in GAINS.items()),
    Claim(
        "Calibrated routing makes the model better on all axes together",
        "headline result",
        "Axes that are not near their ceiling, or loss weights tuned for this model.",
        decides=(models(FILE, "mean", "fused", "fused:plain-1"),),
        beside=(
            models(FILE, "mean", "fused:mocae-2", "fused:plain-2"),
            models(FILE, "mean", "fused", "task_arithmetic"),
            models(FILE, "mean", "fused:mocae-2", "mixture"),
        ),
    ),
    Claim(
        "Temperature and importance make the routing better calibrated",
        "mixture of calibrated experts",
        "A temperature above one, or the same without the entropy term, which makes routers surer as well.",
        decides=(models(FILE, "routing ECE", "fused", "fused:plain-1", "below", "calibration"),),
        beside=(
            models(FILE, "routing ECE", "fused:mocae-2", "fused:plain-2", "below", "calibration"),
            models(FILE, "routing Brier", "fused", "fused:plain-1", "below", "calibration"),
            models(FILE, "routing accuracy", "fused", "fused:plain-1", "above", "weight"),
            models(FILE, "rows ECE", "fused", "fused:plain-1", "below", "calibration"),
        ),
        note="Token by token decides. A whole row's mean weight is low by nature, and any sharper routing raises it.",
    ),
    Claim(
        "A temperature fitted on held-out rows mends the calibration of the routing, by ECE",
        "calibration metrics",
        "More seeds or more held-out rows, which would narrow the interval.",
        decides=(models(FILE, "routing ECE", "calibrated", "fused", "below", "calibration"),),
        beside=(
            models(FILE, "routing ECE", "calibrated", "fused:plain-1", "below", "calibration"),
            models(FILE, "rows ECE", "calibrated", "fused", "below", "calibration"),
        ),
    ),
    Claim(
        "A temperature fitted on held-out rows mends the calibration of the routing, by Brier score",
        "calibration metrics",
        "Test rows of another distribution than the rows that the temperature was fitted on.",
        decides=(models(FILE, "routing Brier", "calibrated", "fused", "below", "calibration"),),
        beside=(
            models(FILE, "routing NLL", "calibrated", "fused", "below", "nats"),
            models(FILE, "routing Brier", "calibrated", "fused:plain-1", "below", "calibration"),
            models(FILE, "mean", "calibrated", "fused", "no worse"),
        ),
    ),
    Claim(
        "Calibrated routing gives calibrated answers",
        "motivation of the calibrated mixture",
        "Experts whose answers differ in confidence, so that the share of each one matters for the confidence.",
        decides=(models(FILE, "answer ECE", "calibrated", "fused", "below", "calibration"),),
        beside=(
            models(FILE, "answer ECE", "fused", "fused:plain-1", "below", "calibration"),
            models(FILE, "answer Brier", "calibrated", "fused", "below", "calibration"),
        ),
    ),
    Claim(
        "Top-1 inference loses little",
        "inference with one expert a token",
        "More seeds, or tasks that need two experts at once.",
        decides=(models(FILE, "mean", "fused", "fused:mocae-2", "little"),),
        beside=(models(FILE, "mean", "fused:plain-1", "fused:plain-2", "little"),),
    ),
    Claim(
        "It is the entropy and divergence terms that make top-1 lose little",
        "loss terms of the calibrated mixture",
        "A plain mixture that loses more by top-1 than ours, so that something could be won back.",
        decides=(top_1_loss("fused", "fused:mocae-2", "with both terms"),),
        beside=(
            top_1_loss("fused:gl-1", "fused:gl-2", "and the gating loss"),
            top_1_loss("fused:rl-1", "fused:rl-2", "and the prior"),
            top_1_loss("fused:both-1", "fused:both-2", "and both"),
        ),
    ),
    Claim(
        "Adding the gating loss (+GL) helps",
        "ablation",
        "Routers that start from chance; here a regression on prompts starts them near the right expert.",
        decides=(models(FILE, "mean", "fused:gl-1", "fused"),),
        beside=(
            models(FILE, "mean", "fused:gl-2", "fused:mocae-2"),
            models(FILE, "routing accuracy", "fused:gl-1", "fused", "above", "weight"),
            models(FILE, "routing ECE", "fused:gl-1", "fused", "below", "calibration"),
        ),
    ),
    Claim(
        "Adding the divergence to a prior (+RL) helps",
        "ablation",
        "Data whose axes are of very unequal size, so that the routing would starve an expert without a prior.",
        decides=(models(FILE, "mean", "fused:rl-1", "fused"),),
        beside=(
            models(FILE, "mean", "fused:rl-2", "fused:mocae-2"),
            models(FILE, "routing accuracy", "fused:rl-1", "fused", "above", "weight"),
            models(FILE, "routing ECE", "fused:rl-1", "fused", "below", "calibration"),
        ),
    ),
    Claim(
        "Adding both terms helps",
        "ablation",
        "The same as for each of the two terms.",
        decides=(models(FILE, "mean", "fused:both-1", "fused"),),
        beside=(
            models(FILE, "mean", "fused:both-2", "fused:mocae-2"),
            models(FILE, "routing ECE", "fused:both-1", "fused", "below", "calibration"),
        ),
    ),
    Claim(
        "Top-1 takes less time than a dense mixture of experts",
        "headline result: up to so much less",
        "A GPU, where a dense mixture's experts run beside each other; or more experts than three.",
        decides=(time("unfactored_k1"),),
        beside=(time("unfactored_k2"), time("factored_k1"), time("factored_k2"), time("dense_base")),
        published=-57.0,
        note="The last line is the base alone: no mixture of three such experts can be faster.",
    ),
    Claim(
        "Top-1 takes less memory than a dense mixture of experts",
        "headline result",
        "A form that keeps only the experts in use in memory; here all of them are stored.",
        decides=(memory("unfactored_k1"),),
        beside=(memory("factored_k1"), memory("factored_k2"), memory("dense_base")),
        published=-40.0,
        note="The lines beside are the factored form of the same model, and the base alone.",
    ),
    Claim(
        "A task vector that is subtracted removes its behaviour",
        "task vectors can be added, scaled and negated",
        "A behaviour that the base does not have at a low rate already.",
        decides=(
            Comparison(
                "harmless",
                NEGATION,
                at("models", "base - harmless", "harmless"),
                at("models", "base", "harmless"),
                claimed="below",
            ),
            Comparison(
                "helpful",
                NEGATION,
                at("models", "base - helpful", "helpful"),
                at("models", "base", "helpful"),
                claimed="below",
            ),
        ),
        beside=(
            models(NEGATION, "helpful", "base - harmless", "base", "little"),
            models(NEGATION, "harmless", "base - helpful", "base", "little"),
            models(NEGATION, "harmless", "fused (logistic) - harmless", "fused (logistic)", "below"),
        ),
        note="The lines beside ask whether it removes nothing else, and whether it works inside a mixture.",
    ),
    Claim(
        "The gains hold for Llama, Mistral, Gemma and DeepSeek models of seven billion parameters",
        "all tables",
        "Runs of the recipe on these models, on a machine that holds them.",
        untestable=(
            "Models of this size do not fit on the machines at hand. That fusing works on these families at all is "
            "tested on random models of their architectures."
        ),
    ),
)
