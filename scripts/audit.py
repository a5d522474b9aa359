#!/usr/bin/env python3
"""
Asks PyPI, through pip-audit, for known vulnerabilities of what the product depends on and the demo site installs, in
the versions that this environment has. Ends with 1 where there are any.

Where PyPI cannot be reached, one line says so and nothing fails: who works offline is not held up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "pip-audit"
#: Seconds for all, and for each answer.
TIME_LIMIT = 60
ANSWER_LIMIT = 5
#: How pip-audit fails where there is no way to PyPI: by its own word, or by a fault of the library that it asks with.
UNREACHABLE = ("ServiceError", "network may be blocking", "requests.exceptions.")


def main() -> str | None:
    """Look all packages up. Returns what is wrong, for `sys.exit` to say, or None."""
    packages = installed(wanted())
    try:
        done = audit(packages)
    except subprocess.TimeoutExpired:
        print(f"pip-audit: nothing was looked up: no answer within {TIME_LIMIT} s.")
        return None
    if not done.stdout:
        if any(sign in done.stderr for sign in UNREACHABLE):
            print("pip-audit: nothing was looked up: PyPI cannot be reached.")
            return None
        return f"pip-audit failed:\n{done.stderr}"
    entries: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    found = [
        f"{entry['name']} {entry['version']}: {known['id']}, fixed in: {', '.join(known['fix_versions']) or 'none'}"
        for entry in entries
        for known in entry.get("vulns", ())
    ]
    if found:
        return "pip-audit: known vulnerabilities:\n" + "\n".join(found)
    # A mirror of PyPI without this data knows no package, and pip-audit takes those for harmless.
    skipped = [entry["name"] for entry in entries if "skip_reason" in entry]
    if len(skipped) == len(entries):
        print("pip-audit: nothing was looked up: this index has no data on vulnerabilities.")
    else:
        missing = f", nothing known of {', '.join(skipped)}" if skipped else ""
        print(f"pip-audit: {len(entries) - len(skipped)} packages, no known vulnerability{missing}.")
    return None


def wanted() -> list[Requirement]:
    """What the product, its extras and the demo site ask for."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    extras = project["optional-dependencies"].values()
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    return [Requirement(line) for line in [*lines, *pyproject["dependency-groups"]["site"]]]


def installed(wanted: list[Requirement]) -> dict[str, str]:
    """Name to version of these packages as they are installed, of those that they need, and so on."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        package = distribution(name)
        versions[name] = package.version
        needed = [Requirement(line) for line in package.requires or ()]
        # What it always needs, and what each extra adds that somebody asks for.
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                wanted += [one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})]
    return versions


def audit(packages: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run pip-audit. It ends with 1 both where it found something and where it failed; its answer tells which."""
    CACHE.mkdir(parents=True, exist_ok=True)
    pinned = CACHE / "requirements.txt"
    pinned.write_text("".join(f"{name}=={version}\n" for name, version in sorted(packages.items())))
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(pinned), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--desc", "off", "--progress-spinner", "off"]
    command += ["--cache-dir", str(CACHE / "http"), "--timeout", str(ANSWER_LIMIT)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIME_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
