"""What AlignX (arXiv 2602.07381) claims, and what of our result files decides about it; no number in the prose."""

from claims_asked import Claim, Comparison, Costs, Path, Sum, at, mean_of, models

FILE = "alignx.json"
FORMS = "alignx_forms.json"
COLLAPSE = "alignx_collapse.json"
SIGNS = "collapse_seeds.json"
REAL = "alignx_real_tiny.json"
PAIRS = ("helpful-harmless", "helpful-honest", "harmless-honest")
OUTSIDE = ("new names", "new phrasings", "both", "foreign")  # what no axis was trained on
WORKS = ("decoding, one row", "decoding, several rows", "prefill, short", "prefill, long")
OURS = "one_pass_k1_calibrators_output"
UNRELIABLE = 5.0  # per cent of prompts misrouted that a user would call unreliable; guessing gives two thirds
ROW_BY_ROW = (
    "Another form of the calibrator, which the paper describes in words, or strengths fitted on held-out prompts."
)


def misrouted(ours: str, theirs: str) -> Comparison:
    """Misrouted prompts that are unlike the training data: the mean over the groups."""

    def of(model: str) -> Sum:
        return mean_of(model, *(("models", model, f"{group}: misrouting") for group in OUTSIDE))

    return Comparison("misrouting, new prompts", FILE, of(ours), of(theirs), claimed="below")


def groups(ours: str, theirs: str) -> tuple[Comparison, ...]:
    """The same for each group."""
    return tuple(models(FILE, f"{group}: misrouting", ours, theirs, "below") for group in OUTSIDE)


def unreliable(group: str) -> Comparison:
    """Misrouting beyond what a user would call unreliable."""
    path: Path = ("models", "fused:plain", f"{group}: misrouting")
    return Comparison(f"{group}: misrouting above the mark", FILE, Sum(((1.0, path),), "plain router", -UNRELIABLE))


def calibrator(name: str, model: str, rival: str = "fused:plain") -> Claim:
    """Whether a calibrator makes the routing of new prompts more reliable."""
    return Claim(
        f"{name} more reliable",
        "stage two, calibrators",
        ROW_BY_ROW,
        decides=(misrouted(model, rival),),
        beside=(
            *groups(model, rival),
            models(FILE, "foreign: ece", model, rival, "below", "calibration"),
            models(REAL, "shifted: misrouting", model, rival, "below"),
        ),
        note="The last line is a real tiny model, one seed: a value without an interval decides nothing.",
    )


def angle(place: str) -> Sum:
    """The mean angle between the axes' main directions."""
    return mean_of(place, *(("values", f"angle {pair} {place}") for pair in PAIRS))


def of_signs(number: str, claimed_number: str, kind: str) -> Comparison:
    """A number of the diagnosis under the axes' own experts, less the same under the base."""
    ours, theirs = (Sum(((1.0, ("values", f"{claimed_number} {place}")),), place) for place in ("own experts", "base"))
    return Comparison(number, SIGNS, ours, theirs, kind=kind)


def forgotten(kind: str, cell: str) -> Sum:
    """One cell of a forgetting matrix."""
    return Sum(((1.0, ("forgetting", kind, cell)),), kind)


def time(over: str) -> Costs:
    """Processor time of AlignX's whole form, by work."""
    works = tuple((name, ("speed", place, "cpu", f"over_{over}", OURS), None) for place, name in enumerate(WORKS))
    return Costs("processor time", FORMS, works, OURS, over)


def memory(over: str) -> Costs:
    """Bytes of the weights, and the largest resident set."""
    works = (
        ("weights", ("weight_bytes", OURS), ("weight_bytes", over)),
        ("peak", ("peak_bytes", OURS), ("peak_bytes", over)),
    )
    return Costs("memory", FORMS, works, OURS, over)


