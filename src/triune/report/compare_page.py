"""The comparison page: one HTML file that opens from disk and loads nothing."""

from triune.report import compare_sections
from triune.report.compare_browser import browser
from triune.report.compare_run import Compared
from triune.report.compare_words import lead, title
from triune.report.html import Section, bullets
from triune.report.shell import Shell, build_shell

SECTIONS = (
    compare_sections.scores,
    compare_sections.differences,
    compare_sections.wins,
    compare_sections.categories,
    compare_sections.judges,
    compare_sections.reading,
    browser,
    compare_sections.runs,
)
METHODS = (
    'sign-flip tests with <a href="https://arxiv.org/abs/1603.05766">arXiv 1603.05766</a>, Holm\'s correction, paired '
    "bootstrap intervals; docs/statistics.md has the formulas"
)


def build_comparison_page(found: Compared) -> str:
    """The whole page as text. Text of models, data and recipes is escaped."""
    made = [make(found) for make in SECTIONS]
    sections = [part for part in made if isinstance(part, Section)]
    left_out = [part for part in made if isinstance(part, str)]
    if left_out:
        sections.append(Section("left-out", "Left out of this page", bullets(left_out)))
    shell = Shell(
        title=title(found),
        lead=lead(found),
        kicker="Triune comparison",
        skip=("scores", "scores"),
        files='Also in this folder: <a href="report.md">report.md</a>, <a href="scores.csv">scores.csv</a>, '
        '<a href="comparisons.csv">comparisons.csv</a>, <a href="compared.json">compared.json</a>. '
        '<a href="#caveats">How to read this</a>.',
        made="Made by <code>triune report</code> from the runs' own files, which it did not change. Scores and "
        "verdicts are theirs; differences, p-values and wins were computed from these verdicts.",
        methods=METHODS,
        styles=("compare.css",),
        scripts=("compare.js",),
        many=True,
    )
    return build_shell(shell, sections)
