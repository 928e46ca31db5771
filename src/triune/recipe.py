"""A recipe: one YAML file that says everything a run does.

Models of pydantic; unknown keys are refused. Every default stands once: here, and for what makes models in
`triune.method_settings`, for merges and baselines in `triune.baseline_settings`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from triune.baseline_settings import Arrow, MergekitMoe, Merges, XLora
from triune.data_settings import (
    NAME,
    AxisData,
    Benchmark,
    Generative,
    Likelihood,
    MiniatureTests,
    MultipleChoice,
    PreferenceAccuracy,
    Slice,
    WorldSettings,
    check_judged,
    generative,
)
from triune.judge_settings import JudgeSettings
from triune.launch_settings import Launch
from triune.method_settings import (
    FFN,
    Align,
    Calibrate,
    Fit,
    Fuse,
    Importance,
    Injection,
    Lora,
    Scarce,
    Train,
    check_injected,
    check_weights,
)
from triune.quantised_settings import Quantised, check_quantised
from triune.recipe_variants import otherwise
from triune.served_settings import Served, check_served
from triune.settings import NUMBER, Count, Positive, Settings, Whole

__all__ = [
    "FFN",
    "MODELS",
    "NAME",
    "SHARED",
    "Align",
    "AxisData",
    "Base",
    "Baseline",
    "Benchmark",
    "Calibrate",
    "Compared",
    "Fit",
    "Fuse",
    "Generative",
    "Importance",
    "Injection",
    "JudgeSettings",
    "Launch",
    "Likelihood",
    "Lora",
    "Merge",
    "Miniature",
    "MiniatureTests",
    "MultipleChoice",
    "PreferenceAccuracy",
    "Recipe",
    "Scarce",
    "Slice",
    "Train",
    "WorldSettings",
    "check_weights",
]

SHARED = ("refuse", "base", "average", "ties")


class Miniature(Settings):
    """The built-in base model, pretrained on the miniature world's corpus."""

    steps: Count = 600
    batch_size: Count = 16
    learning_rate: Positive = Field(2.5e-3, description="of Muon, on the matrices")
    hidden_size: Count = 128
    layers: Count = 3
    intermediate_size: Count = 384
    heads: Count = 4
    world: WorldSettings = WorldSettings()

    @model_validator(mode="after")
    def _divisible(self) -> "Miniature":
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size is {self.hidden_size}; it must be a multiple of 2 x heads = {2 * self.heads}, because "
                "rotary positions pair the dimensions of each head"
            )
        return self


class Base(Settings):
    """The base model θ₀: a local folder, a hub name, or the built-in miniature one."""

    path: Annotated[str, Field(min_length=1)] | None = Field(None, description="folder or hub name")
    miniature: Miniature | None = None
    template: str = Field("alpaca", description="a name of triune.data.templates.TEMPLATES")
    max_length: Annotated[int, Field(ge=8), NUMBER] = Field(300, description="tokens of prompt and answer (H3Fusion)")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantised: Quantised | None = Field(None, description="hold its linear layers in 4 or 8 bits (bitsandbytes)")

    @model_validator(mode="after")
    def _one_source(self) -> "Base":
        if (self.path is None) == (self.miniature is None):
            raise ValueError("give either path (a folder or a hub name) or miniature, not both and not neither")
        return self


Merge = Literal[
    "average",
    "sum",
    "linear",
    "task_arithmetic",
    "slerp",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "breadcrumbs",
    "model_stock",
    "tsvm",
    "rtsvm",
]
Baseline = Literal["ensemble", "ranking", "instruct", "xlora", "arrow", "mergekit_moe"]
Named = Literal["variants", "mixtures", "served"]  # several rows each, by the names under that key
Compared = Literal["base", "experts", "mixture", "sequential", Merge, Baseline, "fused", "calibrated", Named]
MODELS: tuple[Compared, ...] = ("base", "experts", "mixture", "average", "sum", "fused")


