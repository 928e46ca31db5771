"""What H3Fusion (arXiv 2411.17792) claims, and what of our result files decides about it; no number in the prose."""

from claims_asked import Best, Claim, Claimed, Comparison, Path, at, less, mean_of, models

FILE = "h3fusion.json"
REAL = "h3fusion_real_tiny.json"
AXES = ("helpful", "harmless", "honest")
MERGES = ("average", "task_arithmetic", "ties", "dare_ties")
ENSEMBLES = ("ensemble", "ranking")


def best(*names: str) -> Best:
    """The model of these with the largest mean of the axes."""
    return Best(tuple(("models", name, "mean") for name in names))


def versus(number: str, *rivals: str, fused: str = "fused") -> Comparison:
    """The mean of the axes against the strongest of some rivals."""
    return Comparison(number, FILE, at("models", fused, "mean"), best(*rivals))


def real(rival: str, ours: str = "fused", claimed: Claimed = "below") -> Comparison:
    """On real data: the nats a token of held-out answers, the mean of the axes' test sets."""
    mine, theirs = (mean_of(m, *(("models", m, f"nll:{axis}") for axis in AXES)) for m in (ours, rival))
    return Comparison("held-out loss, real data", REAL, mine, theirs, claimed=claimed, kind="nats")


def own(model: str) -> tuple[Path, ...]:
    """Paths of the routing weight that each axis's rows give the axis's own expert."""
    return tuple(("routing", model, axis, axis) for axis in AXES)


def held(key: str, gamma: str) -> tuple[Path, ...]:
    """Paths of what stands of each axis in the model that holds this axis's expert by γ."""
    return tuple((key, f"fused:{axis}-{gamma}", axis) for axis in AXES)


def routed(ours: str, theirs: str) -> Comparison:
    """The mean weight of the right expert in two models."""
    return Comparison(
        "weight of the right expert",
        FILE,
        mean_of(ours, *own(ours)),
        mean_of(theirs, *own(theirs)),
        kind="weight",
    )


def moved(gamma: str) -> Comparison:
    """How far an expert moves in stage two, held against free."""
    free = mean_of("fused", *(("moved", "fused", axis) for axis in AXES))
    return Comparison(
        "movement of the expert that is held",
        FILE,
        mean_of(f"γ {gamma} on it", *held("moved", gamma)),
        free,
        claimed="below",
        kind="relative",
    )


def steered(gamma: str) -> Comparison:
    """The weight of the expert that is held, on its own axis's rows."""
    ours = tuple(("routing", f"fused:{axis}-{gamma}", axis, axis) for axis in AXES)
    return Comparison(
        "weight of the expert that is held",
        FILE,
        mean_of(f"γ {gamma} on it", *ours),
        mean_of("fused", *own("fused")),
        claimed="apart",
        kind="weight",
    )


def drifted(model: str) -> Comparison:
    """The distance to the base's representation in two models."""
    return Comparison(
        "distance to the base's representation",
        FILE,
        mean_of(model, *(("drift", model, axis) for axis in AXES)),
        mean_of("fused", *(("drift", "fused", axis) for axis in AXES)),
        claimed="apart",
        kind="relative",
    )


