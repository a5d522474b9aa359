"""
Programs that a test needs and a machine may lack.

A test asks with `require_program`. Without the program it is skipped, and the last lines of the run say so; with
`CI=true` it fails, for there a skip would hide that nothing was tested.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from .programs import find_program

if TYPE_CHECKING:
    from collections.abc import Generator

#: The modules that take half a minute or more. They come first, so that no process of a run is left alone with one.
LONGEST = {
    *("test_abuse", "test_accessibility", "test_browser", "test_docs", "test_drain", "test_element", "test_engines"),
    *("test_faults", "test_lanes", "test_live_events", "test_packaging", "test_promises", "test_react", "test_recipes"),
    *("test_redis", "test_revocation", "test_servers", "test_site", "test_slow_clients"),
}

#: Name to reason, of this run.
missing: dict[str, str] = {}


def in_ci() -> bool:
    """Whether the environment says `CI=true`."""
    return os.environ.get("CI", "").lower() in ("1", "true")


def require_program(name: str) -> str:
    """The path of a program. Where it is missing, the test is skipped; with `CI=true` it fails."""
    found = find_program(name)
    if found is None:
        _without(name, f"{name} is not installed")
    return found


def require_that(condition: object, name: str, reason: str) -> None:
    """As `require_program`, for what is no program: a server that must answer, a privilege."""
    if not condition:
        _without(name, reason)


def _without(name: str, reason: str) -> NoReturn:
    if in_ci():
        pytest.fail(f"{reason}, and CI=true allows no skip for it.", pytrace=False)
    missing[name] = reason
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Debian's Chromium."""
    return require_program("chromium")


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known, and let Ctrl-C end the servers of the tests."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell has its background jobs ignore it, and whatever they start.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "nightly: takes minutes; run only where `-m` names it")
    config.addinivalue_line("markers", "unmeasured: runs clients of servers, and none of the app in this process")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the longest modules, in the order in which they were shuffled. Leave out what takes minutes."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    if "nightly" in config.option.markexpr:
        return
    if left_out := [item for item in items if item.get_closest_marker("nightly")]:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """
    Measure nothing of a test marked `unmeasured`: one that runs none of the app here, but has much to read of servers.

    Not with `no_cover` of pytest-cov, which stops coverage as a whole: threads that live on would never be measured
    again. Only the thread of the test is left out.
    """
    tracer = sys.gettrace()
    # Coverage's, not a debugger's.
    is_left_out = item.get_closest_marker("unmeasured") and type(tracer).__module__.startswith("coverage")
    if is_left_out:
        sys.settrace(None)
    try:
        return (yield)
    finally:
        if is_left_out:
            sys.settrace(tracer)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what another process of this run had to do without."""
    missing.update(getattr(node, "workeroutput", {}).get("missing", {}))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that collects the results what this one had to do without."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["missing"] = missing


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """Let coverage be shown and not judged where tests could not run."""
    # Last of the wrappers, so what follows `yield` comes before pytest-cov looks.
    result = yield
    coverage = session.config.pluginmanager.get_plugin("_cov")
    if missing and coverage is not None:
        coverage.options.cov_fail_under = 0
    return result


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Name what was skipped, after everything else that pytest prints."""
    if not missing:
        return
    skipped: dict[str, int] = {}
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    for report in reporter.stats.get("skipped", []) if reporter else []:
        for name, reason in missing.items():
            if reason in str(report.longrepr):
                skipped[name] = skipped.get(name, 0) + 1
    writer = config.get_terminal_writer()
    writer.line()
    writer.line("Skipped for want of a program (coverage is not judged):", yellow=True)
    for name, reason in sorted(missing.items()):
        count = skipped.get(name, 0)
        writer.line(f"  {name}: {reason}; {count} test{'' if count == 1 else 's'} not run", yellow=True)
