"""Whatever a run folder holds, its pages hold as text: no tag, no attribute, no script but our own.

Every text of every file of a run is turned into an attack, one kind of page after another.
"""

import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from triune.pipeline.reporting import compare_runs
from triune.report.collapse_files import write_collapse
from triune.report.files import write_report

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))  # as pytest has it for the tests of reports

from chromium import chromium, visit
from compared_runs import answered, write_run
from fake_run import fake_files, write_folder
from test_collapse_page import whole

# No alert(): where it runs, a browser without a window waits for ever for the answer.
# Breaks out of an element, of an attribute in either quotes, of a comment, of a style, of JSON in a script.
MARK = "taken-over"
ATTACK = (
    f"'\"><script>document.title='{MARK}';console.log('{MARK}')</script>"
    f"<img src=x onerror=\"document.title='{MARK}'\"><svg onload=\"console.log('{MARK}')\">--></style></script><!--"
    f"<a href=\"javascript:document.title='{MARK}'\">x</a>{{{{7*7}}}}$title${{title}}"
)
SHORT = f"'\"><script>document.title='{MARK}'</script><img src=x onerror=console.log(1)>"
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "a", "header", "p", "h1", "h2", "h3", "h4", "div", "nav"),
    *("ol", "ul", "li", "main", "section", "footer", "script", "table", "caption", "thead", "tbody", "tr", "th", "td"),
    *(
        "small",
        "br",
        "code",
        "pre",
        "strong",
        "em",
        "b",
        "i",
        "u",
        "span",
        "figure",
        "figcaption",
        "details",
        "summary",
    ),
    *(
        "noscript",
        "label",
        "select",
        "option",
        "input",
        "button",
        "dl",
        "dt",
        "dd",
        "blockquote",
        "abbr",
        "sub",
        "sup",
    ),
    *("svg", "g", "path", "rect", "circle", "line", "polyline", "polygon", "text", "tspan", "use", "defs", "clippath"),
    *("desc", "lineargradient", "stop", "marker", "mark", "time", "kbd", "colgroup", "col", "hr", "img", "metadata"),
}
LINKS = re.compile(
    r"#[\w:.-]*|https://arxiv\.org/abs/[\d.]+|(?!\w+:)[\w./-]+\.(html|md|csv|json)(#[\w-]+)?|data:image/png;base64,.*"
)


