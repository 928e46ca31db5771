"""Everything a run reads, written down before it starts: training rows, joint rows, benchmarks, and their proof."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from triune.data.mixing import joint_rows
from triune.data.nearest import unknown_name
from triune.data.questions import ChoiceSets
from triune.data.rows import write_rows
from triune.data.shifted import SHIFTED, shifted_prompts
from triune.data.slicing import axis_slice, benchmark_slice, preference_slice, question_slice, thinned
from triune.data.splits import Prompted, prompt_key, prove_disjoint
from triune.data.streamed import axis_stream, beginnings, described, mixture, prompt_hashes
from triune.data.streaming import Rows, ShardedRows, Stream
from triune.data.templates import TEMPLATES
from triune.data_settings import WorldSettings
from triune.errors import InputError
from triune.recipe import (
    AxisData,
    Generative,
    Likelihood,
    MiniatureTests,
    MultipleChoice,
    PreferenceAccuracy,
    Recipe,
    Slice,
)
from triune.record import write_json
from triune.types import BenchmarkPrompt, Example, Preference, Question

if TYPE_CHECKING:
    from triune.data.miniature.world import World

MINIATURE = "miniature"  # the source name of the built-in world
MINIATURE_ROWS = 400  # of an axis, where no limit is given
N_PROBES = 100  # examples an axis for routing maps and drift (H3Fusion draws 100)
N_ROUTED = 200  # and for the calibration of the routing, whose bins need more
N_GROUP = 100  # of a group that the routing is measured on
GROUPS = "groups.jsonl"
LEAST_GROUP = 5  # below which an axis is left out of such a group


@dataclass(frozen=True)
class Prepared:
    """What a recipe's data come to: rows to train on, rows and prompts to test with, and an account of both."""

    train: Mapping[str, list[Example]]
    test: Mapping[str, list[Example]]
    pairs: Sequence[Preference]
    questions: Sequence[ChoiceSets]
    prompts: Mapping[str, list[BenchmarkPrompt]]
    notes: Sequence[str]
    calibration: Mapping[str, list[Example]] = field(default_factory=dict)
    groups: Mapping[str, list[Example]] = field(default_factory=dict)  # prompts that routing is measured on
    # Of axes whose list in `train` is empty. Not in repr, the data's identity: each has one of its own.
    streams: Mapping[str, ShardedRows] = field(default_factory=dict, repr=False)

    def rows(self, axis: str) -> Rows:
        """An axis's training rows."""
        return Stream((self.streams[axis],)) if axis in self.streams else self.train[axis]


def prepare(recipe: Recipe) -> Prepared:
    """Read every source of a recipe and prove that nothing tested was trained on.

    Raises InputError as the readers do, for an unknown template, an axis without data, and where a training and a
    test split share a prompt.
    """
    if recipe.base.template not in TEMPLATES:
        raise unknown_name("base.template", recipe.base.template, TEMPLATES)
    notes: list[str] = []
    train: dict[str, list[Example]] = {}
    test, calibration, streams = {}, {}, {}
    for axis, data in recipe.axes.items():
        if data.streaming is not None:
            streams[axis], train[axis] = axis_stream(data.train, data.streaming, axis, recipe.seed), []
        else:
            train[axis] = _examples(data.train, axis, recipe, f"{axis} train", notes)
        if data.test is not None:
            if data.test.source == MINIATURE:
                raise InputError(
                    f"{axis} test: source 'miniature' is for training; it is tested by the kind 'miniature'"
                )
            test[axis] = _examples(data.test, axis, recipe, f"{axis} test", notes)
        if data.calibration is not None:
            calibration[axis] = _calibration(data, axis, recipe, notes)
    pairs: list[Preference] = []
    questions: list[ChoiceSets] = []
    prompts: dict[str, list[BenchmarkPrompt]] = {}
    for benchmark in recipe.evaluate:
        if isinstance(benchmark, PreferenceAccuracy):
            pairs += _pairs(benchmark, recipe.seed, notes)
        elif isinstance(benchmark, MultipleChoice):
            questions += question_slice(benchmark, recipe.seed, notes)
        elif isinstance(benchmark, MiniatureTests):
            prompts |= _miniature_prompts(benchmark, recipe)
        elif isinstance(benchmark, Generative):
            prompts[benchmark.called] = _asked(benchmark, recipe.seed, notes)
        elif isinstance(benchmark, Likelihood) and not test:
            raise InputError("evaluate asks for nll, but no axis has a test slice; give axes.<axis>.test")
    groups = _groups(recipe, [*train.values(), *calibration.values()], notes)
    held: list[Sequence[Prompted]] = [*test.values(), pairs, questions, *prompts.values()]
    held += [*calibration.values(), *groups.values()]
    streams = {axis: replace(own, tested=prompt_hashes(held)) for axis, own in streams.items()}
    prepared = Prepared(train, test, pairs, questions, prompts, notes, calibration, groups, streams)
    _prove(prepared)
    return prepared


