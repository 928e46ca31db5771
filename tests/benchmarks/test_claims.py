"""The page of claims: the committed one is what the generator makes; and pages of made-up result files."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import claims
import claims_files
import pytest
import yaml
from claims_asked import EACH, LEAST, MOST, Asked, Best, Claim, Comparison, Costs
from claims_asked import Path as Steps
from claims_rules import NOT_RUN, VERDICTS

ROOT = Path(__file__).parents[2]
NEW = ("h3fusion.json", "conflict.json", "sizes.json")
ROWS = [(group.title, row) for group in claims.GROUPS for row in group.rows]
# Names with a number in them, which are no measured number.
NAMES = r"`[^`]*`|H3Fusion|Llama-2-7B|[Tt]op-\d|stories260K"


def asked_of(row: Claim) -> tuple[Asked, ...]:
    return (*row.decides, *row.beside)


def paths(asked: Comparison) -> Iterator[Steps]:
    for side in (asked.ours, asked.theirs):
        if isinstance(side, Best):
            yield from side.paths
        elif side is not None:
            yield from (path for _, path in side.terms)


def all_paths(file: str) -> set[Steps]:
    return {
        path
        for _, row in ROWS
        for asked in asked_of(row)
        if isinstance(asked, Comparison) and asked.file == file
        for path in paths(asked)
    }


def put(content: dict[str, Any], path: Steps, values: list[float]) -> None:
    *before, last = path
    for step in before:
        content = content.setdefault(step, {})
    content.setdefault(last, values)


def made_up(file: str) -> dict[str, Any]:
    """A small file with everything that the rows ask of it: three seeds, values that differ by path."""
    content: dict[str, Any] = {"runs": ["seed-0", "seed-1", "seed-2"], "cpu_seconds": 7200.0}
    keys = {"conflict.json": ("0", "0.5", "1"), "sizes.json": ("small", "large")}.get(file, ())
    for place, path in enumerate(sorted(all_paths(file), key=str)):
        own = keys if {EACH, LEAST, MOST} & set(path) else ("",)
        for number, key in enumerate(own):
            steps = tuple(key if step in (EACH, LEAST, MOST) else step for step in path)
            middle = 40.0 + (7 * place + 3 * number) % 50
            put(content, steps, [middle, middle + place % 3, middle + 1.5])
    for number, size in enumerate(content.get("sizes", {}).values(), start=1):
        size["parameters"] = number * 700_000
    return content


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The kept result files, and made-up ones in the place of those that are not there yet."""
    for name in claims_files.FILES:
        text = json.dumps(made_up(name)) if name in NEW else (claims_files.RESULTS / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_committed_page_is_what_the_generator_makes() -> None:
    assert claims.PAGE.read_text(encoding="utf-8") == claims.page(), "run `make claims`"


@pytest.mark.parametrize(("title", "row"), ROWS, ids=lambda value: value.claim if isinstance(value, Claim) else value)
def test_no_number_stands_in_prose(title: str, row: Claim) -> None:
    texts = [row.claim, row.where, row.change, row.note, row.untestable, *(asked.number for asked in asked_of(row))]
    assert [text for text in texts if re.search(r"\d", re.sub(NAMES, "", text))] == []
    assert row.change.endswith(".")
    assert row.change.count(". ") == 0, "one sentence says what would change our mind"
    assert bool(row.decides) != bool(row.untestable), "a claim is decided by something, or says why not"


def test_headings_are_distinct_and_linked() -> None:
    page = claims.page()
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    assert len({claims.anchor(heading) for heading in headings}) == len(headings)
    links = re.findall(r"\]\(#([^)]+)\)", page)
    assert set(links) <= {claims.anchor(heading) for heading in headings}
    assert len(links) == len(ROWS)


def test_what_is_not_there_is_not_yet_run(tmp_path: Path) -> None:
    page = claims.page(tmp_path)
    untestable = sum(not row.decides for _, row in ROWS)
    assert page.count("| **not yet run** | – |") == len(ROWS) - untestable
    assert page.count("| **cannot be tested at this size** | – |") == untestable
    assert "(results/" not in page.replace("[result files](results)", "")


def test_new_files_fill_their_rows(results: Path) -> None:
    page = claims.page(results)
    assert f"| **{NOT_RUN}** |" not in page
    assert "not yet run |" not in page.split("## Verdicts")[1].split("\n\n", 2)[2]
    assert "| h3fusion.json | 2.00 |" in page
    assert "mean, part shared (0.5)" in page
    assert page.index("mean, size (small)") < page.index("mean, size (large)")


def test_a_row_by_hand(results: Path) -> None:
    content = json.loads((results / "h3fusion.json").read_text(encoding="utf-8"))
    content["models"]["fused"]["mean"] = [90, 91, 92]
    content["models"]["fused:top-1"]["mean"] = [80, 82, 81]
    for name in ("ensemble", "ranking"):
        content["models"][name]["mean"] = [100 / 3, 30, 30] if name == "ensemble" else [40, 50, 60]
    (results / "h3fusion.json").write_text(json.dumps(content), encoding="utf-8")
    page = claims.page(results)
    top = next(line for line in page.splitlines() if line.startswith("| [Sending a token to top-2"))
    assert "**holds in kind** | mean +10.0 (+7.5 to +12.5) points, n = 3 |" in top
    rival = next(line for line in page.splitlines() if line.startswith("| [The fused model is better than ensembles"))
    # 90/40, 91/50, 92/60: 125, 82 and 53.33 %, of the stronger of the two
    assert "relative +86.8 % (published +13.77 %)" in rival
    assert "`ranking, best of 2` 50.0" in page


def test_verdicts_are_counted() -> None:
    page = claims.page()
    cells = re.search(r"^\| \*\*all\*\* \| (.+) \|$", page, re.MULTILINE)
    assert cells
    counted = dict(zip(VERDICTS, map(int, cells[1].split(" | ")), strict=True))
    assert sum(counted.values()) == len(ROWS)
    assert all(page.count(f"| **{verdict}** |") == n for verdict, n in counted.items())


def known_models(recipe: str) -> set[str]:
    content = yaml.safe_load((ROOT / recipe).read_text(encoding="utf-8"))
    found = set(content["compare"]) | {f"expert:{axis}" for axis in content["axes"]} | {"fused", "base"}
    found |= {f"fused:{name}" for name in content.get("variants", {})}
    found |= {f"mixture:{name}" for name in content.get("mixtures", {})}
    scarce = content.get("scarce", {})
    made = {f"scarce:{kind}" for kind in ("mixture", "longer") if kind in scarce}
    return found | made | ({"scarce:fused"} if scarce else set())


@pytest.mark.parametrize("file", ["h3fusion.json", "conflict.json", "trinityx.json", "alignx.json", "sizes.json"])
def test_rows_ask_for_models_that_the_recipe_makes(file: str) -> None:
    recipe = claims_files.FILES[file].recipe
    places = {"models": 1, "routing": 1, "drift": 1, "moved": 1, "sharing": 2, "sizes": 3}
    asked = {str(path[places[str(path[0])]]) for path in all_paths(file)}
    assert asked - known_models(recipe) == set()
    assert len(asked) > 2


def test_every_file_that_is_asked_for_is_described() -> None:
    assert {asked.file for _, row in ROWS for asked in asked_of(row)} <= claims_files.FILES.keys()
    for made in claims_files.FILES.values():
        assert not made.recipe or (ROOT / made.recipe).is_file()
        assert " " in made.script or (ROOT / "benchmarks" / made.script).is_file()


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.0486, "−0.05"), (0.003, "+0.003"), (1e-9, "+0.0"), (0.0, "+0.0"), (-2.52, "−2.5"), (0.05, "+0.1")],
)
def test_a_signed_number_keeps_its_side(value: float, text: str) -> None:
    assert claims.number(value, 1, sign=True) == text
    assert claims.number(-0.0486, 1) == "0.0"


