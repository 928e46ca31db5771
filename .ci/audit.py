"""Known vulnerabilities of the packages installed here, by pip-audit. Never fails a build.

Without pip-audit, or where its index cannot be reached, it says that nothing was looked at. A vulnerability that a
newer version mends is named with that version; one without a mend is only counted.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

SECONDS = 300


def report(found: dict[str, Any]) -> list[str]:
    """The lines to print, of pip-audit's JSON."""
    packages = [package for package in found["dependencies"] if "skip_reason" not in package]
    known = [(package, fault) for package in packages for fault in package["vulns"]]
    lines = [f"audit: {len(packages)} packages, {len(known)} known vulnerabilities"]
    for package, fault in known:
        if fault["fix_versions"]:
            lines.append(
                f"audit: {package['name']} {package['version']}: {fault['id']}; mended in {fault['fix_versions']}"
            )
    unmended = sum(not fault["fix_versions"] for _, fault in known)
    return [*lines, *([f"audit: {unmended} of them have no mended version yet"] if unmended else [])]


def skipped(why: str) -> list[str]:
    """What is printed where nothing was looked at."""
    return [f"audit: SKIPPED, no package was looked at: {why}"]


def audit() -> list[str]:
    """Run pip-audit over this interpreter's packages; the lines to print."""
    if find_spec("pip_audit") is None:
        return skipped("pip-audit is not installed (pip install pip-audit)")
    command = [sys.executable, "-m", "pip_audit", "--local", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        return report(json.loads(done.stdout))
    except subprocess.TimeoutExpired:
        return skipped(f"no answer within {SECONDS} s")
    except (OSError, ValueError, KeyError, TypeError):
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return skipped(f"pip-audit ended with {done.returncode}: {said[:200]}")


if __name__ == "__main__":
    print("\n".join(audit()))