def _world(recipe: Recipe) -> "World":
    """The miniature world of a recipe; beside a base from elsewhere, the usual one."""
    from triune.data.miniature.world import build_world

    miniature = recipe.base.miniature
    return build_world(recipe.seed, WorldSettings() if miniature is None else miniature.world)


def _examples(wanted: Slice, axis: str, recipe: Recipe, name: str, notes: list[str]) -> list[Example]:
    if wanted.source == MINIATURE:
        from triune.data.miniature.axes import axis_examples

        _check_miniature(wanted, name)
        rng = random.Random(f"{recipe.seed} {axis}")
        rows = axis_examples(_world(recipe), axis, wanted.limit or MINIATURE_ROWS, rng)
        notes.append(f"{name}: {len(rows)} rows of the miniature world")
        return rows
    reading = axis_slice(wanted, axis, recipe.seed)
    notes.append(f"{name}: {reading}")
    return list(reading.items)


def _calibration(data: AxisData, axis: str, recipe: Recipe, notes: list[str]) -> list[Example]:
    """Held-out rows; of the built-in world those that are drawn after the training rows."""
    wanted, name = data.calibration, f"{axis} calibration"
    if wanted is None:
        return []
    if wanted.source != MINIATURE or data.train.source != MINIATURE:
        return _examples(wanted, axis, recipe, name, notes)
    _check_miniature(wanted, name)
    n_train, n_own = data.train.limit or MINIATURE_ROWS, wanted.limit or MINIATURE_ROWS
    both = data.train.model_copy(update={"limit": n_train + n_own})
    notes.append(f"{name}: {n_own} rows of the miniature world that are not trained on")
    return _examples(both, axis, recipe, f"{axis} train and calibration", [])[n_train:]


def _groups(recipe: Recipe, taken: Iterable[Sequence[Example]], notes: list[str]) -> dict[str, list[Example]]:
    """Named groups of prompts: the miniature world's, none of them `taken`, and that of the axes' `shifted` slices."""
    found: dict[str, dict[str, list[Example]]] = {}
    prompts = {row.prompt for rows in taken for row in rows}
    made_up = [axis for axis, data in recipe.axes.items() if data.train.source == MINIATURE]
    if made_up:
        from triune.data.miniature.shifted import prompt_groups

        found = prompt_groups(_world(recipe), made_up, frozenset(prompts), N_GROUP)
    known = frozenset(map(prompt_key, prompts))
    for axis, data in recipe.axes.items():
        if data.shifted is not None:
            if data.shifted.source == MINIATURE:
                raise InputError(f"axes.{axis}.shifted: the miniature world's groups are made unasked; leave it out")
            reading = shifted_prompts(data.shifted, axis, recipe.seed, N_GROUP, known)
            if len(reading.items) < LEAST_GROUP:
                raise InputError(
                    f"axes.{axis}.shifted holds {len(reading.items)} prompts; a rate wants {LEAST_GROUP} at least"
                )
            notes.append(f"{axis} shifted: {reading}")
            found.setdefault(SHIFTED, {})[axis] = list(reading.items)
    levelled = {group: _level(group, rows, notes) for group, rows in found.items()}
    return {group: rows for group, rows in levelled.items() if rows}


def _level(group: str, rows: Mapping[str, list[Example]], notes: list[str]) -> list[Example]:
    """As many rows of each axis as the scarcest has: groups that differ in their shares could not be compared."""
    enough = {axis: own for axis, own in rows.items() if len(own) >= LEAST_GROUP}
    for axis in [axis for axis in rows if axis not in enough]:
        notes.append(f"prompts {group!r}: {axis} is left out, which has {len(rows[axis])} (wanted {LEAST_GROUP})")
    n = min(map(len, enough.values()), default=0)
    return [row for own in enough.values() for row in own[:n]]


def _check_miniature(wanted: Slice, name: str) -> None:
    """The built-in world draws as many rows as asked for; the other settings would be ignored."""
    fields = {key: field.default for key, field in Slice.model_fields.items() if key not in ("source", "limit")}
    ignored = [key for key, default in fields.items() if getattr(wanted, key) != default]
    if ignored:
        raise InputError(f"{name}: source 'miniature' takes limit alone; leave out {', '.join(ignored)}")


def _pairs(benchmark: PreferenceAccuracy, seed: int, notes: list[str]) -> list[Preference]:
    reading = preference_slice(benchmark.data, seed)
    notes.append(f"preference test: {reading}")
    return list(reading.items)


def _miniature_prompts(benchmark: MiniatureTests, recipe: Recipe) -> dict[str, list[BenchmarkPrompt]]:
    from triune.data.miniature.benchmarks import benchmark_prompts

    return {name: thinned(rows, benchmark.limit) for name, rows in benchmark_prompts(_world(recipe)).items()}


def _asked(benchmark: Generative, seed: int, notes: list[str]) -> list[BenchmarkPrompt]:
    if benchmark.data.source == MINIATURE:
        raise InputError(f"{benchmark.called}: source 'miniature' has tests of its own, of the kind 'miniature'")
    reading = benchmark_slice(benchmark, seed)
    notes.append(f"benchmark {benchmark.called}: {reading}")
    return list(reading.items)


