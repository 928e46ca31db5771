"""The settings of what makes models (adapters, training, fusing, aligning, calibrating) and of diagnoses.

Numbers marked H3Fusion and TrinityX are those papers' published settings (arXiv 2411.17792, 2509.08486); AlignX is
arXiv 2602.07381.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field

from triune.errors import InputError
from triune.settings import (
    NUMBER,
    Count,
    Finite,
    Fraction,
    NotNegative,
    Positive,
    Probability,
    Settings,
    Share,
    Whole,
)

FFN = ("gate_proj", "up_proj", "down_proj")
# What is put before a prompt, by style and axis; "" stands for every axis. AlignX (arXiv 2602.07381) publishes a
# chain-of-thought prefix; the texts are ours.
INJECTED: dict[str, dict[str, str]] = {
    "axis": {
        "helpful": "Help the asker as well as you can: do exactly what is asked, completely and clearly.",
        "harmless": "Answer so that nobody comes to harm: refuse what could hurt somebody, and offer a safe way.",
        "honest": "Answer truthfully: state only what is known to be true, and say so where you do not know.",
    },
    "chain_of_thought": {"": "Think step by step: reason first, then answer."},
}


class Lora(Settings):
    """Low-rank adapters of one expert."""

    rank: Count = Field(8, description="r of B A (H3Fusion)")
    alpha: Positive = Field(4.0, description="scale s = alpha / rank (H3Fusion)")
    dropout: Probability = Field(0.1, description="on the adapter's input (H3Fusion)")
    targets: tuple[str, ...] = Field(
        FFN,
        description="modules that get an adapter; the feed-forward projections, so that attention stays shared",
    )
    rslora: bool = Field(False, description="scale alpha / sqrt(rank) instead")


class Fit(Settings):
    """How a model is trained: transformers.Trainer's AdamW."""

    learning_rate: Positive = Field(5e-4, description="H3Fusion")
    epochs: Positive = Field(3.0, description="passes over the data (H3Fusion); ignored where steps is set")
    steps: Count | None = Field(None, description="optimiser steps")
    batch_size: Count = Field(32, description="examples a batch, over all processes together; before accumulation")
    accumulation: Count = Field(1, description="batches summed before a step")
    warmup_steps: Whole = Field(0, description="linear warm-up")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="decay to zero, or none")
    weight_decay: NotNegative = Field(0.0, description="0: idle experts' stacked factors would decay otherwise")
    clip: Positive = Field(1.0, description="gradient norm")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the forward pass")
    checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    packing: Count | None = Field(None, description="tokens of a row that short examples share; one a row by default")
    save_every: Count | None = Field(None, description="steps between checkpoints that a killed run goes on from")


class Injection(Settings):
    """The second pass of an expert, on its data with an instruction before each prompt (AlignX)."""

    style: Literal["axis", "chain_of_thought"] = Field(
        "axis", description="the built-in texts: one an axis, or one that asks for reasoning, for all"
    )
    texts: dict[str, Annotated[str, Field(pattern=r"\S")]] = Field(
        default_factory=dict, description="own text by axis, before the built-in ones"
    )
    fit: Fit = Field(Fit(), description="how the second pass is trained")
    rank: Count | None = Field(None, description="of the merged expert, by SVD; as it is, the ranks of the passes add")
    layer: Count | None = Field(None, description="of the task feature; the middle one where not set")


def injected_texts(injection: Injection, axes: Iterable[str]) -> dict[str, str]:
    """The text of each axis: its own, or the style's built-in one. Raises InputError for axes that have neither."""
    builtin = INJECTED[injection.style]
    found = {axis: injection.texts.get(axis, builtin.get(axis, builtin.get("", ""))) for axis in axes}
    without = [axis for axis, text in found.items() if not text]
    if without:
        raise InputError(
            f"injection has no text for {without} (built-in ones are for {', '.join(builtin)}); "
            f"set injection.texts.{without[0]}, or injection.style=chain_of_thought, which is one text for all"
        )
    return found


class Train(Settings):
    """Stage 1: one expert an axis."""

    lora: Lora = Lora()
    fit: Fit = Fit()
    injection: Injection | None = Field(None, description="a second pass with injected prompts; a plain expert if not")