ROWS = (
    Claim(
        "The fused model is better than each individually aligned expert",
        "headline result",
        "Experts that are less narrow: ours are trained on one axis only, and know nothing of the others.",
        decides=(versus("mean of the axes", *(f"expert:{axis}" for axis in AXES)),),
        beside=(
            *(models(FILE, axis, "fused", f"expert:{axis}", "no worse") for axis in AXES),
            *(real(f"expert:{axis}") for axis in AXES),
        ),
        published=11.37,
        note="The lines beside ask whether the fused model keeps what each expert can do on its own axis.",
    ),
    Claim(
        "The fused model is better than ensembles of the experts",
        "headline result",
        "A trained ranker, or a judge of quality in place of the likelihood that ranks answers here.",
        decides=(versus("mean of the axes", *ENSEMBLES),),
        beside=(*(models(FILE, "mean", "fused", name) for name in ENSEMBLES), real("ensemble")),
        published=13.77,
        note="An ensemble costs as many generations as there are experts; its latency is in the result file.",
    ),
    Claim(
        "The fused model is better than merging the experts' weights",
        "headline result",
        "A merge whose weights are tuned on held-out rows; none was tuned here.",
        decides=(versus("mean of the axes", *MERGES),),
        beside=(
            *(models(FILE, "mean", "fused", name) for name in MERGES),
            models(FILE, "over_refusal", "fused", "average", "below"),
            *(real(name) for name in ("average", "task_arithmetic")),
        ),
        published=6.18,
    ),
    Claim(
        "The gating loss steers the routing to the right expert",
        "stage two, gating loss; figure of routing weights",
        "A base whose hidden states do not tell the axes apart.",
        decides=(routed("fused", "fused:gating-0"), routed("fused:random", "fused:random-0")),
        note="Routers start from a logistic regression on the axes' inputs; random: from random weights.",
        beside=(
            routed("fused:random-1", "fused:random-0"),
            routed("fused:gating-1e-1", "fused:gating-0"),
            routed("fused:gating-1", "fused:gating-0"),
            *(
                Comparison(
                    f"weight of the right expert, {axis}",
                    FILE,
                    at("routing", "fused", axis, axis),
                    at("routing", "fused:gating-0", axis, axis),
                    kind="weight",
                )
                for axis in AXES
            ),
        ),
    ),
    Claim(
        "The gating loss makes the answers better",
        "stage two, ablation without the gating loss; sensitivity to λ",
        "Axes that are not near their ceiling, or experts that harm each other more.",
        decides=(models(FILE, "mean", "fused", "fused:gating-0"),),
        note="Routers start from a logistic regression on the axes' inputs; random: from random weights.",
        beside=(
            models(FILE, "mean", "fused:random", "fused:random-0"),
            models(FILE, "mean", "fused:random-1", "fused:random-0"),
            models(FILE, "mean", "fused:gating-1e-1", "fused:gating-0"),
            models(FILE, "mean", "fused:gating-1", "fused:gating-0"),
            *(models(FILE, axis, "fused", "fused:gating-0") for axis in AXES),
            real("fused:gating-0"),
            real("fused:gating-0", "fused:gating-1"),
        ),
    ),
    Claim(
        "Drift regularisation holds an expert to its alignment",
        "stage two, drift regularisation",
        "Longer training at a larger learning rate, where an expert that is free would move much farther.",
        decides=(moved("1e-2"),),
        beside=(moved("1e-4"), moved("1e-3")),
        note="The lines are means over the three models in each of which one expert is held.",
    ),
    Claim(
        "Drift regularisation steers how much an expert contributes",
        "stage two, drift regularisation; figure of routing weights",
        "Values of γ beyond the published range, or a router that trains longer.",
        decides=(steered("1e-2"),),
        beside=(
            steered("1e-3"),
            *(models(FILE, axis, f"fused:{axis}-1e-2", "fused", "apart") for axis in AXES),
        ),
        note="The claim gives no sign that could be tested, so a difference on either side counts.",
    ),
    Claim(
        "The scores depend on how strongly drift is regularised",
        "figure of sensitivity to γ",
        "Stage two on data that the experts have not seen, where being held would matter more.",
        decides=(models(FILE, "mean", "fused:drift-1e-2", "fused", "apart"),),
        beside=(
            models(FILE, "mean", "fused:drift-1", "fused", "apart"),
            models(FILE, "over_refusal", "fused:drift-1", "fused", "apart"),
        ),
        note="The second strength, beside, lies far beyond the published range.",
    ),
    Claim(
        "Sending a token to top-2 is better than to top-1",
        "figure of the score against k",
        "Tasks that need two experts at once; here every prompt belongs to one axis.",
        decides=(models(FILE, "mean", "fused", "fused:top-1"),),
        beside=(
            models(FILE, "mean", "fused", "fused:top-3"),
            *(models(FILE, axis, "fused", "fused:top-1") for axis in AXES),
            real("fused:top-1"),
        ),
    ),
    Claim(
        "The score rises with the steps of stage two, and levels off",
        "figure of the score against fine-tuning steps",
        "A start that is far from its ceiling: routers that start from chance, or experts of another data set.",
        decides=(
            models(FILE, "mean", "fused", "fused:steps-15"),
            models(FILE, "mean", "fused:steps-480", "fused", "little"),
        ),
        beside=(
            models(FILE, "mean", "fused:steps-30", "fused:steps-15"),
            models(FILE, "mean", "fused:steps-60", "fused:steps-30"),
            models(FILE, "mean", "fused", "fused:steps-60"),
            models(FILE, "mean", "fused:steps-240", "fused"),
            real("fused:steps-25"),
            real("fused", "fused:steps-400"),
        ),
    ),
    Claim(
        "Alignment is a drift of the representation that an objective can control",
        "dual objective of the later version; figure of drift distances",
        "An objective on more layers than the last, or a base whose representation is not made for so few tokens.",
        decides=(drifted("fused:representation-1e-1"),),
        beside=(
            drifted("fused:representation-1e-2"),
            models(FILE, "mean", "fused:representation-1e-1", "fused"),
            models(FILE, "over_refusal", "fused:representation-1e-1", "fused", "below"),
        ),
        note="The claim is that the distance can be moved; whether the scores gain by it stands beside.",
    ),
    Claim(
        "The mixture form answers better than the Instruct form, and faster",
        "comparison of the two forms",
        "A base that can read three answers and write a fourth; ours was never trained to use context in such a way.",
        decides=(
            models(FILE, "mean", "fused", "instruct"),
            models(FILE, "latency", "fused", "instruct", "below", "relative"),
        ),
        beside=tuple(models(FILE, axis, "fused", "instruct") for axis in AXES),
    ),
    Claim(
        "Training the attention as well makes the fused model better",
        "stage two trains LoRA on attention beside the experts",
        "Experts whose own attention was trained, so that a shared one has something to reconcile.",
        decides=(models(FILE, "mean", "fused:attention", "fused"),),
        beside=(
            models(FILE, "mean", "fused", "fused:routers"),
            real("fused", "fused:attention"),
            real("fused:routers"),
            Comparison(
                "gain by the attention less gain by the experts",
                FILE,
                less("attention", ("models", "fused:attention", "mean"), ("models", "fused", "mean")),
                less("experts", ("models", "fused", "mean"), ("models", "fused:routers", "mean")),
                claimed="apart",
            ),
        ),
    ),
    Claim(
        "The gains hold for Llama-2-7B on AlpacaEval, BeaverTails and TruthfulQA, as language models judge them",
        "all tables",
        "A run of `recipes/h3fusion-llama2-7b.yaml` over several seeds on a machine that holds the model.",
        untestable=(
            "A model of this size and the judges do not fit on the machines at hand. What is compared above are the "
            "signs of the differences, on a miniature world with exact rules as judges."
        ),
    ),
)
