"""Known vulnerabilities of the packages installed here, by pip-audit. Never fails a build.

First each service is asked about a release that is known to be vulnerable. Where none of them knows it (no network,
or a mirror that serves packages and not what is known of them), nothing is looked at, and that is said, with the
reason, within seconds. Of what pip-audit finds, the packages really looked at and those not looked at are counted
apart. A vulnerability that a newer version mends is named with that version; one without a mend is only counted.
"""

import json
import subprocess
import sys
import urllib.request
from collections import Counter
from importlib.util import find_spec
from typing import Any

SECONDS = 180  # for all packages
PROBE_SECONDS = 5.0  # for a service's one answer
OLD = ("jinja2", "2.4.1")  # CVE-2014-1402 and others
BY_NAME = {"version": OLD[1], "package": {"name": OLD[0], "ecosystem": "PyPI"}}
# pip-audit's name of a service -> where it is asked, what is sent (None: a GET), and the answer's field.
SERVICES: dict[str, tuple[str, bytes | None, str]] = {
    "pypi": (f"https://pypi.org/pypi/{OLD[0]}/{OLD[1]}/json", None, "vulnerabilities"),
    "osv": ("https://api.osv.dev/v1/query", json.dumps(BY_NAME).encode(), "vulns"),
}


def unfit(service: str) -> str | None:
    """Why a service cannot be used; None where it knows the old release's vulnerabilities."""
    address, sent, field = SERVICES[service]
    asked = urllib.request.Request(address, data=sent, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=PROBE_SECONDS) as answer:
            known = json.loads(answer.read())[field]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{error}"[:100] or type(error).__name__
    return None if known else f"knows nothing of {' '.join(OLD)}"


def report(found: dict[str, Any]) -> list[str]:
    """The lines to print, of pip-audit's JSON."""
    packages = [package for package in found["dependencies"] if "skip_reason" not in package]
    left = [package for package in found["dependencies"] if "skip_reason" in package]
    if not packages:
        why = f": {left[0]['skip_reason']}" if left else ""
        return skipped(f"none of {len(left)} was found{why}")
    known = [(package, fault) for package in packages for fault in package["vulns"]]
    lines = [f"audit: {len(packages)} packages looked at, {len(known)} known vulnerabilities"]
    if left:
        lines.append(f"audit: {len(left)} packages not looked at: {', '.join(package['name'] for package in left)}")
    for package, fault in known:
        if fault["fix_versions"]:
            mended = ", ".join(fault["fix_versions"])
            lines.append(f"audit: {package['name']} {package['version']}: {fault['id']}; mended in {mended}")
    unmended = Counter(package["name"] for package, fault in known if not fault["fix_versions"])
    if unmended:
        lines.append(f"audit: {unmended.total()} have no mended version yet: {', '.join(sorted(unmended))}")
    return lines


def skipped(why: str) -> list[str]:
    """What is printed where nothing was looked at."""
    return [f"audit: SKIPPED, no package was looked at: {why}"]


def audit() -> list[str]:
    """Run pip-audit over this interpreter's packages; the lines to print."""
    if find_spec("pip_audit") is None:
        return skipped("pip-audit is not installed (pip install pip-audit)")
    reasons: dict[str, str] = {}
    for service in SERVICES:
        reason = unfit(service)
        if reason is None:
            return _audited(service)
        reasons[service] = reason
    return skipped("; ".join(f"{service} does not answer ({reason})" for service, reason in reasons.items()))


def _audited(service: str) -> list[str]:
    options = ["--local", "--vulnerability-service", service, "--timeout", "10", "--progress-spinner", "off"]
    command = [sys.executable, "-m", "pip_audit", *options, "--format", "json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        return skipped(f"pip-audit did not end: {error}"[:200])
    try:
        return report(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError):
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return skipped(f"pip-audit ended with {done.returncode}: {said[:200]}")


if __name__ == "__main__":
    print("\n".join(audit()))