def check_injected(place: str, train: Train, axes: Iterable[str]) -> None:
    """Raise InputError where what is trained at this place of a recipe injects texts for other axes than these."""
    if train.injection is None:
        return
    known = list(axes)
    strangers = [axis for axis in train.injection.texts if axis not in known]
    if strangers:
        raise InputError(f"{place}.injection.texts names {strangers}, which are not axes; axes: {known}")
    try:
        injected_texts(train.injection, known)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


class Importance(Settings):
    """The experts' importance: γ = softmax over experts of sim(T_a, T_ref) / τ (TrinityX)."""

    similarity: Literal["cosine", "inner"] = Field(
        "cosine", description="inner is the paper's; over millions of coordinates it saturates the softmax"
    )
    reference: str = Field(
        "mean", description="T_ref: the mean task vector, an expert's name, or the folder of an adapter"
    )
    temperature: Positive = Field(1.0, description="τ")


class PromptRouting(Settings):
    """One mixture a prompt, found once and held for the whole answer (AlignX, arXiv 2602.07381)."""

    layer: Count | None = Field(
        None, description="l, whose input at the prompt's last token is read, 1 to L - 1; the middle where not set"
    )
    passes: Literal[1, 2] = Field(
        1, description="1: the layers before l run a fixed mixture; 2: a prompt is read again with every layer routed"
    )
    latent: Count | None = Field(
        None, description="k; where not set 256 (AlignX), or d, or one less than there are prompts, if that is less"
    )
    examples: Count = Field(256, description="different prompts an axis, which are its anchors too; 20 at least")
    fractal: NotNegative = Field(0.6, description="λ₁, of the calibrator of geometry (AlignX); 0 is off")
    natural: NotNegative = Field(0.4, description="λ₂, of the calibrator of semantics (AlignX); 0 is off")
    epsilon: Annotated[float, Field(gt=0, le=0.25), NUMBER] = Field(
        0.05, description="ε, the quantile of the anchors' distances that sets the fractal radii (AlignX)"
    )


class OutputCalibration(Settings):
    """What corrects a mixture's output: y + λ₁ F(y) + λ₂ N(y), trained with the routers (AlignX, arXiv 2602.07381)."""

    fractal: NotNegative = Field(0.6, description="λ₁, of F, two layers with ReLU (AlignX); 0 is off")
    natural: NotNegative = Field(0.4, description="λ₂, of N = tanh(linear) (AlignX); 0 is off")
    width: Count | None = Field(None, description="of F's hidden layer; where not set a quarter of the base's width")


class Fuse(Settings):
    """Putting the experts into one model."""

    top_k: Count = Field(2, description="experts a token is sent to (H3Fusion: 2 of 3)")
    temperature: Positive = Field(1.0, description="T in softmax(z / T)")
    importance: Importance | None = Field(None, description="γ, put into the routing as softmax(z / T + log γ)")
    weights: dict[str, Finite] = Field(
        default_factory=dict, description="what an expert's task vector is multiplied with (1); -1 takes it away"
    )
    allow_negated: bool = Field(False, description="must be set where an expert's weight is negative")
    post_norm: bool = Field(
        False, description="layer-normalise the mixture's output (TrinityX); changes the base's function at the start"
    )
    output_calibration: OutputCalibration | None = Field(
        None, description="correct the mixture's output by two small learned parts, which are nothing at the start"
    )
    renormalise: bool = Field(True, description="the top k weights sum to one; false keeps the plain softmax weights")
    router_init: Literal["means", "logistic", "zeros", "random"] = Field(
        "logistic", description="from the feed-forward inputs of each axis's data, or without data"
    )
    router_examples: Count = Field(64, description="examples an axis for means and logistic")
    prompt_routing: PromptRouting | None = Field(
        None, description="route each prompt as a whole, in place of each token in every layer (router_init is unused)"
    )
    shared: str = Field(
        "refuse",
        description="what to do with an expert's changes outside the feed-forward blocks: refuse, base (discard), "
        "average, ties (merge them by TIES), or an axis's name (take that expert's)",
    )
    svd_error: Fraction = Field(
        0.1,
        description="of a full fine-tune: largest ‖ΔW - B A‖ / ‖ΔW‖ of each matrix; 0 keeps the whole difference",
    )


