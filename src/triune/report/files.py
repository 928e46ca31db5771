"""The report's files, written whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

from triune.errors import InputError
from triune.record import write_json, write_text
from triune.record_checks import CLOSED
from triune.report.across_folder import load_across, seeds_of
from triune.report.across_markdown import render_across_markdown
from triune.report.across_page import build_across_page
from triune.report.across_tables import across_csv, across_json
from triune.report.folder import load_run
from triune.report.markdown import render_markdown
from triune.report.page import build_page
from triune.report.sweep_folder import is_sweep, load_sweep
from triune.report.sweep_page import build_sweep_page
from triune.report.sweep_run import side_by_side
from triune.report.sweep_tables import render_sweep_markdown, sweep_csv
from triune.report.tables import csv_text


def write_report(folder: Path) -> Path:
    """Read the finished run in `folder` and write report.html, report.md and scores.csv beside it.

    Of a recipe over several seeds the page sums up the finished seeds, with across.csv and across.json instead; of a
    sweep it compares the finished points, with sweep.csv. All files are built before the first is written, and each
    replaces its forerunner in one move.

    Returns:
        The path of report.html.

    Raises:
        InputError: the folder does not hold a finished run, or cannot be written to.
    """
    if is_sweep(folder):
        return _write_sweep(folder)
    if seeds_of(folder):
        return _write_across(folder)
    run = load_run(folder)
    texts = {"report.md": render_markdown(run), "scores.csv": csv_text(run), "report.html": build_page(run)}
    _write(folder, texts, {})
    return folder / "report.html"


def _write_across(folder: Path) -> Path:
    run = load_across(folder)
    texts = {
        "report.md": render_across_markdown(run),
        "across.csv": across_csv(run),
        "report.html": build_across_page(run),
    }
    _write(folder, texts, {"across.json": across_json(run)})
    return folder / "report.html"


def _write_sweep(folder: Path) -> Path:
    run = side_by_side(load_sweep(folder))
    texts = {
        "report.md": render_sweep_markdown(run),
        "sweep.csv": sweep_csv(run),
        "report.html": build_sweep_page(run),
    }
    _write(folder, texts, {})
    return folder / "report.html"


def _write(folder: Path, texts: Mapping[str, str], values: Mapping[str, object]) -> None:
    try:
        for name, value in values.items():
            write_json(folder / name, value)
        for name, text in texts.items():
            write_text(folder / name, text)
    except OSError as error:
        if error.errno not in CLOSED:
            raise
        raise InputError(f"cannot write {error.filename}: {error.strerror}; make {folder} writable.") from error