class Recipe(Settings):
    """Everything that `triune run` does."""

    title: str = "Untitled run"
    about: str = ""
    caveats: tuple[str, ...] = Field((), description="what this run does not show; printed in its report")
    seed: Whole = 0
    seeds: tuple[Whole, ...] = Field((), description="run once for each; `seed` is then not used")
    base: Base
    axes: dict[str, AxisData]
    train: Train = Train()
    mixture: Train = Field(Train(), description="the baseline: one adapter trained on the mixture")
    sequential: Train | None = Field(
        None, description="one adapter trained on the axes in turn, each stage so; as train, not injected, by default"
    )
    fuse: Fuse = Fuse()
    align: Align = Align()
    calibrate: Calibrate | None = Field(None, description="makes the row calibrated: fused, its routing calibrated")
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="further fused models: joint and dotted keys of train, fuse and align set otherwise",
    )
    mixtures: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="further rows of mixture: joint and dotted keys of mixture set otherwise"
    )
    served: dict[str, Served] = Field({}, description="models that a server answers for, by name; the row served")
    joint: Count | None = Field(None, description="examples an axis for mixture and align; all by default")
    compare: Annotated[tuple[Compared, ...], Field(min_length=1)] = MODELS
    merges: Merges = Merges()
    instruct: Train = Field(Train(), description="the summariser of H3Fusion Instruct")
    xlora: XLora = XLora()
    arrow: Arrow = Arrow()
    mergekit_moe: MergekitMoe = MergekitMoe()
    scarce: Scarce | None = None
    evaluate: tuple[Benchmark, ...] = Field((), description="benchmarks, at least one")
    judges: dict[str, JudgeSettings] = Field({}, description="who decides generative benchmarks, by name")
    launch: Launch = Field(Launch(), description="training steps in several processes")
    batch_size: Count = Field(128, description="prompts at once in evaluation")
    new_tokens: Count = Field(16, description="longest answer in generative tests")
    quick: dict[str, object] = Field(default_factory=dict, description="dotted keys set instead with --quick")

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if len(self.axes) < 2:
            raise ValueError(f"axes has {len(self.axes)}; a fusion needs at least two")
        odd = [axis for axis in self.axes if not NAME.fullmatch(axis)]
        if odd:
            raise ValueError(
                f"axes names {odd}; an axis's name is letters, digits, - and _ (folders are named after it)"
            )
        self._check_seeds()
        if not self.evaluate:
            raise ValueError("evaluate is missing or empty, so that nothing would be measured; add {kind: nll}, say")
        check_judged(generative(self.evaluate), self.judges)
        check_served(self.served, self.compare, self.evaluate)
        self._check_fuse()
        self._check_align("align", self.align)
        if self.scarce is not None:
            self._check_align("scarce.align", self.scarce.align)
        self._check_shared()
        self._check_injections()
        self._check_calibration()
        check_quantised(self)
        for name in self.variants:
            self.variant(name)
        for name in self.mixtures:
            self.mixed(name)
        return self

    def _check_seeds(self) -> None:
        if len(self.seeds) == 1:
            raise ValueError(f"seeds has only {self.seeds[0]}; give at least two, or seed: {self.seeds[0]} instead")
        twice = sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"seeds names {twice} more than once, so that one run would count as several; keep one")

    def variant(self, name: str) -> "Recipe":
        """The recipe with a variant's settings, its only model the fused one.

        Raises ValueError for other keys than `joint` and those of train, fuse and align, and for values that are
        refused.
        """
        found = otherwise(self, "variants", name, ("joint", "train", "fuse", "align"), "fused")
        given = all(data.expert is not None for data in self.axes.values())
        of_experts = [key for key in self.variants[name] if key.startswith("train.")]
        if given and of_experts:
            raise ValueError(
                f"variants.{name} sets {of_experts[0]}, but every axis has an expert already; leave it out"
            )
        return found

    def mixed(self, name: str) -> "Recipe":
        """The recipe with the settings of one of `mixtures`, its only model the mixture.

        Raises ValueError for other keys than `joint` and those of mixture, and for values that are refused.
        """
        return otherwise(self, "mixtures", name, ("joint", "mixture"), "mixture")

    def _check_calibration(self) -> None:
        for row in ("variants", "mixtures"):
            if row in self.compare and not getattr(self, row):
                raise ValueError(f"compare asks for {row}, but {row} is empty; name some, or leave the row out")
        if "calibrated" not in self.compare:
            return
        without = [axis for axis, data in self.axes.items() if data.calibration is None]
        if self.calibrate is None or "fused" not in self.compare or without:
            raise ValueError(
                "compare asks for calibrated, which needs the row fused, calibrate (calibrate: {} has the defaults) "
                f"and a calibration slice of every axis; missing of {without or 'none'}"
            )

    def _check_align(self, place: str, align: Align) -> None:
        for key in ("drift", "prior_shares"):
            strangers = [axis for axis in getattr(align, key) if axis not in self.axes]
            if strangers:
                raise ValueError(f"{place}.{key} names {strangers}, which are not axes; axes: {list(self.axes)}")
        if isinstance(align.top_k, int) and align.top_k > len(self.axes):
            raise ValueError(f"{place}.top_k is {align.top_k}, but there are only {len(self.axes)} experts; lower it")

    def _check_fuse(self) -> None:
        axes, importance = list(self.axes), self.fuse.importance
        if self.fuse.top_k > len(axes):
            raise ValueError(f"fuse.top_k is {self.fuse.top_k}, but there are only {len(axes)} experts; lower it")
        check_weights(self.fuse, axes)
        known = ("mean", *axes)
        if importance is not None and importance.reference not in known and not Path(importance.reference).is_dir():
            raise ValueError(
                f"fuse.importance.reference is {importance.reference!r}, which is no folder; allowed: "
                f"{', '.join(known)}, or the folder of an adapter or of a full fine-tune"
            )

    def _check_injections(self) -> None:
        if self.instruct.injection is not None:
            raise ValueError("instruct.injection is set, but the summariser has no second pass; leave it out")
        if self.sequential is not None and self.sequential.injection is not None:
            raise ValueError("sequential.injection is set, but it would be a second LoRA beside the one; leave it out")
        parts = {"train": self.train, "mixture": self.mixture, **{f"scarce.{k}": v for k, v in self.scarce or ()}}
        for place, part in parts.items():
            if isinstance(part, Train):
                check_injected(place, part, self.axes)

    def _check_shared(self) -> None:
        allowed = [*SHARED, *self.axes]
        if self.fuse.shared not in allowed:
            raise ValueError(f"fuse.shared is {self.fuse.shared!r}; allowed: {', '.join(allowed)}")
        trained = [self.train] if "fused" in self.compare else []
        trained += [self.scarce.train] if self.scarce is not None else []
        outside = sorted({target for train in trained for target in train.lora.targets if target not in FFN})
        if outside and self.fuse.shared == "refuse":
            raise ValueError(
                f"the experts' lora.targets {outside} lie outside the feed-forward blocks, which all experts share; "
                f"leave them out, or choose fuse.shared: {', '.join(allowed[1:])}"
            )
