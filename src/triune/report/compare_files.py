"""The files of a comparison, written whole or not at all."""

from pathlib import Path

from triune.errors import InputError
from triune.record import write_json, write_text
from triune.record_checks import CLOSED
from triune.report.compare_page import build_comparison_page
from triune.report.compare_run import Compared
from triune.report.compare_tables import compared_json, pairs_csv, render_comparison_markdown, scores_csv

MARKER = "compared.json"  # in every folder that a comparison was written to


def write_comparison(found: Compared, out: Path) -> Path:
    """Write the page, and Markdown, CSV and JSON beside it; all are built before the first is written.

    Returns the page's path. Raises InputError where `out` cannot be written to.
    """
    texts = {
        "report.md": render_comparison_markdown(found),
        "scores.csv": scores_csv(found),
        "comparisons.csv": pairs_csv(found),
        "report.html": build_comparison_page(found),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / MARKER, compared_json(found))
        for name, text in texts.items():
            write_text(out / name, text)
    except OSError as error:
        if error.errno not in CLOSED:
            raise
        raise InputError(f"cannot write {error.filename}: {error.strerror}; make {out} writable.") from error
    return out / "report.html"
