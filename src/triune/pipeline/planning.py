"""What a recipe's run consists of: the checks before the first step, and the steps in order, each a verb."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from triune.baselines.mergekit_moe import check_installed, check_mergekit
from triune.data.preparing import Prepared, joint_of, write_prepared
from triune.data.streaming import Rows
from triune.data.templates import render
from triune.errors import InputError
from triune.fusion.importance import find_reference
from triune.fusion.opening import check_model
from triune.models.loading import load_tokenizer
from triune.models.preflight import check_base
from triune.pipeline import calibrating, evaluating, fusing, verbs
from triune.pipeline.comparing import comparison_steps
from triune.pipeline.exam import VERDICTS, Exam, exam_of
from triune.pipeline.fit_checks import check_batches, check_packed_routing, check_packing
from triune.pipeline.judging import check_judging, judge_answers
from triune.pipeline.sequential import stage_folders, stages
from triune.pipeline.serving import Model, check_servers, observe_model
from triune.pipeline.streaming import check_streamed, kept_rows, router_rows
from triune.pipeline.variants import experts_of, mixture_steps, training_steps, variant_steps
from triune.pipeline.verbs import Context, unless_finished
from triune.progress import Progress
from triune.recipe import FFN, Recipe
from triune.record import RECORD, Step, digest, read_record, write_json
from triune.served_settings import Served

Planned = dict[str, Callable[[], Path]]
ALONE = ("instruct", "sequential")  # trained in the run's own process, whatever `launch` says
LINEAR = (*FFN, "q_proj", "k_proj", "v_proj", "o_proj")  # of every supported family


@dataclass(frozen=True)
class Run:
    """A recipe under way: what it says, where it writes, what its data are, who watches."""

    recipe: Recipe
    out: Path
    prepared: Prepared
    progress: Progress
    dry: bool = False
    notice: Callable[[Step], None] | None = None  # as Context has it

    @property
    def context(self) -> Context:
        """The base (built in this run, where it is the miniature one), seed and watcher of every verb."""
        base = self.recipe.base
        if base.miniature is not None:
            base = base.model_copy(update={"path": str(self.out / "base")})
        return Context(base, self.recipe.seed, self.progress, self.dry, self.recipe.launch, self.notice)

    def joint(self, n: int | None) -> Rows:
        """The mixture of the axes' training rows, of all prompts or of `n` an axis."""
        return joint_of(self.prepared, n, self.recipe.seed)


def check_settings(recipe: Recipe) -> None:
    """What would otherwise fail after hours: the base, its context, the template, and what adapters are put on.

    Raises InputError.
    """
    parts = {"train": recipe.train, "mixture": recipe.mixture, "instruct": recipe.instruct}
    parts |= {} if recipe.sequential is None else {"sequential": recipe.sequential}
    if recipe.scarce is not None:
        parts |= {"scarce.train": recipe.scarce.train, "scarce.mixture": recipe.scarce.mixture}
    variants = {f"variants.{name}: ": recipe.variant(name) for name in recipe.variants}
    parts |= {f"{place}train": other.train for place, other in variants.items()}
    parts |= {f"mixtures.{name}: mixture": recipe.mixed(name).mixture for name in recipe.mixtures}
    targets = {f"{name}.lora.targets": part.lora.targets for name, part in parts.items()}
    fused = {"": recipe, **variants}
    targets |= {f"{place}align.attention.targets": each.align.attention.targets for place, each in fused.items()}
    for name, found in targets.items():
        strange = [target for target in found if target not in LINEAR]
        if strange:
            raise InputError(f"{name} names {strange}; the layers of these models are {', '.join(LINEAR)}")
    fits = {f"{name}.fit": part.fit for name, part in parts.items() if name not in ALONE}
    fits |= {f"{place}align.fit": each.align.fit for place, each in fused.items()}
    check_batches(recipe.launch, fits)
    check_packing(fits, recipe.base.max_length)
    check_packed_routing(fused)
    check_streamed(recipe)
    if needs_mergekit(recipe):
        check_installed()
    if recipe.base.path is None:
        return
    facts = check_base(recipe.base.path)
    if recipe.base.max_length > facts.context:
        raise InputError(
            f"base.max_length is {recipe.base.max_length}, but the context of {recipe.base.path} is {facts.context} "
            "tokens; lower it"
        )
    render(recipe.base.template, "?", load_tokenizer(facts.folder))
    if needs_mergekit(recipe):
        check_mergekit(recipe.base, recipe.mergekit_moe, len(recipe.axes))
    given = [data.expert for data in recipe.axes.values() if data.expert is not None]
    references = [find_reference(each.fuse.importance, list(recipe.axes)) for each in fused.values()]
    for folder in dict.fromkeys([*map(Path, given), *(place for place in references if place is not None)]):
        check_model(folder, recipe.base)


