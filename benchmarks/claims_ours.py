"""What Triune itself claims, and what of our result files decides about it; no number in the prose."""

from claims_asked import EACH, LEAST, MOST, Best, Claim, Claimed, Comparison, Costs, Path, Sum, at, mean_of, models
from claims_h3fusion import real

FILE = "h3fusion.json"
CONFLICT = "conflict.json"
SIZES = "sizes.json"
WHOLE = "whole_model.json"
MERGES = ("average", "task_arithmetic", "ties")
WORKS = ("prefill", "decoding, one row", "decoding, several rows")


def scarce(joint: str, rival: str = "mixture:joint") -> Comparison:
    """Fused against one LoRA on the same joint rows: with stage two's steps, or with those of all training."""
    return Comparison(
        "mean", FILE, at("models", f"fused:joint-{joint}", "mean"), at("models", f"{rival}-{joint}", "mean")
    )


def thin(joint: str, rival: str = "mixture:rank-1-joint") -> Comparison:
    """The same with experts and mixture of the lowest rank."""
    return Comparison(
        "mean", FILE, at("models", f"fused:rank-1-joint-{joint}", "mean"), at("models", f"{rival}-{joint}", "mean")
    )


def unguided(joint: str) -> Comparison:
    """Routers from a regression on the joint rows against routers that start from random weights."""
    return models(FILE, "mean", f"fused:joint-{joint}", f"fused:random-joint-{joint}")


def shared(place: str, *names: str) -> Sum:
    """The mean of the axes of some models where so much wording is shared."""
    return mean_of(f"{', '.join(names)}, {WORDING[place]}", *(("sharing", place, name, "mean") for name in names))


WORDING = {LEAST: "least shared", MOST: "most shared"}


def lead(place: str) -> Sum:
    """How far the fused model leads the mean of the merges."""
    rivals = tuple((-1.0 / len(MERGES), ("sharing", place, name, "mean")) for name in MERGES)
    return Sum(((1.0, ("sharing", place, "fused", "mean")), *rivals), f"lead, {WORDING[place]}")


def by_wording(rival: str) -> Comparison:
    """The fused model's lead over a rival, for each part of shared wording."""
    return Comparison(
        "mean, part shared",
        CONFLICT,
        at("sharing", EACH, "fused", "mean"),
        at("sharing", EACH, rival, "mean"),
    )


def by_size(number: str, ours: str, rivals: tuple[str, ...], claimed: Claimed = "above") -> Comparison:
    """A difference for each size of the base."""
    paths: tuple[Path, ...] = tuple(("sizes", EACH, "models", name, number) for name in rivals)
    return Comparison(
        f"{number}, size",
        SIZES,
        at("sizes", EACH, "models", ours, number),
        Best(paths) if len(paths) > 1 else at(*paths[0]),
        claimed=claimed,
    )


def whole(form: str) -> Costs:
    """Time of a whole model, by work."""
    works = tuple((name, ("rows", 0, "speed", place, "over_dense", form), None) for place, name in enumerate(WORKS))
    return Costs("time", WHOLE, works, form, "one dense model", claimed="little", kind="about")


def bytes_of(form: str) -> Costs:
    """Memory of a whole model."""
    peak: Path = ("rows", 0, "peak_bytes", "inference")
    weights: Path = ("rows", 0, "parameter_bytes")
    name = {"mixtral": "mixtral_eager"}.get(form, form)
    works = (("weights", (*weights, form), (*weights, "dense")), ("peak", (*peak, name), (*peak, "dense")))
    return Costs("memory", WHOLE, works, form, "one dense model", claimed="little", kind="about")


