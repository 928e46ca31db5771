"""The audit of dependencies: what it prints, and that it says when it looked at nothing."""

import io
import json
import subprocess
import sys
import urllib.error
import urllib.request
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with pip-audit there; nothing is asked yet."""
    spec = spec_from_file_location("audit", Path(__file__).parents[2] / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    made = module_from_spec(spec)
    spec.loader.exec_module(made)
    monkeypatch.setattr(made, "find_spec", lambda name: name)
    return made


def answers(monkeypatch: pytest.MonkeyPatch, **given: str | Exception) -> list[str]:
    """What each service says to the first question; the list of those asked."""
    asked: list[str] = []

    def open_it(request: urllib.request.Request, timeout: float) -> io.BytesIO:
        assert timeout <= 5
        service = "osv" if "osv" in request.full_url else "pypi"
        assert (request.data is not None) == (service == "osv")
        asked.append(service)
        said = given[service]
        if isinstance(said, Exception):
            raise said
        return io.BytesIO(said.encode())

    monkeypatch.setattr(urllib.request, "urlopen", open_it)
    return asked


def ends(monkeypatch: pytest.MonkeyPatch, done: subprocess.CompletedProcess[str] | Exception) -> list[list[str]]:
    """What pip-audit does; the commands that were run."""
    commands: list[list[str]] = []

    def run(command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if isinstance(done, Exception):
            raise done
        return done

    monkeypatch.setattr(subprocess, "run", run)
    return commands


NOTHING = "audit: SKIPPED, no package was looked at: "
KNOWN = json.dumps({"vulnerabilities": [{"id": "X"}], "vulns": [{"id": "X"}]})
NO_NAME = urllib.error.URLError("no such name")
FOUND: dict[str, Any] = {
    "dependencies": [
        {
            "name": "a",
            "version": "1",
            "vulns": [{"id": "X-1", "fix_versions": ["2", "3"]}, {"id": "X-2", "fix_versions": []}],
        },
        {"name": "b", "version": "1", "vulns": []},
        {"name": "triune", "skip_reason": "not on the index"},
    ]
}


def test_what_can_be_mended_is_named(audit: ModuleType) -> None:
    assert audit.report(FOUND) == [
        "audit: 2 packages looked at, 2 known vulnerabilities",
        "audit: 1 packages not looked at: triune",
        "audit: a 1: X-1; mended in 2, 3",
        "audit: 1 have no mended version yet: a",
    ]


def test_where_each_package_was_left_out(audit: ModuleType) -> None:
    """What a mirror without the index's facts gives: no package, and pip-audit's own "no known vulnerabilities"."""
    left = [{"name": name, "skip_reason": f"{name} not found on PyPI"} for name in "ab"]
    assert audit.report({"dependencies": left}) == [f"{NOTHING}none of 2 was found: a not found on PyPI"]
    assert audit.report({"dependencies": []}) == [f"{NOTHING}none of 0 was found"]


def test_without_the_tool(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "find_spec", lambda name: None)
    assert audit.audit() == [f"{NOTHING}pip-audit is not installed (pip install pip-audit)"]


def test_the_first_service_that_knows_the_old_release_is_used(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([sys.executable], 1, json.dumps(FOUND), "")
    for given, asked in (
        ({"pypi": KNOWN}, ["pypi"]),
        ({"pypi": '{"vulnerabilities": []}', "osv": KNOWN}, ["pypi", "osv"]),
    ):
        found, commands = answers(monkeypatch, **given), ends(monkeypatch, done)
        assert audit.audit() == audit.report(FOUND)
        assert found == asked
        assert commands[0][commands[0].index("--vulnerability-service") + 1] == asked[-1]


@pytest.mark.parametrize(
    ("pypi", "why"),
    [
        (NO_NAME, "no such name"),
        (urllib.error.HTTPError("x", 404, "Not Found", {}, None), "HTTP Error 404: Not Found"),  # type: ignore[arg-type]
        (TimeoutError("timed out"), "timed out"),
        ("<html>", "Expecting value"),
        ("[]", "list indices"),
        ("{}", "vulnerabilities"),
        ('{"vulnerabilities": []}', "knows nothing of jinja2 2.4.1"),
    ],
)
def test_without_a_service(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, pypi: str | Exception, why: str
) -> None:
    answers(monkeypatch, pypi=pypi, osv=NO_NAME)
    commands = ends(monkeypatch, AssertionError("asked"))
    (line,) = audit.audit()
    assert line.startswith(f"{NOTHING}pypi does not answer (")
    assert why in line
    assert "; osv does not answer (<urlopen error no such name>)" in line
    assert commands == []


@pytest.mark.parametrize(("output", "error"), [("", "a\nno network"), ("[]", "no network"), ("{}", "no network")])
def test_where_the_tool_fails(audit: ModuleType, monkeypatch: pytest.MonkeyPatch, output: str, error: str) -> None:
    answers(monkeypatch, pypi=KNOWN)
    ends(monkeypatch, subprocess.CompletedProcess([sys.executable], 1, output, error))
    assert audit.audit() == [f"{NOTHING}pip-audit ended with 1: no network"]


def test_where_the_tool_does_not_end(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, pypi=KNOWN)
    ends(monkeypatch, subprocess.TimeoutExpired("pip-audit", 180))
    (line,) = audit.audit()
    assert line.startswith(f"{NOTHING}pip-audit did not end: ")