def needs_mergekit(recipe: Recipe) -> bool:
    """Whether a row of the comparison is made with the optional package mergekit."""
    return "mergekit_moe" in recipe.compare


def plan(run: Run) -> Planned:
    """The steps of a run by name, which is also each one's folder, in order.

    Raises InputError as `check_judging`, `check_servers` and `check_records`.
    """
    recipe, out, context = run.recipe, run.out, run.context
    exam = exam_of(recipe, out, check_judging(recipe, run.prepared, out))
    check_servers(context, models(recipe, out), exam, data_step(run))
    joint = run.joint(recipe.joint)
    steps: Planned = {"data": partial(write_data, run)}
    if recipe.base.miniature is not None:
        steps["base"] = partial(_pretrain, run)
    experts = experts_of(recipe, out)
    untrained = {axis: folder for axis, folder in experts.items() if recipe.axes[axis].expert is None}
    steps |= training_steps(run, untrained, recipe.train, "expert")
    if "mixture" in recipe.compare:
        steps["mixture"] = partial(
            verbs.train, context, joint, out / "mixture", recipe.mixture, title="one LoRA on the mixture"
        )
    if "sequential" in recipe.compare:
        steps |= _sequential_steps(run)
    if "mixtures" in recipe.compare:
        steps |= mixture_steps(run)
    steps |= comparison_steps(context, recipe, experts, kept_rows(joint), out)
    if "fused" in recipe.compare:
        start = router_rows(run, recipe.fuse, joint)
        steps["start"] = partial(fusing.fuse, context, experts, out / "start", recipe.fuse, start)
        steps["fused"] = partial(verbs.align, context, out / "start", joint, out / "fused", recipe.align)
    if "calibrated" in recipe.compare and recipe.calibrate is not None:
        held_out = [row for rows in run.prepared.calibration.values() for row in rows]
        steps["calibrated"] = partial(
            calibrating.calibrate, context, out / "fused", held_out, out / "calibrated", recipe.calibrate
        )
    if "variants" in recipe.compare:
        steps |= variant_steps(run)
    if recipe.scarce is not None:
        steps |= _scarce_steps(run, context)
    steps |= observing_steps(run, models(recipe, out), exam, with_costs=True)
    check_records(steps, out)
    return steps


def check_records(steps: Planned, out: Path) -> None:
    """Raise InputError for the record of a finished step that cannot be believed, before hours are spent on others."""
    for name in steps:
        if (out / name / RECORD).is_file():
            read_record(out / name)


def observing_steps(run: Run, found: Mapping[str, Model], exam: Exam, *, with_costs: bool) -> Planned:
    """Every model's answers and likelihoods, what each costs where asked, the judges' verdicts, and the scores."""
    context, out = run.context, run.out
    observed = {name: evaluating.samples_folder(out, name) for name in found}
    steps: Planned = {
        f"samples/{folder.name}": partial(observe_model, context, name, found[name], exam, folder)
        for name, folder in observed.items()
    }
    for name, model in found.items() if with_costs else ():
        # Those of scarce data have the shapes of their namesakes; a server's speed is not that of the model alone.
        if not name.startswith("scarce:") and not isinstance(model, Served):
            place = evaluating.costs_folder(out, name)
            steps[f"costs/{place.name}"] = partial(evaluating.measure_cost, context, name, model, exam, place)
    return steps | _scoring_steps(context, exam, observed, out)


def _scoring_steps(context: Context, exam: Exam, observed: Mapping[str, Path], out: Path) -> Planned:
    """What follows when all models have answered: the judges' verdicts, where the exam has judges, and the scores."""
    steps: Planned = {"scores": partial(evaluating.score, context, observed, exam, out / "scores")}
    if not exam.benchmarks:
        return steps
    return {VERDICTS: partial(judge_answers, context, exam, observed, out / VERDICTS), **steps}


def _sequential_steps(run: Run) -> Planned:
    """One LoRA over the axes in their order, a step a stage."""
    recipe = run.recipe
    settings = recipe.sequential or recipe.train.model_copy(update={"injection": None})
    rows = {axis: run.prepared.rows(axis) for axis in recipe.axes}
    found = stages(run.context, rows, run.out / "sequential", settings)
    return {str(folder.relative_to(run.out)): step for folder, step in found.items()}


