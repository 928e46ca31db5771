"""What swept keys and values are called in folders' names, tables and figures, and what the page says of them."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from triune.report.labels import DIRECTIONS, model_phrase, score_phrase
from triune.report.numerals import NO_BREAK_SPACE, listed, value_text
from triune.report.page import page_title
from triune.report.sweep_run import Found, SweepRun


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key's last parts, as many as tell all of them apart."""
    length = 1
    while True:
        short = {key: ".".join(key.split(".")[-length:]) for key in keys}
        if len(set(short.values())) == len(keys) or length > max(key.count(".") for key in keys):
            return short
        length += 1


def value_name(value: Any) -> str:
    """A value in a name or a table: "0.1", "up_proj+down_proj"."""
    if isinstance(value, list):
        return "+".join(map(value_name, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def setting_name(values: Mapping[str, Any]) -> str:
    """One setting in a sentence: "gating=0.1, top_k=2"; "all" where only seeds are swept."""
    labels = short_keys(list(values)) if values else {}
    return ", ".join(f"{labels[key]}={value_name(value)}" for key, value in values.items()) or "all"


def title(run: SweepRun) -> str:
    """The recipe's title and what is swept."""
    return f"{page_title(run.swept.points[0].run)}: sweep over {listed(list(short_keys(run.swept.keys).values()))}"


def interval(found: Found) -> str:
    """ "[88.1, 93.0]"; empty where there is none."""
    if math.isnan(found.low) or math.isnan(found.value):
        return ""
    return f"[{value_text(found.low, found.unit)},{NO_BREAK_SPACE}{value_text(found.high, found.unit)}]"


def best_of(run: SweepRun, name: str) -> tuple[int, ...]:
    """The settings whose value is best on a score of the page's model: none where all are equally good."""
    rows = [(place, row.get((run.subject, name))) for place, row in enumerate(run.found)]
    known = [(place, row) for place, row in rows if row is not None and not math.isnan(row.value)]
    if not known or known[0][1].better == "neither":
        return ()
    values = [row.value for _, row in known]
    top = max(values) if known[0][1].better == "higher" else min(values)
    best = tuple(place for place, row in known if row.value == top)
    return best if len(best) < len(known) or len(known) == 1 else ()


def lead(run: SweepRun) -> tuple[str, ...]:
    """The opening: how many points, over what, and where the headline score is best."""
    n_points, keys = len(run.swept.points), listed(list(run.swept.keys))
    said = [f"{n_points} finished points over {keys}. The table shows {model_phrase(run.subject)}."]
    if run.over_seeds:
        said.append("A value is the mean over the seeds of a setting, with its 95 % t interval.")
    if run.swept.unfinished:
        said.append(f"Not in here, because unfinished: {listed(list(run.swept.unfinished))}.")
    for name in run.headlines[:1]:
        places = best_of(run, name)
        if places and len(run.settings) > 1:
            said.append(_best(run, name, places))
    return tuple(said)


def _best(run: SweepRun, name: str, places: Sequence[int]) -> str:
    """Where a score is best, and how many other settings could be as good by their intervals."""
    found = run.found[places[0]][run.subject, name]
    value = f"{value_text(found.value, found.unit)}{NO_BREAK_SPACE}{found.unit} {interval(found)}".strip()
    where = "; ".join(setting_name(run.settings[place].values) for place in places)
    told = f"On {score_phrase(name)} ({DIRECTIONS[found.better]}) the best is {where}: {value}."
    others = [row.get((run.subject, name)) for place, row in enumerate(run.found) if place not in places]
    known = [row for row in others if row is not None and not math.isnan(row.low)]
    if math.isnan(found.low) or not known:
        return told
    reached = sum(row.high >= found.low and row.low <= found.high for row in known)
    return f"{told} Other settings whose interval overlaps with it: {reached} of {len(known)}."


def caveats(run: SweepRun) -> tuple[str, ...]:
    """What the page does not show."""
    over = (
        "Intervals are Student's t over the seeds of a setting; below two seeds there is none."
        if run.over_seeds
        else "Each point is one seed. Its interval covers the test prompts only, not the choice of seed: sweep "
        "seed=0,1,2 too before believing a small difference."
    )
    return (
        over,
        "The best of many points is best by chance too: its value is too good as an estimate of what it would score "
        "again. Choose on these prompts, and report on others.",
    )
