"""docs/claims.md: every published claim and our own beside what the result files say, with a verdict by rule.

    python benchmarks/claims.py [FOLDER OF RESULTS [PAGE]]

Takes seconds: it reads docs/results/ only. The rows are in `claims_h3fusion`, `claims_trinityx`, `claims_alignx` and
`claims_ours`; the rule is in `claims_rules`. `benchmarks/evidence.py` makes the result files.
"""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import claims_alignx
import claims_h3fusion
import claims_ours
import claims_trinityx
from claims_asked import KINDS, Claim, Costs, Kind
from claims_files import FILES, RESULTS, at_most, contents, spent
from claims_rules import NOT_RUN, UNTESTABLE, VERDICTS, Found, look, name_of, verdict_of

from triune.metrics.across import Across
from triune.metrics.intervals import LEVEL

PAGE = RESULTS.parent / "claims.md"


@dataclass(frozen=True, slots=True)
class Group:
    """The claims of one paper, or our own."""

    title: str
    source: str
    rows: tuple[Claim, ...]


GROUPS = (
    Group("H3Fusion", "arXiv 2411.17792", claims_h3fusion.ROWS),
    Group("TrinityX", "arXiv 2509.08486", claims_trinityx.ROWS),
    Group("AlignX", "arXiv 2602.07381", claims_alignx.ROWS),
    Group("Ours", "Triune", claims_ours.ROWS),
)

HEAD = """# Claims

Each published claim of [H3Fusion](https://arxiv.org/abs/2411.17792), [TrinityX](https://arxiv.org/abs/2509.08486) and
[AlignX](https://arxiv.org/abs/2602.07381), and each of our own, beside what was measured here. This page is made by
`benchmarks/claims.py` from the [result files](results); no number on it is typed, except the published ones.
`make claims` makes it again in seconds, `make evidence` makes the result files.

## How to read it

**In kind.** The papers measure models of seven billion parameters with language models as judges. Here a miniature
world is asked, with exact rules as judges. So a verdict is about the **sign** of a difference and never about its
size: *holds in kind* says that the effect has the published direction in this world. A miniature world can show that a
mechanism does what it is said to do, that it does nothing measurable, or that a simpler rival does as well. It cannot
show what happens to a model that people use: its axes conflict by construction, every good behaviour is in the base
already at a low rate, and some scores are near their ceiling, where nothing can gain.{size} A published figure stands
beside ours where both are relative (ours: the mean over seeds of ours/theirs − 1); their sizes do not compare.

**The rule.** Numbers are means over seeds with Student's {level} interval; differences are paired by seed, and n
counts seeds.

| verdict | when |
|---|---|
| {holds} | the interval of the difference lies on the claimed side of 0 |
| {fails} | it lies on the other side, or crosses 0 and lies wholly within the negligible band |
| {unseen} | it crosses 0 and leaves the band; or all seeds agree, or there is one seed only |
| {untestable} | the row says why |
| {not_run} | the result file is not there yet |

A claim of "little" holds where the interval lies within the band, and does not where it lies wholly outside; one of
"no worse" holds where the interval lies above the band's lower end. "Apart" is a claim without a sign: either side
counts. Where the rival is within the band of the best possible percentage (100 of a score, 0 of an error) there is *no
room* to be better, and such a number refutes nothing. A difference that is on the claimed side *and* within the band
holds, and is marked as small. Where several differences decide, all have to be as claimed, and one contrary finding
refutes. Costs side by side have no seeds: every work has to be beyond the band, which stands for the noise of repeats.
Each claim is judged by itself; of {n_rows} at {level} some fall on a side by chance. Bands belong to the kind of
number and not to the claim:

| kind of number | negligible band |
|---|---|
{bands}

They were set when the files of TrinityX, AlignX and the demo had been looked at, and before those of H3Fusion's
ablation, of the conflict and of the sizes were there.

## Verdicts

{counts}
"""