class Page(HTMLParser):
    """Tags, attributes and the contents of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words: list[str] = []
        self.inside: str = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self.inside != "style":
            self.words.append(data)


def check(text: str, n_data: int = 0) -> Page:
    """Nothing but our own tags; one script, whose hash the content policy names, and `n_data` blocks of JSON."""
    page = Page(text)
    assert {tag for tag, _ in page.tags} <= ALLOWED, {tag for tag, _ in page.tags} - ALLOWED
    for tag, attributes in page.tags:
        handlers = [name for name in attributes if name.startswith("on") or name in ("srcdoc", "formaction", "action")]
        assert handlers == [], (tag, handlers)
        for name in ("href", "src", "xlink:href"):
            if name in attributes:
                assert LINKS.fullmatch(attributes[name] or ""), (tag, name, attributes[name])
        assert MARK not in " ".join(attributes)  # no attribute's *name* is of a file
    own = [script for attributes, script in page.scripts if attributes.get("type") != "application/json"]
    data = [script for attributes, script in page.scripts if attributes.get("type") == "application/json"]
    assert (len(own), len(data)) == (1, n_data)
    assert MARK not in own[0]
    digest = base64.b64encode(hashlib.sha256(own[0].encode()).digest()).decode()
    policy = next(own["content"] for tag, own in page.tags if own.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{digest}'"]
    for block in data:
        assert not set("<>&") & set(block)
        assert json.loads(block)
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert MARK not in style
    return page


# Texts that a file may choose freely; others ("higher", a known metric) are refused when they are something else.
FREE = {
    *("model", "score", "judge", "unit", "labels", "method", "what", "note", "name", "prompt", "benchmark", "group"),
    *("version", "event", "cost", "reason", "about", "response", "kind", "processor", "memory", "system", "torch"),
}
KEPT = {"calibration.json", "reliability.json"}  # whose kinds and metrics are the page's own, but not their models


def attacked(value: Any, free: set[str] = FREE) -> Any:
    """The same document, in which every free text is followed by the attack, and so are names in `answers`."""
    if isinstance(value, list):
        return [attacked(item, free) for item in value]
    if not isinstance(value, dict):
        return value
    made = {}
    for key, item in value.items():
        named = key in {"answers", "verdicts"} and isinstance(item, dict)
        if named:
            made[key] = {
                f"{name}{ATTACK}": f"{own}{ATTACK}" if isinstance(own, str) else own for name, own in item.items()
            }
        else:
            made[key] = f"{item}{ATTACK}" if key in free and isinstance(item, str) else attacked(item, free)
    return made


def run_page(place: Path) -> tuple[Path, int]:
    files: dict[str, Any] = {}
    for name, content in fake_files().items():
        if name in {"models.json", "curves.json"}:
            few = {key: own for key, own in content.items() if key in ("base", "fused")}  # type: ignore[attr-defined]
            files[name] = {f"{model}{ATTACK}": attacked(own) for model, own in few.items()}
        elif name in KEPT:
            files[name] = attacked(content, {"model"})
        elif name == "routing.json":
            files[name] = {
                **content,
                "experts": [f"{n}{ATTACK}" for n in range(3)],
                "axes": [f"{n}{ATTACK}" for n in range(3)],
            }  # type: ignore[dict-item]
        else:
            files[name] = attacked(content)
    files["scores.json"] = files["scores.json"][:9]
    files["breakdown.json"] = files["breakdown.json"][:6]
    recipe = json.dumps({"title": ATTACK, "about": ATTACK, "caveats": [ATTACK], "scarce": {"a": ATTACK, ATTACK: 1}})
    return write_report(write_folder(place / "run <b>x", files, recipe)), 0


def across_page(place: Path) -> tuple[Path, int]:
    folder = place / "several <b>x"
    recipe = {"title": ATTACK, "about": ATTACK, "caveats": [ATTACK]}
    for seed in range(3):
        files = {name: attacked(fake_files()[name]) for name in ("scores.json", "timings.json")}
        files["scores.json"] = [
            row | {name: row[name] * 0.9 + seed for name in ("value", "low", "high")}
            for row in files["scores.json"][:9]
        ]
        write_folder(folder / f"seed-{seed}", files, json.dumps({**recipe, "seed": seed, "seeds": []}))
    (folder / "recipe.yaml").write_text(json.dumps({**recipe, "seed": 5, "seeds": [0, 1, 2]}))
    return write_report(folder), 0


def compare_page(place: Path) -> tuple[Path, int]:
    rows = [row for row in answered(("base", "fused"), 4, 3) if row["benchmark"] == "xstest"]
    # A model's answers lie in a folder of its name.
    named = {model: f"{model}{SHORT}".replace("/", "∕") for model in ("base", "fused")}
    rows = [{**attacked(row), "model": named[row["model"]], "benchmark": "xstest"} for row in rows]
    return compare_runs([write_run(place / "run <b>x", rows, ATTACK)], place / "out"), 1


def collapse_page(place: Path) -> tuple[Path, int]:
    text = json.dumps(whole(about=ATTACK))
    for name in ("kind", "safe", "mix"):
        text = text.replace(f'"{name}"', json.dumps(f"{name}{ATTACK}"))
    # "kind" is also a key of the routing's rows.
    text = text.replace(json.dumps(f"kind{ATTACK}") + ": ", '"kind": ')
    folder = place / "collapse <b>x"
    folder.mkdir()
    (folder / "collapse.json").write_text(text)
    return write_collapse(folder), 0


PAGES: dict[str, Callable[[Path], tuple[Path, int]]] = {
    "run": run_page,
    "across": across_page,
    "compare": compare_page,
    "collapse": collapse_page,
}


@pytest.mark.parametrize("kind", PAGES)
def test_no_text_of_a_file_becomes_markup(kind: str, tmp_path: Path) -> None:
    path, n_data = PAGES[kind](tmp_path)
    page = check(path.read_text(encoding="utf-8"), n_data)
    assert MARK in " ".join(page.words), "the attack is not on the page, so that nothing was tried"
    for text in path.parent.glob("*.md"):
        plain = re.sub(r"```.*?```", "", text.read_text(encoding="utf-8"), flags=re.DOTALL)  # fenced: shown as it is
        assert "<script" not in plain
        assert "<img" not in plain


@pytest.mark.parametrize("kind", PAGES)
def test_no_script_of_a_file_runs(kind: str, tmp_path: Path) -> None:
    """In a browser, and with the content policy taken out, so that the escaping alone holds."""
    chromium()
    path, _ = PAGES[kind](tmp_path)
    text = path.read_text(encoding="utf-8")
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text), encoding="utf-8")
    for page in (path, bare):
        seen = visit(page)
        assert seen.console == ()
        title = re.search(r"<title>(.*?)</title>", seen.dom, re.DOTALL)
        assert title is not None
        assert title[1].strip() != MARK


def test_the_marker_would_be_seen(tmp_path: Path) -> None:
    """The same page with the attack as markup: the browser says so."""
    chromium()
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><title>x</title><body><p title='{ATTACK}</body>", encoding="utf-8")
    seen = visit(page)
    assert any(MARK in line for line in seen.console)
    assert f"<title>{MARK}</title>" in seen.dom
    with pytest.raises(AssertionError):
        check(page.read_text(encoding="utf-8"))


def test_a_terminal_is_not_steered(tmp_path: Path) -> None:
    """An error quotes files: what would clear a screen, or cannot be written at all, is spelled out."""

    told = "import sys\nfrom triune.cli.main import _fail\n_fail('a\\x1b[2Jb\\ud800c\\u202ed\\ne \\x07', 2)\n"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.decode() == "error: a\\x1b[2Jb\\ud800c\\u202ed\ne \\x07\n"
