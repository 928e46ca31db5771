"""The optional files of a run folder, parsed."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from triune.errors import InputError
from triune.parsing import parse_yaml
from triune.report import fields
from triune.report.run import (
    Curve,
    Distance,
    Drift,
    ExpertWeight,
    Latency,
    ModelFacts,
    Point,
    Recipe,
    Routing,
    SideBySide,
    Step,
    Timings,
    Weights,
)

# A float32 mean of probabilities can pass 1 by this much.
ROUNDING = 1e-5


def parse_models(value: object, where: str) -> Mapping[str, ModelFacts]:
    """models.json: what every model weighs and was trained on."""
    facts = {}
    for model, row in fields.mapping(value, where).items():
        place = f"{model} in {where}"
        fact = fields.mapping(row, place)
        facts[model] = ModelFacts(
            fields.maybe_whole(fact, "parameters_total", place),
            fields.maybe_whole(fact, "parameters_active", place),
            fields.maybe_whole(fact, "train_steps", place),
            fields.maybe_whole(fact, "train_examples", place),
            fields.text(fact, "note", place, default=""),
            fields.maybe_whole(fact, "memory_bytes", place),
            fields.maybe_whole(fact, "generations", place),
            _latency(fact.get("latency_ratio"), f"latency_ratio of {place}"),
            fields.text(fact, "absent", place, default=""),
        )
    return facts


def _latency(value: object, where: str) -> Latency | None:
    if value is None:
        return None
    row = fields.mapping(value, where)
    median, low, high = (fields.finite(row, key, where) for key in ("value", "low", "high"))
    return Latency(median, low, high, fields.whole(row, "n", where), fields.text(row, "what", where, default=""))


def parse_timings(value: object, where: str) -> Timings:
    """timings.json: the steps, the total and the machine."""
    top = fields.mapping(value, where)
    steps = []
    for index, row in enumerate(fields.listing(fields.need(top, "steps", where), f"steps in {where}")):
        place = f"{where} step {index}"
        step = fields.mapping(row, place)
        skipped = step.get("skipped", False)
        if not isinstance(skipped, bool):
            raise fields.fail(f"skipped in {place}", skipped, "true or false")
        memory = fields.maybe_whole(step, "peak_memory_bytes", place)
        steps.append(Step(fields.text(step, "name", place), fields.number(step, "seconds", place), memory, skipped))
    machine = fields.mapping(top.get("machine") or {}, f"machine in {where}")
    return Timings(
        tuple(steps),
        fields.number(top, "total_seconds", where),
        {key: str(text) for key, text in machine.items()},
    )


def parse_curves(value: object, where: str) -> Mapping[str, Curve]:
    """curves.json: every named loss part of every model, NaN at the steps that did not log it."""
    return {model: _curve(rows, f"{model} in {where}") for model, rows in fields.mapping(value, where).items()}


def _curve(value: object, where: str) -> Curve:
    rows = [fields.mapping(row, f"a row of {where}") for row in fields.listing(value, where)]
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    parts = {name: tuple(fields.as_number(row.get(name), f"{name} in {where}") for row in rows) for name in names}
    measured = {name: values for name, values in parts.items() if not all(map(math.isnan, values))}
    return Curve(tuple(fields.whole(row, "step", where) for row in rows), measured)


def parse_routing(value: object, where: str) -> Routing:
    """routing.json; the shape of `mean` must be axes x layers x experts, its values within [0, 1]."""
    top = fields.mapping(value, where)
    experts = fields.texts(fields.need(top, "experts", where), f"experts in {where}")
    axes = fields.texts(fields.need(top, "axes", where), f"axes in {where}")
    n_layers = fields.whole(top, "n_layers", where)
    mean = tuple(
        tuple(
            tuple(fields.as_number(weight, f"mean in {where}") for weight in fields.listing(layer, f"mean in {where}"))
            for layer in fields.listing(axis, f"mean in {where}")
        )
        for axis in fields.listing(fields.need(top, "mean", where), f"mean in {where}")
    )
    fits = len(mean) == len(axes) and all(len(axis) == n_layers for axis in mean)
    if not fits or any(len(layer) != len(experts) for axis in mean for layer in axis):
        raise InputError(
            f"mean in {where} is not {len(axes)} axes x {n_layers} layers x {len(experts)} experts; {fields.WAY_OUT}."
        )
    strange = [
        weight for axis in mean for layer in axis for weight in layer if not -ROUNDING <= weight <= 1 + ROUNDING
    ]
    if strange:
        raise fields.fail(f"mean in {where}", strange[0], "weights from 0 to 1")
    tokens = fields.listing(fields.need(top, "n_tokens", where), f"n_tokens in {where}")
    if len(tokens) != len(axes):
        raise fields.fail(f"n_tokens in {where}", tokens, f"one count for each of the {len(axes)} axes")
    counts = tuple(fields.as_whole(count, f"n_tokens in {where}") for count in tokens)
    return Routing(fields.text(top, "model", where, default="fused"), experts, axes, mean, counts)


def parse_weights(value: object, where: str) -> Weights | None:
    """fusion.json: the experts' weights and importance; None where all experts count alike."""
    top = fields.mapping(value, where)
    weights = fields.mapping(top.get("weights") or {}, f"weights in {where}")
    gamma = fields.mapping(top.get("importance") or {}, f"importance in {where}")
    similarities = fields.mapping(top.get("similarities") or {}, f"similarities in {where}")
    axes = tuple(dict.fromkeys((*weights, *gamma)))
    rows = tuple(
        ExpertWeight(
            axis,
            fields.as_number(weights.get(axis, 1.0), f"weight of {axis} in {where}"),
            fields.as_number(similarities.get(axis), f"similarity of {axis} in {where}"),
            fields.as_number(gamma.get(axis), f"importance of {axis} in {where}"),
        )
        for axis in axes
    )
    if not gamma and all(row.weight == 1 for row in rows):
        return None
    place = f"importance_settings in {where}"
    how = fields.mapping(top.get("importance_settings") or {}, place)
    if not how:
        return Weights(rows, "")
    names = [fields.text(how, key, place) for key in ("similarity", "reference")]
    return Weights(rows, f"{names[0]} to {names[1]}, τ = {fields.finite(how, 'temperature', place):g}")


