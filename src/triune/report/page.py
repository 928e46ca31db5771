"""The report page: one HTML file that opens from disk and loads nothing."""

import base64
import hashlib
from importlib.resources import files
from string import Template

from triune.report import calibration_sections, run_sections, score_sections
from triune.report.findings import lead
from triune.report.html import Section, bullets, escape, paragraph
from triune.report.labels import headline_scores
from triune.report.run import Run
from triune.report.theme import style_variables

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
    """The whole page as text. Text of models, data and recipes is escaped; a content policy backs that up:
    nothing is loaded from anywhere, and the page's own script is the only one that may run."""
    room = files("triune.report")
    script = room.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made = [make(run) for make in SECTIONS]
    sections = [part for part in made if isinstance(part, Section)]
    left_out = [part for part in made if isinstance(part, str)]
    if left_out:
        sections.append(Section("left-out", "Left out of this report", bullets(left_out)))
    title = page_title(run)
    return Template(room.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        about=paragraph(run.recipe.about, "about") if run.recipe and run.recipe.about else "",
        lead="".join(paragraph(sentence) for sentence in lead(run)),
        many="many" if len(headline_scores(run)) > 1 else "one",
        contents="".join(f'<li><a href="#{s.name}">{escape(s.title)}</a></li>' for s in sections),
        sections="".join(map(_section, sections)),
        folder=escape(run.folder.name),
        variables=style_variables(),
        style=room.joinpath("page.css").read_text(encoding="utf-8"),
        script=script,
        script_digest=digest,
    )


def page_title(run: Run) -> str:
    """The recipe's title, or the folder's name."""
    return (run.recipe.title if run.recipe else "") or run.folder.resolve().name


def _section(section: Section) -> str:
    head = f'<h2 id="{section.name}-title">{escape(section.title)}</h2>'
    return f'<section id="{section.name}" aria-labelledby="{section.name}-title">{head}{section.body}</section>'