def _prove(prepared: Prepared) -> None:
    trained = [row for rows in prepared.train.values() for row in rows]
    tested: dict[str, Sequence[Example | Preference | ChoiceSets | BenchmarkPrompt]] = {
        **{f"test of {axis}": rows for axis, rows in prepared.test.items()},
        **{f"benchmark {name}": rows for name, rows in prepared.prompts.items()},
        "preference pairs": prepared.pairs,
        "multiple-choice questions": prepared.questions,
    }
    for name, rows in tested.items():
        prove_disjoint({"the training data": trained, name: rows})
    for name, group in prepared.groups.items():
        prove_disjoint({"the training data": trained, f"prompts {name!r}": group})
        axes = dict.fromkeys(row.axis for row in group)  # a prompt of two axes would have no axis of its own
        prove_disjoint({f"{axis} prompts {name!r}": [row for row in group if row.axis == axis] for axis in axes})
    held_out = [row for rows in prepared.calibration.values() for row in rows]
    if held_out:
        prove_disjoint({"the training data": trained, "the calibration data": held_out})
        for name, rows in tested.items():
            prove_disjoint({"the calibration data": held_out, name: rows})
        for name, group in prepared.groups.items():
            prove_disjoint({"the calibration data": held_out, f"prompts {name!r}": group})


def joint_of(prepared: Prepared, n: int | None, seed: int) -> Rows:
    """`joint_rows`; with streamed axes a stream, or each one's first `n` rows among the others'."""
    if not prepared.streams:
        return joint_rows(prepared.train, n, seed)
    if n is None:
        return mixture(prepared.train, prepared.streams, seed)
    return joint_rows(beginnings(prepared.train, prepared.streams, n), n, seed)


def probes(prepared: Prepared, most: int = N_PROBES) -> list[Example]:
    """Held-out rows to look inside the models with: up to `most` an axis, from test slices or benchmarks.

    A benchmark's row is its prompt with the first accepted answer.
    """
    rows = {axis: list(found) for axis, found in prepared.test.items()}
    for axis in prepared.train:
        for prompt in prepared.prompts.get(axis, []):
            answer = prompt.accepted[0] if prompt.accepted else ""
            rows.setdefault(axis, []).append(Example(axis, prompt.prompt, answer, prompt.benchmark, prompt.kind))
    return [replace(row, axis=axis) for axis, found in rows.items() for row in found[:most]]


def write_prepared(prepared: Prepared, recipe: Recipe, folder: Path) -> None:
    """Write it under `folder`: train.<axis>, test.<axis>, prompts.<benchmark>, joint, scarce, probes, summary, …"""
    for axis, rows in prepared.train.items():
        if axis not in prepared.streams:
            write_rows(folder / f"train.{axis}.jsonl", rows)
    if prepared.streams:
        write_json(folder / "streams.json", {axis: described(own) for axis, own in prepared.streams.items()})
    for axis, rows in prepared.test.items():
        write_rows(folder / f"test.{axis}.jsonl", rows)
    for name, prompts in prepared.prompts.items():
        write_rows(folder / f"prompts.{name}.jsonl", prompts)
    joint = joint_of(prepared, recipe.joint, recipe.seed)
    if not isinstance(joint, Stream):
        write_rows(folder / "joint.jsonl", joint)
    if recipe.scarce is not None:
        scarce = joint_of(prepared, recipe.scarce.examples, recipe.seed)
        write_rows(folder / "scarce.jsonl", () if isinstance(scarce, Stream) else scarce)
    write_rows(folder / "probes.jsonl", probes(prepared))
    write_rows(folder / "routed.jsonl", probes(prepared, N_ROUTED))
    if prepared.groups:
        # One file; `source` names a row's group.
        write_rows(folder / GROUPS, (replace(r, source=name) for name, rows in prepared.groups.items() for r in rows))
    for axis, rows in prepared.calibration.items():
        write_rows(folder / f"calibration.{axis}.jsonl", rows)
    if prepared.pairs:
        write_rows(folder / "preference.jsonl", prepared.pairs)
    for name in ("mc1", "mc2") if prepared.questions else ():
        rows_of: list[Question] = [getattr(sets, name) for sets in prepared.questions]
        write_rows(folder / f"{name}.jsonl", rows_of)
    summary = {
        "train": {axis: len(rows) for axis, rows in prepared.train.items() if axis not in prepared.streams},
        "test": {axis: len(rows) for axis, rows in prepared.test.items()},
        "calibration": {axis: len(rows) for axis, rows in prepared.calibration.items()},
        "prompts": {name: len(rows) for name, rows in prepared.prompts.items()},
        "groups": {name: len(rows) for name, rows in prepared.groups.items()},
        "joint": None if isinstance(joint, Stream) else len(joint),
        "preference": len(prepared.pairs),
        "multiple_choice": len(prepared.questions),
        "disjoint": "proved: no training prompt is tested",
        "notes": list(prepared.notes),
    }
    write_json(folder / "summary.json", summary)