ROWS = (
    Claim(
        "The exact factored mixture costs about as much time as one dense model",
        "ours, the factored mixture",
        "A measurement on a GPU, or a rank that is not small beside the width.",
        decides=(whole("fused"),),
        beside=(whole("mixtral_eager"), whole("mixtral_grouped_mm")),
        note="Beside: the same experts written out whole, as transformers' Mixtral. No seeds: medians of repeats.",
    ),
    Claim(
        "The exact factored mixture takes about as much memory as one dense model",
        "ours, the factored mixture",
        "Many experts of a high rank.",
        decides=(bytes_of("fused"),),
        beside=(bytes_of("mixtral"),),
    ),
    Claim(
        "At equal total budget one LoRA on the mixture of all data ties the fused model",
        "ours, against the papers' comparison, which leaves this row out",
        "A base and data large enough that one adapter cannot hold all axes.",
        decides=(models(FILE, "mean", "fused", "mixture", "little"),),
        beside=(
            models(FILE, "over_refusal", "fused", "mixture", "little"),
            models("trinityx.json", "mean", "fused:mocae-2", "mixture", "little"),
            models("alignx.json", "mean", "fused", "mixture", "little"),
            models("alignx.json", "mean", "fused:token-2", "mixture", "little"),
            Comparison(
                "mean, the demo's worlds", "demo_seeds.json", at("fused", "mean"), at("mixture", "mean"), "little"
            ),
            real("mixture", claimed="little"),
        ),
        note="A tie is an interval within the negligible band; an equal budget is one of as many steps in all.",
    ),
    Claim(
        "Fusing pays where joint data are scarce, at stage two's budget",
        "ours, the scarce-data curve",
        "Experts made from data as scarce as the joint rows.",
        decides=(scarce("5"), scarce("20")),
        beside=(
            scarce("100"),
            scarce("400"),
            *(thin(joint) for joint in ("5", "20", "100", "400")),
            *(unguided(joint) for joint in ("5", "20")),
            *(real(f"mixture:joint-{joint}", f"fused:joint-{joint}") for joint in ("5", "20", "100", "500")),
        ),
        note="Experts are given, from all their data; fused model and mixture see the same few joint rows an axis.",
    ),
    Claim(
        "Fusing pays where joint data are scarce, at equal total budget as well",
        "ours, the scarce-data curve",
        "A mixture whose training stops at its best on held-out rows, before it learns the few by heart.",
        decides=(scarce("5", "mixture:long-joint"), scarce("20", "mixture:long-joint")),
        beside=(
            scarce("100", "mixture:long-joint"),
            scarce("400", "mixture:long-joint"),
            thin("5", "mixture:rank-1-long-joint"),
            thin("20", "mixture:rank-1-long-joint"),
            thin("100", "mixture:rank-1-long-joint"),
            thin("400", "mixture:rank-1-long-joint"),
        ),
        note="The mixture has as many steps on the few joint rows as experts and stage two have together.",
    ),
    Claim(
        "The more wording the axes share, the more a merge loses",
        "ours, conflict made measurable",
        "Another kind of conflict: here the wording alone is varied.",
        decides=(Comparison("mean", CONFLICT, shared(MOST, *MERGES), shared(LEAST, *MERGES), claimed="below"),),
        beside=tuple(
            Comparison("mean", CONFLICT, shared(MOST, name), shared(LEAST, name), claimed="below")
            for name in (*MERGES, "mixture")
        )
        + tuple(
            Comparison(
                "over_refusal",
                CONFLICT,
                at("sharing", MOST, name, "over_refusal"),
                at("sharing", LEAST, name, "over_refusal"),
            )
            for name in (*MERGES, "mixture")
        ),
        note="A merge loses where it refuses more of what is harmless: over-refusal is claimed to be above, beside.",
    ),
    Claim(
        "The fused model keeps its scores under conflict",
        "ours, conflict made measurable",
        "Axes whose wording gives the router nothing to go by.",
        decides=(Comparison("mean", CONFLICT, shared(MOST, "fused"), shared(LEAST, "fused"), claimed="no worse"),),
        beside=(
            Comparison(
                "over_refusal",
                CONFLICT,
                at("sharing", MOST, "fused", "over_refusal"),
                at("sharing", LEAST, "fused", "over_refusal"),
                claimed="little",
            ),
        ),
    ),
    Claim(
        "The lead of fusing over merging grows with conflict",
        "ours, conflict made measurable",
        "Merges whose weights are tuned for each part of shared wording.",
        decides=(Comparison("lead over the merges", CONFLICT, lead(MOST), lead(LEAST)),),
        beside=tuple(by_wording(rival) for rival in (*MERGES, "mixture")),
    ),
    Claim(
        "The lead of fusing over merging keeps its sign as the model grows",
        "ours, larger worlds",
        "A base of another order of size.",
        decides=(by_size("mean", "fused", MERGES),),
        beside=(by_size("over_refusal", "fused", ("average",), "below"), by_size("facts", "fused", ("average",))),
    ),
    Claim(
        "The tie with one LoRA on the mixture stays as the model grows",
        "ours, larger worlds",
        "A base of another order of size, or more data for the mixture to learn from.",
        decides=(by_size("mean", "fused", ("mixture",), "little"),),
        beside=tuple(by_size(axis, "fused", ("mixture",), "little") for axis in ("helpful", "harmless", "honest")),
    ),
    Claim(
        "That fusing pays where joint data are scarce keeps its sign as the model grows",
        "ours, larger worlds",
        "A base of another order of size, which may need fewer joint rows.",
        decides=(by_size("mean", "scarce:fused", ("scarce:mixture",)),),
        beside=(
            by_size("mean", "scarce:fused", ("scarce:longer",)),
            by_size("over_refusal", "scarce:fused", ("scarce:mixture",), "below"),
            by_size("over_refusal", "scarce:fused", ("scarce:longer",), "below"),
        ),
        note="At stage two's budget; beside, a mixture that trains as long as experts and stage two together.",
    ),
)