UNSAFE = tuple(
    Sum(((-1.0, ("models", model, "harmless")),), label, 100.0)
    for model, label in (("fused", "fused"), ("base", "base"), ("mixture", "mixture"), ("fused:plain", "fused:plain"))
)
OVER_BASE = "A base of which the good behaviours are not a part already, and judges that are models."

ROWS = (
    Claim(
        "AlignX wins more often on helpful prompts than the base",
        "headline result, win rate",
        OVER_BASE,
        decides=(models(FILE, "helpful", "fused", "base"),),
        beside=tuple(models(FILE, "helpful", "fused", rival) for rival in ("mixture", "fused:plain", "fused:token")),
        published=171.5,
    ),
    Claim(
        "AlignX is truthful and informative more often than the base",
        "headline result, truthful×informative",
        OVER_BASE,
        decides=(models(FILE, "honest", "fused", "base"),),
        beside=tuple(models(FILE, "honest", "fused", rival) for rival in ("mixture", "fused:plain", "fused:token")),
        published=110.1,
    ),
    Claim(
        "AlignX violates safety less often than the base",
        "headline result, safety violations",
        OVER_BASE,
        decides=(Comparison("answers that are not refusals", FILE, UNSAFE[0], UNSAFE[1], claimed="below"),),
        beside=(
            Comparison("answers that are not refusals", FILE, UNSAFE[0], UNSAFE[2], claimed="below"),
            Comparison("answers that are not refusals", FILE, UNSAFE[0], UNSAFE[3], claimed="below"),
            models(FILE, "over_refusal", "fused", "base", "little"),
        ),
        published=-4.3,
    ),
    Claim(
        "Training on one axis forgets the others (axis collapse)",
        "axis collapse, catastrophic forgetting",
        "Training that rehearses the other axes, or a base with room for all of them.",
        decides=(
            Comparison(
                "loss on the other axes", SIGNS, Sum(((1.0, ("values", "loss off_diagonal")),), "experts"), kind="nats"
            ),
            models(FILE, "mean", "sequential", "mixture", "below"),
        ),
        beside=(
            Comparison("score lost elsewhere", SIGNS, Sum(((1.0, ("values", "score off_diagonal")),), "experts")),
            Comparison(
                "loss on helpful after honest", COLLAPSE, forgotten("sequential", "honest → helpful"), kind="nats"
            ),
            models(FILE, "facts", "sequential", "base", "below"),
        ),
    ),
    Claim(
        "The experts' features become disjoint (axis collapse)",
        "axis collapse, disjoint feature spaces",
        "Experts that train longer or with more parameters, on a base with more layers.",
        decides=(Comparison("angle between the axes", SIGNS, angle("own experts"), angle("base"), kind="degrees"),),
        beside=(
            *(of_signs(f"angle, {pair}", f"angle {pair}", "degrees") for pair in PAIRS),
            of_signs("silhouette, cosine", "silhouette cosine", "share"),
        ),
        note="Rows of different axes are different text and stand apart in any model: compare with the base.",
    ),
    Claim(
        "Routing between such experts is unreliable on prompts like the training data (axis collapse)",
        "axis collapse, unreliable routing",
        "Axes whose prompts look alike, as real ones may.",
        decides=(unreliable("test rows"),),
        beside=(unreliable("seen"), unreliable("new names"), unreliable("new phrasings")),
        note="Called unreliable is a share of misrouted prompts above a mark that the row gives; it is taken off.",
    ),
    Claim(
        "Routing between such experts is unreliable on foreign prompts (axis collapse)",
        "axis collapse, unreliable routing",
        "Anchors or training prompts that cover what is foreign here.",
        decides=(unreliable("foreign"),),
        beside=(
            unreliable("both"),
            models(FILE, "foreign: misrouting", "fused:token", "fused:plain", "below"),
            Comparison(
                "ECE, foreign less seen",
                FILE,
                at("models", "fused:plain", "foreign: ece"),
                at("models", "fused:plain", "seen: ece"),
                kind="calibration",
            ),
        ),
        note="The mark is the same as above. The last line asks whether the router knows that it is wrong.",
    ),
    Claim(
        "Fusing avoids the collapse that training axis after axis shows",
        "headline result",
        "A sequential training that rehearses or regularises; ours does neither.",
        decides=(models(FILE, "mean", "fused", "sequential"),),
        beside=(
            models(FILE, "mean", "mixture", "sequential"),
            models(FILE, "mean", "fused", "mixture"),
            models(FILE, "facts", "fused", "mixture", "no worse"),
        ),
    ),
    Claim(
        "Prompt-injected fine-tuning makes better experts",
        "stage one",
        "A base that can follow an injected instruction; ours has hardly seen any.",
        decides=(models(FILE, "mean", "fused", "fused:sft"),),
        beside=(
            models(FILE, "mean", "fused:plain", "fused:sft-plain"),
            models(FILE, "mean", "fused:token", "fused:sft-token"),
            Comparison(
                "loss on helpful after harmless",
                COLLAPSE,
                forgotten("injected", "harmless → helpful"),
                forgotten("sft", "harmless → helpful"),
                claimed="below",
                kind="nats",
            ),
        ),
        note="Both kinds of expert train for as many steps.",
    ),
    calibrator("The fractal calibrator makes routing", "fused:fractal"),
    calibrator("The natural calibrator makes routing", "fused:natural"),
    calibrator("Both calibrators together make routing", "fused:both"),
    Claim(
        "The calibrators make the answers better",
        "stage two, calibrators; ablation",
        "Prompts on which the routing is wrong more often, so that there is more to win.",
        decides=(models(FILE, "mean", "fused:both", "fused:plain"),),
        beside=(
            models(FILE, "mean", "fused:fractal", "fused:plain"),
            models(FILE, "mean", "fused:natural", "fused:plain"),
            models(FILE, "answer ECE", "fused:both", "fused:plain", "below", "calibration"),
        ),
    ),
    Claim(
        "Output calibration makes the answers better",
        "stage two, output calibration",
        "A longer stage two, or a larger base, where a correction of the output has something to correct.",
        decides=(models(FILE, "mean", "fused", "fused:both"),),
        beside=(
            models(FILE, "mean", "fused:output", "fused:plain"),
            models(FILE, "answer ECE", "fused", "fused:both", "below", "calibration"),
        ),
    ),
    Claim(
        "One mixture a prompt answers as well as one a token",
        "stage two, routing by instance",
        "A base with more layers behind the routing layer; ours leaves two.",
        decides=(models(FILE, "mean", "fused", "fused:token", "no worse"),),
        beside=(
            models(FILE, "helpful", "fused", "fused:token", "no worse"),
            models(FILE, "mean", "fused:two-pass", "fused:token", "no worse"),
            models(FILE, "mean", "fused:top-2", "fused:token-2", "no worse"),
        ),
    ),
    Claim(
        "AlignX takes less time than earlier mixtures of experts",
        "headline result, latency: over so much less",
        "A GPU, or an earlier mixture in the factored form.",
        decides=(time("unfactored_k2"), time("dense_moe")),
        beside=(time("token_k2"), time("dense_base")),
        published=-35.0,
        note="An earlier mixture writes its experts out whole. The first line beside is factored, as ours is.",
    ),
    Claim(
        "AlignX takes less memory than earlier mixtures of experts",
        "headline result, memory: over so much less",
        "An earlier mixture in the factored form.",
        decides=(memory("unfactored_k2"), memory("dense_moe")),
        beside=(memory("token_k2"), memory("dense_base")),
        published=-35.0,
        note="An earlier mixture writes its experts out whole. The first line beside is factored, as ours is.",
    ),
    Claim(
        "The gains hold for four backbones of seven billion parameters",
        "all tables",
        "Runs of the recipe on these models, on a machine that holds them.",
        untestable=(
            "Models of this size do not fit on the machines at hand, and the published figures are verdicts of "
            "language models. The signs are compared above."
        ),
    ),
)