def _scarce_steps(run: Run, context: Context) -> Planned:
    scarce, out = run.recipe.scarce, run.out / "scarce"
    if scarce is None:
        return {}
    rows = run.joint(scarce.examples)
    experts = {axis: out / "experts" / axis for axis in run.recipe.axes}
    steps = training_steps(run, experts, scarce.train, "scarce: expert")
    steps["scarce/mixture"] = partial(
        verbs.train, context, rows, out / "mixture", scarce.mixture, title="scarce: one LoRA on the mixture"
    )
    if scarce.longer is not None:
        steps["scarce/longer"] = partial(
            verbs.train, context, rows, out / "longer", scarce.longer, title="scarce: the mixture, longer"
        )
    start = router_rows(run, run.recipe.fuse, rows)
    steps["scarce/start"] = partial(fusing.fuse, context, experts, out / "start", run.recipe.fuse, start)
    steps["scarce/fused"] = partial(verbs.align, context, out / "start", rows, out / "fused", scarce.align)
    return steps


def models(recipe: Recipe, out: Path) -> dict[str, Model]:
    """The models that a recipe compares, by the names of scores.json, in the order of the table."""
    found: dict[str, Model] = {}
    for name in recipe.compare:
        if name == "experts":
            found |= {f"expert:{axis}": folder for axis, folder in experts_of(recipe, out).items()}
        elif name == "sequential":
            found[name] = list(stage_folders(out / name, list(recipe.axes)).values())[-1]
        elif name == "variants":
            found |= {f"fused:{variant}": out / "variants" / variant / "fused" for variant in recipe.variants}
        elif name == "served":
            found |= {f"served:{served}": settings for served, settings in recipe.served.items()}
        elif name == "mixtures":
            found |= {f"mixture:{mixture}": out / name / mixture for mixture in recipe.mixtures}
        else:
            found[name] = None if name == "base" else out / name
    if recipe.scarce is not None:
        names = ("mixture", "longer", "fused") if recipe.scarce.longer is not None else ("mixture", "fused")
        found |= {f"scarce:{name}": out / "scarce" / name for name in names}
    return found


def data_step(run: Run) -> Step:
    """The step that `write_data` takes."""
    recipe = run.recipe
    settings = {"joint": recipe.joint, "scarce": recipe.scarce and recipe.scarce.examples, "seed": recipe.seed}
    streams = {f"stream {axis}": own.identity for axis, own in run.prepared.streams.items()}
    return Step(run.out / "data", "data", settings, {"rows": digest(repr(run.prepared)), **streams})


def write_data(run: Run) -> Path:
    step = data_step(run)
    with unless_finished(step, run.context) as draft:
        if draft is not None:
            write_prepared(run.prepared, run.recipe, draft)
    return step.folder


def _pretrain(run: Run) -> Path:
    """The miniature base: corpus, tokenizer, tiny Llama, pretraining; an ordinary Hugging Face folder."""
    from triune.data.miniature.corpus import base_corpus
    from triune.data.miniature.vocabulary import vocabulary
    from triune.data.miniature.world import build_world
    from triune.models.pretraining import Pretraining, pretrain
    from triune.models.tiny import build_tokenizer, tiny_llama

    recipe, settings = run.recipe, run.recipe.base.miniature
    if settings is None:
        raise InputError("the recipe's base is not the miniature one")
    world = build_world(recipe.seed, settings.world)
    texts = base_corpus(world, random.Random(f"{recipe.seed} corpus"))
    inputs = {"corpus": digest(texts)}
    # The corpus stands for the world.
    how_made = {"miniature": settings.model_dump(exclude={"world"}), "seed": recipe.seed}
    step = Step(run.out / "base", "pretrain", how_made, inputs)
    with unless_finished(step, run.context) as draft:
        if draft is not None:
            tokenizer = build_tokenizer(vocabulary(world))
            model = tiny_llama(
                len(tokenizer),
                seed=recipe.seed,
                hidden_size=settings.hidden_size,
                n_layers=settings.layers,
                intermediate_size=settings.intermediate_size,
                n_heads=settings.heads,
            )
            how = Pretraining(
                steps=settings.steps,
                rows=settings.batch_size,
                muon_lr=settings.learning_rate,
                seed=recipe.seed,
            )
            curve = pretrain(model, tokenizer, texts, how, progress=run.progress)
            verbs.save_model(model, tokenizer, draft)
            write_json(draft / "curve.json", curve)
            write_json(draft / "spent.json", {"steps": len(curve), "examples": len(texts)})
    return step.folder
