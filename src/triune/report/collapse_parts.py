"""collapse.json, read and checked: what the figures of axis collapse show."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from triune.report import fields


@dataclass(frozen=True, slots=True)
class Reading:
    """A value with its 95 % interval and sample size; NaN where nothing was measured."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class ForgettingMap:
    """`cells[i][j]`: what training on `trained[i]` costs on `axes[j]`, positive = worse, in `unit` of `quantity`."""

    quantity: str
    unit: str
    trained: tuple[str, ...]
    axes: tuple[str, ...]
    cells: tuple[tuple[Reading, ...], ...]


@dataclass(frozen=True, slots=True)
class LikenessRow:
    """CKA of two models after a block, on the `rows` of one axis or of all."""

    one: str
    other: str
    rows: str
    layer: int
    cka: Reading


@dataclass(frozen=True, slots=True)
class AngleRow:
    """The angle between two axes' main directions in radians, by chance, and between halves of one axis."""

    one: str
    other: str
    states: str
    layer: int
    angle: float
    chance: float
    halves: float


@dataclass(frozen=True, slots=True)
class SeparationRow:
    """How far apart the axes' features lie after a block, by one distance."""

    states: str
    layer: int
    metric: str
    silhouette: Reading
    ratio: Reading


@dataclass(frozen=True, slots=True)
class CollapseView:
    """collapse.json as the figures show it; `score` is None where no answers were judged."""

    axes: tuple[str, ...]
    experts: tuple[str, ...]
    n_layers: int
    loss: ForgettingMap
    score: ForgettingMap | None
    likeness: tuple[LikenessRow, ...]
    angles: tuple[AngleRow, ...]
    separation: tuple[SeparationRow, ...]


def parse_collapse(value: object, where: str) -> CollapseView:
    """The file's content. Raises InputError for a field that is missing or wrong, as a layer that is not there."""
    top = fields.mapping(value, where)
    n_layers = fields.whole(top, "n_layers", where)
    axes, experts = (fields.texts(fields.need(top, key, where), f"{key} in {where}") for key in ("axes", "experts"))
    likeness, angles, separation = (_rows(top, key, where, n_layers) for key in ("likeness", "angles", "separation"))
    score = top.get("score")
    return CollapseView(
        axes,
        experts,
        n_layers,
        _forgetting(fields.need(top, "loss", where), f"loss in {where}"),
        None if score is None else _forgetting(score, f"score in {where}"),
        tuple(
            LikenessRow(
                *_texts(row, ("one", "other", "rows"), at), fields.whole(row, "layer", at), _of(row, "cka", at)
            )
            for at, row in likeness
        ),
        tuple(
            AngleRow(*_texts(row, ("one", "other", "states"), at), fields.whole(row, "layer", at), *_radians(row, at))
            for at, row in angles
        ),
        tuple(
            SeparationRow(
                fields.text(row, "states", at),
                fields.whole(row, "layer", at),
                fields.text(row, "metric", at),
                _of(row, "silhouette", at),
                _of(row, "ratio", at),
            )
            for at, row in separation
        ),
    )


Row = Mapping[str, object]


def _rows(top: Row, key: str, where: str, n_layers: int) -> list[tuple[str, Row]]:
    """(place, row) of a table; a row's layer is one of the model's."""
    found = []
    for index, item in enumerate(fields.listing(fields.need(top, key, where), f"{key} in {where}")):
        place = f"{where} {key} row {index}"
        row = fields.mapping(item, place)
        layer = fields.whole(row, "layer", place)
        if not 1 <= layer <= n_layers:
            raise fields.fail(f"layer in {place}", layer, f"1 to {n_layers}")
        found.append((place, row))
    return found


def _texts(row: Row, keys: tuple[str, str, str], where: str) -> tuple[str, str, str]:
    one, other, last = (fields.text(row, key, where) for key in keys)
    return one, other, last


def _radians(row: Row, where: str) -> tuple[float, float, float]:
    angle, chance, halves = (fields.number(row, key, where) for key in ("angle", "chance", "halves"))
    for name, found in (("angle", angle), ("chance", chance), ("halves", halves)):
        if not math.isnan(found) and not 0 <= found <= math.pi / 2:
            raise fields.fail(f"{name} in {where}", found, "an angle from 0 to π/2, in radians")
    return angle, chance, halves


def _of(row: Row, key: str, where: str) -> Reading:
    return parse_reading(fields.need(row, key, where), f"{key} in {where}")


def parse_reading(value: object, where: str) -> Reading:
    """A score with value, low, high and n. Raises InputError for a field that is missing or wrong."""
    row = fields.mapping(value, where)
    value, low, high = (fields.number(row, key, where) for key in ("value", "low", "high"))
    return Reading(value, low, high, fields.whole(row, "n", where))


def _forgetting(value: object, where: str) -> ForgettingMap:
    top = fields.mapping(value, where)
    trained, axes = (fields.texts(fields.need(top, key, where), f"{key} in {where}") for key in ("trained", "axes"))
    rows = [fields.listing(row, f"cells in {where}") for row in fields.listing(top.get("cells"), f"cells in {where}")]
    if len(rows) != len(trained) or not trained or not axes or any(len(row) != len(axes) for row in rows):
        raise fields.fail(f"cells in {where}", rows, f"{len(trained)} rows of {len(axes)} cells, one at least")
    first = fields.mapping(rows[0][0], f"cells in {where}")
    return ForgettingMap(
        fields.text(first, "name", where).removeprefix("forgetting:"),
        fields.text(first, "unit", where),
        trained,
        axes,
        tuple(tuple(parse_reading(cell, f"a cell in {where}") for cell in row) for row in rows),
    )
