"""The report page: one HTML file that opens from disk and loads nothing."""

from triune.report import calibration_sections, run_sections, score_sections
from triune.report.findings import lead
from triune.report.html import Section, bullets, escape, paragraph
from triune.report.labels import headline_scores
from triune.report.run import Run
from triune.report.shell import Shell, build_shell

SECTIONS = (
    score_sections.scores,
    score_sections.scarce,
    score_sections.tradeoff,
    score_sections.beside,
    run_sections.caveats,
    run_sections.routing,
    calibration_sections.calibration,
    run_sections.drift,
    run_sections.curves,
    score_sections.phrasings,
    score_sections.samples,
    run_sections.size,
    run_sections.cost,
    run_sections.settings,
)


def build_page(run: Run) -> str:
    """The whole page as text. Text of models, data and recipes is escaped."""
    made = [make(run) for make in SECTIONS]
    sections = [part for part in made if isinstance(part, Section)]
    left_out = [part for part in made if isinstance(part, str)]
    if left_out:
        sections.append(Section("left-out", "Left out of this report", bullets(left_out)))
    shell = Shell(
        title=page_title(run),
        lead=lead(run),
        kicker="Triune run report",
        skip=("scores", "scores"),
        files='Also in this folder: <a href="report.md">report.md</a>, <a href="scores.csv">scores.csv</a>, '
        '<a href="scores.json">scores.json</a>. <a href="#caveats">What this does not show</a>.',
        made=f"Made by <code>triune report</code> from the run folder <code>{escape(run.folder.name)}</code>; every "
        "number stands in its files, none was computed for this page except the means that place points and bars in "
        "the trade-off picture.",
        about=paragraph(run.recipe.about, "about") if run.recipe and run.recipe.about else "",
        many=len(headline_scores(run)) > 1,
    )
    return build_shell(shell, sections)


def page_title(run: Run) -> str:
    """The recipe's title, or the folder's name."""
    return (run.recipe.title if run.recipe else "") or run.folder.resolve().name