def number(value: float, digits: int, sign: bool = False) -> str:
    """A number as printed, with a real minus sign and never a negative zero.

    With a sign, which side of 0 it lies on decides: a number that would become 0 gets up to two more decimals.
    """
    if sign:
        digits = next((places for places in range(digits, digits + 3) if round(value, places)), digits)
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def interval(value: Across, kind: Kind, sign: bool = False) -> str:
    """Mean and interval; without an interval the mean alone."""
    if value.n == 0:
        return "–"
    mean = number(value.value, kind.digits, sign)
    if math.isnan(value.low):
        return mean
    return f"{mean} ({number(value.low, kind.digits, sign)} to {number(value.high, kind.digits, sign)})"


def unit(kind: Kind) -> str:
    """The unit behind a number."""
    return kind.unit if kind.unit == "°" else f" {kind.unit}".rstrip()


def works(found: Found) -> str:
    """The ratios of each work."""
    kind = KINDS[found.asked.kind]
    return ", ".join(f"{name} {number(value, kind.digits, True)}{unit(kind)}" for name, value in found.works)


def figure(published: float | None) -> str:
    """A published relative figure, with its sign."""
    return "" if published is None else f"{published:+g} %".replace("-", "−")


def shown(found: Found, published: float | None) -> str:
    """A deciding finding in one cell of the summary."""
    beside = "" if published is None else f" (published {figure(published)})"
    if isinstance(found.asked, Costs):
        return f"against `{found.asked.theirs}`: {works(found)}{beside}"
    if found.difference is None:
        return "–"
    kind = KINDS[found.asked.kind]
    text = f"{found.asked.number} {interval(found.difference, kind, True)}{unit(kind)}, n = {found.difference.n}"
    text += ", small" if found.small else ""
    if published is None or kind.relative or found.relative is None:
        return text + beside
    return f"{text}; relative {number(found.relative.value, 1, True)} %{beside}"


def line(found: Found, *, decides: bool) -> str:
    """One row of a claim's own table."""
    asked = found.asked
    cells = ["–"] * 5
    if isinstance(asked, Costs):
        cells = [f"`{asked.ours}`", f"`{asked.theirs}`", works(found) or "–", "", "–"]
    elif found.difference is not None:
        cells = _of_seeds(found, found.difference)
    else:
        cells[:2] = ("0" if side is None else f"`{name_of(side)}`" for side in (asked.ours, asked.theirs))
    name = f"**{asked.number}**" if decides else asked.number
    outcome = f"{found.outcome}, small" if found.small else found.outcome
    return f"| {name} | {' | '.join(cells)} | {asked.claimed} | {outcome} |"


def _of_seeds(found: Found, difference: Across) -> list[str]:
    kind = KINDS[found.asked.kind]
    sides = ["0" if s is None else f"`{s[0]}` {interval(s[1], kind)}" for s in (found.ours, found.theirs)]
    apart = f"{interval(difference, kind, True)}{unit(kind)}"
    # Of what is relative by nature the difference says it already.
    relative = found.relative if not kind.relative else None
    ratio = "" if relative is None else f"{interval(relative, KINDS['relative'], True)} %"
    return [*sides, apart, ratio, f"{difference.n}" + (f", {difference.missing} missing" * (difference.missing > 0))]