def test_rows_of_single_values_become_a_table() -> None:
    rows = [
        {"seed": 3, "model": "base", "score": "helpful", "value": 2.0},
        {"seed": 0, "model": "base", "score": "helpful", "value": 1.0},
        {"seed": 3, "model": "sum", "score": "helpful", "value": 4.0},
    ]
    assert claims_files.by_model(rows)["models"] == {
        "base": {"helpful": [1.0, 2.0]},
        "sum": {"helpful": [None, 4.0]},
    }


def test_processor_time_of_the_evidence_goes_first(results: Path) -> None:
    kept = {"h3fusion": {"result": "h3fusion.json", "cpu_seconds": 3600.0, "steps_without_cpu": 0}}
    kept["conflict"] = {"result": "conflict.json", "cpu_seconds": 1.0, "steps_without_cpu": 2}
    (results / claims_files.SPENT).write_text(json.dumps({"rows": kept}), encoding="utf-8")
    found = claims_files.spent(results)
    assert (found["h3fusion.json"], found["conflict.json"], found["alignx.json"]) == (3600.0, 7200.0, None)


def test_costs_say_against_what() -> None:
    costs = [asked for _, row in ROWS for asked in asked_of(row) if isinstance(asked, Costs)]
    assert costs
    assert all(asked.ours and asked.theirs and asked.works for asked in costs)
