"""collapse.json, whole: the figures' part, what the numbers come to, whose they are, and the fused model's routing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from triune.report import fields
from triune.report.calibration_parts import parse_calibration, parse_reliability
from triune.report.collapse_parts import CollapseView, Reading, parse_collapse, parse_reading
from triune.report.run import CalibrationScore, ReliabilityBins

FILE = "collapse.json"
FUSED = "fused"


@dataclass(frozen=True, slots=True)
class ForgettingSummary:
    """A forgetting matrix in three numbers, None where it has no such cell; `worst_at` is (trained, axis)."""

    off_diagonal: Reading | None
    gain: Reading | None
    worst: Reading | None
    worst_at: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RoutingView:
    """How far the fused model's routing can be relied on."""

    misrouting: Reading
    calibration: tuple[CalibrationScore, ...]
    diagrams: tuple[ReliabilityBins, ...]


@dataclass(frozen=True, slots=True)
class CollapseAccount:
    """All of collapse.json that is shown; `n_prompts` are those of `view.axes`."""

    about: str
    held_out: str
    view: CollapseView
    n_prompts: tuple[int, ...]
    n_left_out: int
    loss: ForgettingSummary
    score: ForgettingSummary | None
    routing: RoutingView | None


def load_collapse(folder: Path) -> CollapseAccount:
    """What `triune diagnose collapse` wrote in the folder. Raises InputError for a file that is damaged."""
    path = folder / FILE
    return parse_account(fields.read_json(path), str(path))


def parse_account(value: object, where: str) -> CollapseAccount:
    """The file's content. Raises InputError for a field that is missing or wrong."""
    top = fields.mapping(value, where)
    view = parse_collapse(value, where)
    counts = fields.listing(fields.need(top, "n_prompts", where), f"n_prompts in {where}")
    if len(counts) != len(view.axes):
        raise fields.fail(f"n_prompts in {where}", counts, f"one count for each of {len(view.axes)} axes")
    routing = top.get("routing")
    return CollapseAccount(
        fields.text(top, "about", where, ""),
        fields.text(top, "held_out", where, ""),
        view,
        tuple(fields.as_whole(count, f"n_prompts in {where}") for count in counts),
        fields.whole(top, "n_left_out", where),
        _summary(top, "loss", where),
        _summary(top, "score", where) if view.score is not None else None,
        None if routing is None else _routing(routing, f"routing in {where}"),
    )


def _summary(top: Mapping[str, object], key: str, where: str) -> ForgettingSummary:
    place = f"{key} in {where}"
    row = fields.mapping(fields.need(top, key, where), place)

    def reading(name: str) -> Reading | None:
        found = row.get(name)
        return None if found is None else parse_reading(found, f"{name} in {place}")

    at = row.get("worst_at")
    return ForgettingSummary(
        reading("off_diagonal"),
        reading("gain"),
        reading("worst"),
        () if at is None else fields.texts(at, f"worst_at in {place}"),
    )


def _routing(value: object, where: str) -> RoutingView:
    top = fields.mapping(value, where)

    def named(key: str) -> list[dict[str, object]]:
        rows = fields.listing(fields.need(top, key, where), f"{key} in {where}")
        return [{**fields.mapping(row, f"{key} in {where}"), "model": FUSED} for row in rows]

    return RoutingView(
        parse_reading(fields.need(top, "misrouting", where), f"misrouting in {where}"),
        parse_calibration(named("calibration"), f"calibration in {where}"),
        parse_reliability(named("diagrams"), f"diagrams in {where}"),
    )