def parse_drift(value: object, where: str) -> Drift:
    """drift.json: distances from the base with intervals, and the points of the map."""
    top = fields.mapping(value, where)
    distances = []
    for index, row in enumerate(fields.listing(top.get("distances") or [], f"distances in {where}")):
        place = f"{where} distance {index}"
        item = fields.mapping(row, place)
        value, low, high = (fields.number(item, key, place) for key in ("value", "low", "high"))
        model, axis = fields.text(item, "model", place), fields.text(item, "axis", place)
        distances.append(Distance(model, axis, value, low, high, fields.whole(item, "n", place)))
    points = []
    for index, row in enumerate(fields.listing(top.get("points") or [], f"points in {where}")):
        place = f"{where} point {index}"
        item = fields.mapping(row, place)
        model, axis = fields.text(item, "model", place), fields.text(item, "axis", place)
        points.append(Point(model, axis, fields.finite(item, "x", place), fields.finite(item, "y", place)))
    what = fields.text(top, "what", where, default="distance from the base")
    return Drift(what, tuple(distances), fields.text(top, "method", where, default=""), tuple(points))


def parse_samples(value: object, where: str) -> tuple[SideBySide, ...]:
    """samples.json: prompts with every model's answer; `benchmark` may be called `axis`."""
    samples = []
    for index, row in enumerate(fields.listing(value, where)):
        place = f"{where} row {index}"
        item = fields.mapping(row, place)
        answers = fields.mapping(fields.need(item, "answers", place), f"answers in {place}")
        verdicts: dict[str, bool | None] = {}
        for model, verdict in fields.mapping(item.get("verdicts") or {}, f"verdicts in {place}").items():
            if verdict is not None and not isinstance(verdict, bool):
                raise fields.fail(f"verdict on {model} in {place}", verdict, "true, false or null")
            verdicts[model] = verdict
        benchmark = fields.text(item, "benchmark" if "benchmark" in item else "axis", place)
        texts = {model: fields.text(answers, model, f"answers in {place}") for model in answers}
        samples.append(SideBySide(benchmark, fields.text(item, "prompt", place), texts, verdicts))
    return tuple(samples)


def parse_recipe(path: Path) -> Recipe:
    """recipe.yaml: the text word for word; title, about and caveats from its top level.

    Raises:
        InputError: it is not YAML, or not a mapping.
    """
    import yaml

    try:
        content = path.read_text(encoding="utf-8")
        top = parse_yaml(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML in UTF-8 ({str(error).splitlines()[0]}); {fields.WAY_OUT}.") from error
    row = fields.mapping(top, str(path))
    return Recipe(
        content,
        fields.text(row, "title", str(path), default=""),
        fields.text(row, "about", str(path), default=""),
        fields.texts(row.get("caveats") or [], f"caveats in {path}"),
        dict(_flat(row.get("scarce"), "")),
    )


def _flat(value: object, name: str) -> Iterator[tuple[str, str]]:
    """The scalars of nested settings under dotted names."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif name and not isinstance(value, list):
        yield name, str(value)
