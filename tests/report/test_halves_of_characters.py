"""Half of a surrogate pair, which JSON can hold and no UTF-8 file: every kind of page is written all the same."""

import json
from pathlib import Path

from fake_run import fake_files, score_row, write_folder
from test_across_report import rows_of
from test_collapse_page import whole

from tests.report.compared_runs import answered, write_run
from triune.pipeline.reporting import compare_runs
from triune.report.check_page import styled
from triune.report.collapse_files import write_collapse
from triune.report.files import write_report
from triune.report.labels import plain

HALF = "half \ud83d of it"
WHOLE = "half \ufffd of it"
YAML = 'title: "half \\uD83D of it"\n'  # as YAML writes it


def texts(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text(encoding="utf-8") for p in folder.iterdir() if p.suffix in (".html", ".md", ".csv")}


def test_plain_text_has_none() -> None:
    assert plain(f"{HALF}\x00\t\n") == f"{WHOLE}\ufffd\t\n"
    assert plain("😀") == "😀"
    assert styled(HALF).plain == WHOLE


def test_the_page_of_a_run(tmp_path: Path) -> None:
    side = [{"benchmark": "helpful", "prompt": HALF, "answers": {"base": HALF}, "verdicts": {"base": None}}]
    rows = [score_row("base", "helpful", 30, 50) | {"judge": HALF}, score_row("fused", "helpful", 90, 60)]
    kept = {"scores.json": rows, "samples.json": side, "timings.json": fake_files()["timings.json"]}
    found = texts(write_report(write_folder(tmp_path / "run", kept, YAML)).parent)
    assert set(found) == {"report.html", "report.md", "scores.csv"}
    assert all(WHOLE in text for text in found.values())
    assert found["report.html"].count(WHOLE) >= 4  # title, prompt, answer, judge


def test_the_page_over_seeds(tmp_path: Path) -> None:
    folder = tmp_path / "several"
    for seed in range(2):
        rows = [row | {"judge": HALF} for row in rows_of(seed)]
        write_folder(folder / f"seed-{seed}", {"scores.json": rows}, f"{YAML}seed: {seed}\nseeds: []\n")
    (folder / "recipe.yaml").write_text(f"{YAML}seed: 0\nseeds: [0, 1]\n")
    found = texts(write_report(folder).parent)
    assert set(found) == {"report.html", "report.md", "across.csv"}
    assert WHOLE in found["report.html"]
    assert WHOLE in found["report.md"]


def test_the_page_of_a_comparison(tmp_path: Path) -> None:
    rows = answered(("base", "fused"), 4, 1)
    for row in rows:
        row["response"] = HALF
    one = write_run(tmp_path / "one", rows)
    (one / "recipe.yaml").write_text(YAML)
    scores = json.loads((one / "scores.json").read_text())
    (one / "scores.json").write_text(json.dumps([row | {"judge": HALF} for row in scores]))
    found = texts(compare_runs([one], tmp_path / "out", "base").parent)
    assert set(found) == {"report.html", "report.md", "scores.csv", "comparisons.csv"}
    assert all(WHOLE in found[name] for name in ("report.html", "report.md", "scores.csv"))


def test_the_page_of_collapse(tmp_path: Path) -> None:
    (tmp_path / "collapse.json").write_text(json.dumps(whole(about=HALF)))
    write_collapse(tmp_path)
    found = texts(tmp_path)
    assert set(found) == {"collapse.html", "collapse.md"}
    assert all(WHOLE in text for text in found.values())
