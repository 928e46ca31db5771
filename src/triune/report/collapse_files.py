"""What `triune diagnose collapse` leaves beside collapse.json: a page, Markdown, and a table for the terminal."""

from pathlib import Path
from typing import TYPE_CHECKING

from triune.record import write_text
from triune.report.collapse_account import CollapseAccount, load_collapse
from triune.report.collapse_page import build_collapse_page
from triune.report.collapse_parts import ForgettingMap
from triune.report.collapse_words import HOW, TITLES, lead, reading_text, signs, title
from triune.report.labels import plain
from triune.report.markdown import inline, table

if TYPE_CHECKING:
    from rich.table import Table

PAGE = "collapse.html"


def write_collapse(folder: Path) -> Path:
    """Write collapse.html and collapse.md from the folder's collapse.json; gives the page's path.

    Raises InputError for a file that is damaged.
    """
    found = load_collapse(folder)
    texts = {"collapse.md": render_collapse_markdown(found), PAGE: build_collapse_page(found)}
    for name, text in texts.items():
        write_text(folder / name, text)
    return folder / PAGE


def render_collapse_markdown(found: CollapseAccount) -> str:
    """The numbers in short and the forgetting matrices, as GitHub-flavoured Markdown."""
    blocks = [f"# {inline(title(found))}", *(inline(sentence) for sentence in lead(found) if sentence)]
    rows = [[inline(sign.name), inline(sign.value), inline(sign.beside)] for sign in signs(found)]
    blocks.append(table(["sign", "measured", "to compare with"], rows))
    blocks.append("States are those after the last block; in brackets 95 % intervals.")
    for name, matrix in (("loss", found.view.loss), ("score", found.view.score)):
        if matrix is not None:
            blocks += [f"## {TITLES[name]}", _matrix(matrix), inline(HOW[name])]
    return "\n\n".join(blocks) + "\n"


def _matrix(matrix: ForgettingMap) -> str:
    head = [f"trained on ({inline(matrix.unit)})" if matrix.unit else "trained on", *map(inline, matrix.axes)]
    rows = [
        [inline(trained), *(inline(reading_text(reading, matrix.unit, sign=True)) for reading in cells)]
        for trained, cells in zip(matrix.trained, matrix.cells, strict=True)
    ]
    return table(head, rows)


def render_collapse_terminal(found: CollapseAccount) -> "Table":
    """The numbers in short as a table for a console."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    shown.add_column("sign", overflow="fold")
    shown.add_column("measured", overflow="fold")
    shown.add_column("to compare with", overflow="fold")
    for sign in signs(found):
        shown.add_row(Text(plain(sign.name)), Text(plain(sign.value), style="bold"), Text(plain(sign.beside)))
    return shown
