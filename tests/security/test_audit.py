"""The audit of dependencies: what it prints, and that it says when it looked at nothing."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def audit() -> ModuleType:
    spec = spec_from_file_location("audit", Path(__file__).parents[2] / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    made = module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


FOUND: dict[str, Any] = {
    "dependencies": [
        {
            "name": "a",
            "version": "1",
            "vulns": [{"id": "X-1", "fix_versions": ["2"]}, {"id": "X-2", "fix_versions": []}],
        },
        {"name": "b", "version": "1", "vulns": []},
        {"name": "triune", "skip_reason": "not on the index"},
    ]
}


def test_what_can_be_mended_is_named(audit: ModuleType) -> None:
    assert audit.report(FOUND) == [
        "audit: 2 packages, 2 known vulnerabilities",
        "audit: a 1: X-1; mended in ['2']",
        "audit: 1 of them have no mended version yet",
    ]


def test_without_the_tool(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "find_spec", lambda name: None)
    assert audit.audit() == [
        "audit: SKIPPED, no package was looked at: pip-audit is not installed (pip install pip-audit)"
    ]


@pytest.mark.parametrize(("output", "error"), [("", "a\nno network"), ("[]", "no network"), ("{}", "no network")])
def test_without_the_index(audit: ModuleType, monkeypatch: pytest.MonkeyPatch, output: str, error: str) -> None:
    monkeypatch.setattr(audit, "find_spec", lambda name: name)
    done = subprocess.CompletedProcess([sys.executable], 1, output, error)
    monkeypatch.setattr(subprocess, "run", lambda *args, **more: done)
    assert audit.audit() == ["audit: SKIPPED, no package was looked at: pip-audit ended with 1: no network"]
