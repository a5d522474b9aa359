#!/usr/bin/env python3
"""
Run the tests with every supported Python and Django that this machine has or can install.

Arguments choose: `3.12:6.0` one pair, `3.12` a Python with all its Djangos; `--brief` the oldest Python with its Django
and the newest one with each of the others, and of the tests those that a new Django is most likely to break.
Environments are kept in .cache/matrix.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / ".cache" / "matrix"
#: The minor versions of Python, and the oldest of them that each Django runs on.
PYTHONS = range(10, 15)
DJANGOS = {"5.2": 10, "6.0": 12, "6.1": 12}
#: What `--brief` runs: how Django streams and hands over, through real servers and GZipMiddleware; its middleware,
#: sessions, page cache, admin, models and transactions.
BRIEF = [
    "tests/test_access.py",
    "tests/test_admission.py",
    "tests/test_api.py",
    "tests/test_control.py",
    "tests/test_direct.py",
    "tests/test_keys.py",
    "tests/test_responses.py",
    "tests/test_rights.py",
    "tests/test_templatetags.py",
    "tests/test_views.py",
    "tests/test_admin.py",
    "tests/test_models.py",
    "tests/backends/test_database.py",
    "tests/backends/test_postgresql.py",
    "tests/test_servers.py",
    "-k",
    "not test_servers or timely or in_time or at_once or nginx",
]


def version_of(python: str) -> str | None:
    """The `3.X` of a Python that runs; None for one that does not (a version manager's stand-in, say)."""
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def find_pythons() -> dict[str, str]:
    """Version to path: this one, those on PATH, and those that pyenv keeps."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [
        sys.executable,
        *(shutil.which(f"python3.{minor}") for minor in PYTHONS),
        *(str(path) for path in sorted(pyenv.glob("3.*/bin/python"), reverse=True)),
    ]
    wanted = {f"3.{minor}" for minor in PYTHONS}
    found: dict[str, str] = {}
    for candidate in filter(None, candidates):
        version = version_of(candidate)
        if version in wanted:
            found.setdefault(version, candidate)
    return dict(sorted(found.items(), key=lambda item: int(item[0].split(".")[1])))


def run_pair(python: str, version: str, django: str, tests: list[str]) -> str:
    """Make or refresh the environment of one pair, run the tests in it, and say how that ended."""
    folder = ENVIRONMENTS / f"python{version}-django{django}"
    inside = folder / "bin" / "python"
    install = [str(inside), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    if not inside.exists():
        subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    for what in (
        ["--upgrade", "pip>=25.1"],
        ["--editable", str(ROOT), "--group", "test", f"Django~={django}.0"],
    ):
        if subprocess.run([*install, *what], cwd=ROOT, check=False).returncode:
            return "not installed"
    # MariaDB's driver, which is built from source.
    subprocess.run([ROOT / "scripts" / "programs"], cwd=ROOT, env={**os.environ, "VENV": str(folder)}, check=False)
    # Each pair alone need not reach every line: `make test` judges coverage.
    done = subprocess.run([inside, "-m", "pytest", "-q", "--numprocesses", "2", *tests], cwd=ROOT, check=False)
    return "passed" if done.returncode == 0 else f"failed (pytest's exit code {done.returncode})"


def main(chosen: list[str]) -> int:
    """Run the pairs that were chosen, or all, and print one line for each."""
    pythons = find_pythons()
    is_brief = chosen == ["--brief"]
    if is_brief:
        oldest_python, *_, newest_python = [*pythons, *pythons]
        chosen = [f"{newest_python}:{django}" for django in list(DJANGOS)[1:]]
        chosen.append(f"{oldest_python}:{next(iter(DJANGOS))}")
    pairs = [
        (version, django)
        for version in pythons
        for django, oldest in DJANGOS.items()
        if int(version.split(".")[1]) >= oldest and (not chosen or version in chosen or f"{version}:{django}" in chosen)
    ]
    if not pairs:
        print(f"Nothing to run. Found: {', '.join(pythons)}; Djangos: {', '.join(DJANGOS)}.")
        return 2
    results: list[tuple[str, str, str, float]] = []
    for version, django in pairs:
        print(f"\n--- Python {version}, Django {django}", flush=True)
        begun = time.monotonic()
        results.append(
            (
                version,
                django,
                run_pair(pythons[version], version, django, BRIEF if is_brief else []),
                time.monotonic() - begun,
            )
        )
    print()
    for version, django, result, seconds in results:
        print(f"Python {version}  Django {django}  {seconds:5.0f} s  {result}")
    absent = [f"3.{minor}" for minor in PYTHONS if f"3.{minor}" not in pythons]
    if absent and (is_brief or not chosen):
        print(f"Not found on this machine: Python {', '.join(absent)}")
    return 0 if all(result == "passed" for _, _, result, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