def anchor(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def run_of(names: Sequence[str], held: Mapping[str, Any]) -> str:
    """What was run, a line a file."""
    lines = ["Run:", ""]
    for name in names:
        made = FILES[name]
        runs = held.get(name, {}).get("runs", ())
        file = f"[{name}](results/{name})" if name in held else f"`{name}` (not there yet)"
        on = f"{len(runs)} {made.on}" if isinstance(runs, list) and len(runs) > 1 else made.on
        recipe = f"`{made.recipe}`, " if made.recipe else ""
        lines.append(f"* {file}: {on}; {recipe}`{made.script}`")
    return "\n".join(lines)


def details(claim: Claim, group: Group, held: Mapping[str, Any]) -> tuple[str, str, str]:
    """The verdict of a claim, its line of the summary, and its own part of the page."""
    deciding = [found for asked in claim.decides for found in look(asked, held)]
    beside = [found for asked in claim.beside for found in look(asked, held)]
    verdict = verdict_of(claim, deciding)
    numbers = "; ".join(shown(found, claim.published if place == 0 else None) for place, found in enumerate(deciding))
    cell = "–" if verdict in (NOT_RUN, UNTESTABLE) else numbers
    summary = f"| [{claim.claim}](#{anchor(claim.claim)}) | {figure(claim.published)} | **{verdict}** | {cell} |"
    parts = [f"### {claim.claim}", f"**{verdict[0].upper()}{verdict[1:]}.** Source: {group.source}, {claim.where}."]
    if claim.published is not None:
        parts[-1] += f" Published: {figure(claim.published)}."
    if claim.untestable:
        parts.append(claim.untestable)
    if deciding:
        head = "| number | ours | against | difference | relative | n | claimed | outcome |\n" + "|---" * 8 + "|"
        lines = [line(f, decides=True) for f in deciding] + [line(f, decides=False) for f in beside]
        parts.append("\n".join([head, *lines]))
        names = dict.fromkeys(asked.file for asked in (*claim.decides, *claim.beside))
        parts.append(run_of(list(names), held))
    if claim.note:
        parts.append(claim.note)
    parts.append(f"What would change our mind: {claim.change[0].lower()}{claim.change[1:]}")
    return verdict, summary, "\n\n".join(parts)


def page(folder: Path = RESULTS) -> str:
    """The whole page."""
    held = contents(folder)
    made = {group: [details(claim, group, held) for claim in group.rows] for group in GROUPS}
    tables = [
        f"### {group.title} ({group.source})\n\n| claim | published | verdict | number |\n|---|---|---|---|\n"
        + "\n".join(summary for _, summary, _ in rows)
        for group, rows in made.items()
    ]
    bold = "Below, numbers in bold decide; the others stand beside them."
    parts = [
        f"## {group.title}, claim by claim\n\n" + "\n\n".join(part for _, _, part in rows)
        for group, rows in made.items()
    ]
    found = {group.title: [verdict for verdict, _, _ in rows] for group, rows in made.items()}
    return "\n\n".join([head(held, found), *tables, bold, *parts, cost(folder)]) + "\n"


def head(held: Mapping[str, Any], found: Mapping[str, Sequence[str]]) -> str:
    """What stands above the tables; `found` has the verdicts of each group."""
    active = held.get("trinityx.json", {}).get("models", {}).get("base", {}).get("active")
    size = f" Where no size is named the base has {active[0] / 1e6:.1f} million parameters." if active else ""
    bands = "\n".join(f"| {kind.about} | ±{kind.band:g}{unit(kind)} |" for kind in KINDS.values())
    everything = [verdict for verdicts in found.values() for verdict in verdicts]
    counts = [f"| of | {' | '.join(VERDICTS)} |", "|---" * (len(VERDICTS) + 1) + "|"]
    for title, verdicts in (*found.items(), ("**all**", everything)):
        counts.append(f"| {title} | {' | '.join(str(verdicts.count(verdict)) for verdict in VERDICTS)} |")
    return HEAD.format(
        size=size,
        level=f"{LEVEL:.0%}".replace("%", " %"),
        bands=bands,
        n_rows=len(everything),
        counts="\n".join(counts),
        **dict(zip(("holds", "fails", "unseen", "untestable", "not_run"), VERDICTS, strict=True)),
    ).rstrip()


def cost(folder: Path) -> str:
    """What the evidence took."""
    seconds = spent(folder)
    known = {name: value for name, value in seconds.items() if value is not None}
    bounded = {name: value for name, value in at_most(folder).items() if name not in known}
    rows = [f"| {name} | {value / 3600:.2f} |" for name, value in known.items()]
    rows += [f"| {name} | at most {value / 3600:.2f} (wall time on all cores) |" for name, value in bounded.items()]
    missing = [f"`{name}`" for name in seconds if name not in known and name not in bounded]
    lines = ["## Processor time"]
    if rows:
        exact = sum(known.values()) / 3600
        most = f" to {exact + sum(bounded.values()) / 3600:.2f}" if bounded else ""
        total = f"| **in total** | **{exact:.2f}{most}** |"
        lines.append("\n".join(["| result file | hours of one core |", "|---|---|", *rows, total]))
    if missing:
        lines.append(f"Not recorded when they were made, or counted with another file: {', '.join(missing)}.")
    return "\n\n".join(lines)


def main() -> None:
    """The command line."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else PAGE
    target.write_text(page(folder), encoding="utf-8")
    print(f"{target} written")


if __name__ == "__main__":
    main()