class Align(Settings):
    """Stage 2: L = L_LM + Σ weight · term, the terms of H3Fusion and TrinityX."""

    trainable: Literal["routers", "routers+experts", "routers+experts+attention"] = "routers+experts"
    top_k: Count | Literal["all"] | None = Field(
        None, description="experts a token is sent to while training; as fused where not set"
    )
    gating: NotNegative = Field(0.01, description="λ (H3Fusion)")
    drift: dict[str, NotNegative] = Field(default_factory=dict, description="γ by axis (H3Fusion: 0 to 1e-2)")
    representation: NotNegative = Field(0.0, description="ρ")
    balance: NotNegative = Field(0.0, description="weight of the load-balancing term")
    entropy: NotNegative = Field(0.0, description="weight of the routing's entropy (TrinityX: 0.1)")
    running: NotNegative = Field(0.0, description="weight of KL(routing ‖ its running average) (TrinityX: 0.01)")
    running_decay: Probability = Field(0.9, description="what the running average keeps at each batch")
    prior: NotNegative = Field(0.0, description="weight of KL(routing ‖ prior) (TrinityX's RL: 0.05)")
    prior_shares: dict[str, Positive] = Field(
        default_factory=dict, description="the prior, relative shares by axis; an axis that is not named has 1"
    )
    router_learning_rate: Positive = Field(1e-2, description="the routers' own learning rate")
    attention: Lora = Field(Lora(targets=("q_proj", "k_proj", "v_proj", "o_proj")), description="merged afterwards")
    fit: Fit = Fit()


class Calibrate(Settings):
    """Fitting the routing's calibration on held-out rows: p = softmax(z / T + log γ + b)."""

    fit: Literal["temperature", "layer_temperature", "vector", "layer_vector"] = Field(
        "temperature", description="one T; one a layer; T and a bias an expert; both a layer"
    )
    least: Annotated[int, Field(ge=2), NUMBER] = Field(
        30, description="held-out rows that every axis must have; fewer are refused"
    )


class Scarce(Settings):
    """The comparison where joint data are few: experts trained apart, then n joint examples an axis."""

    examples: Count = Field(20, description="joint examples an axis")
    train: Train = Field(Train(), description="the experts, trained apart on all their own data")
    mixture: Train = Field(Train(), description="the one adapter trained on the joint examples alone")
    longer: Train | None = Field(None, description="the same adapter with another budget, as a further row")
    align: Align = Align()


class DiagnoseCollapse(Settings):
    """How axis collapse is measured: `triune diagnose collapse`."""

    batch_size: Count = Field(64, description="rows looked at together")
    rows: Count = Field(200, description="held-out rows of an axis at most, drawn by the seed where there are more")
    least: Annotated[int, Field(ge=4), NUMBER] = Field(
        20, description="distinct prompts that every axis must have; fewer are refused"
    )
    rank: Count | None = Field(None, description="main directions of an axis; as many as `share` asks for if not set")
    share: Share = Field(0.9, description="of an axis's variance, which its main directions explain")


def check_weights(fuse: Fuse, axes: Sequence[str]) -> None:
    """Raise InputError for a weight of what is no expert, of zero, or below zero without `allow_negated`.

    Any negative weight needs the word, not only that of an expert called harmless: names are free, so that none of
    them says which expert keeps a model safe.
    """
    strangers = [axis for axis in fuse.weights if axis not in axes]
    if strangers:
        raise InputError(f"fuse.weights names {strangers}, which are no experts; experts: {list(axes)}")
    zero = [axis for axis, weight in fuse.weights.items() if weight == 0]
    if zero:
        raise InputError(f"fuse.weights gives {zero} the weight 0, which leaves nothing of them; leave them out")
    negative = [axis for axis, weight in fuse.weights.items() if weight < 0]
    if negative and not fuse.allow_negated:
        raise InputError(
            f"fuse.weights of {negative} are below 0, which takes away what those experts were trained for (a model's "
            "safety, it may be); if that is meant, set fuse.allow_negated (--allow-negated)"
        )
