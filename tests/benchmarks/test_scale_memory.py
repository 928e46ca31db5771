"""The tables of scale.md are made from the formulas and the measurements, which agree."""

import json
from typing import Any

import pytest

from docs import draw_scale

RESULTS = draw_scale.DOCS / "results"
FOUND = json.loads((RESULTS / "scale.json").read_text(encoding="utf-8"))
TIMES = json.loads((RESULTS / "scale_time.json").read_text(encoding="utf-8"))


def test_the_page_has_the_tables_of_the_formulas() -> None:
    page = (draw_scale.DOCS / "scale.md").read_text(encoding="utf-8")
    assert draw_scale.drawn(page, FOUND, TIMES) == page, "run docs/draw_scale.py"


@pytest.mark.parametrize("row", FOUND["rows"], ids=lambda row: "-".join(map(str, row["case"].values())))
def test_what_was_measured_is_what_is_predicted(row: dict[str, Any]) -> None:
    told = draw_scale.predicted(row)
    assert row["measured_mb"]["training"] == pytest.approx(told["training"], rel=0.1)
    if "exported" in row["measured_mb"]:
        assert row["measured_mb"]["exported"] == pytest.approx(told["exported"], rel=0.01)
        # An upper bound: memory that the process has already is used again.
        assert row["measured_mb"]["export"] < 1.1 * told["export"]
