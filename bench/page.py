"""What the live page costs the browser that shows it: frames while much arrives, memory after much has arrived."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bench.process import BenchError, environment, run_json
from bench.report import Table
from bench.scratch import folder
from bench.servers import UVICORN, installed, uvicorn
from bench.stats import percentile, spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from playwright.sync_api import Browser, BrowserContext, Page

    from bench.options import Options

#: Events a second while frames are looked at, and for how many seconds.
RATE = 1_000
SECONDS = 10
#: Events a second on the way to many, where only the memory afterwards counts.
FAST = 3_000
#: After how many events memory is read.
MILESTONES = (10_000, 100_000)
#: Rows that both pages keep.
ROWS = 500
#: Milliseconds that no frame and no task may take.
BUDGET = 50
#: Seconds that a page may be silent before it has failed.
PATIENCE = 60

LIVE = "live page"
BARE = "bare EventSource"
STREAM = "/events/stream/?channel=bench"
#: Counts events and watches the main thread, from before the page's own scripts on.
WATCH = """
window.bench = { events: 0, frames: [], tasks: [], isOn: false };
document.addEventListener("live-event", () => bench.events++);
new PerformanceObserver((list) => {
  if (bench.isOn) for (const { duration } of list.getEntries()) bench.tasks.push(duration);
}).observe({ type: "longtask" });
let last = 0;
const frame = (now) => {
  if (bench.isOn && last) bench.frames.push(now - last);
  last = now;
  requestAnimationFrame(frame);
};
requestAnimationFrame(frame);
"""
#: The least that shows events: a row each, newest first, as many as the live page keeps.
PAGE = f"""<!doctype html><title>bare</title><link rel="icon" href="data:,"><ul id="list"></ul><script>
const list = document.getElementById("list");
const source = new EventSource("{STREAM}");
source.onopen = () => (window.isOpen = true);
source.onmessage = ({{ data }}) => {{
  const row = document.createElement("li");
  row.textContent = data;
  list.prepend(row);
  if (list.childElementCount > {ROWS}) list.lastElementChild.remove();
  bench.events++;
}};
</script>"""
OPEN = {
    LIVE: "document.querySelector('live-channel')?.dataset.state === 'live'",
    BARE: "window.isOpen === true",
}
PATHS = {LIVE: "/events/channels/bench/", BARE: "/bare/"}


@dataclass(kw_only=True)
class Frames:
    """Milliseconds between frames, and of the tasks that took more than 50, of one run."""

    frames: list[float]
    tasks: list[float]


@dataclass(kw_only=True)
class Memory:
    """Bytes of the JavaScript heap and nodes of the DOM, after so many events, of one run."""

    heap: dict[int, float] = field(default_factory=dict)
    nodes: dict[int, float] = field(default_factory=dict)


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def _site() -> Iterator[tuple[int, dict[str, str]]]:
    """The demo site with a channel that keeps everything; its port, and what a publisher has in its environment."""
    with folder() as place:
        env = {"DJANGO_SETTINGS_MODULE": "sse_site.settings", "DATA_DIR": str(place), "LOG_LEVEL": "WARNING"}
        _manage(env, "migrate", "--verbosity", "0")
        make = "from events.models import Channel; Channel.objects.create("
        make += "name='bench', title='Bench', access='public', history_events=None)"
        _manage(env, "shell", "--verbosity", "0", "--command", make)
        with uvicorn("sse_site.asgi:application", env=env) as (_, port):
            yield port, env


def _manage(env: Mapping[str, str], *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "django", *words], check=False, env=environment(env), capture_output=True, text=True
    )
    if done.returncode:
        raise BenchError(f"django {' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")


@contextlib.contextmanager
def _opened(browser: Browser, port: int, who: str) -> Iterator[Page]:
    """The page, in a profile of its own, when its stream is open."""
    context: BrowserContext = browser.new_context(viewport={"width": 1200, "height": 800})
    try:
        context.add_init_script(WATCH)
        context.route("**/bare/", lambda route: route.fulfill(content_type="text/html", body=PAGE))
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}{PATHS[who]}")
        # Not `wait_for_function`, which the page's policy forbids.
        until = time.monotonic() + PATIENCE
        while not page.evaluate(OPEN[who]):
            if time.monotonic() > until:
                raise BenchError(f"the {who} has no open stream after {PATIENCE} s")
            page.wait_for_timeout(50)
        yield page
    finally:
        context.close()


def _publish(page: Page, env: Mapping[str, str], count: int, rate: float, first: int) -> float:
    """Publish from another process, and wait until the page has all of it. The seconds that publishing took."""
    wanted = page.evaluate("bench.events") + count
    # On the server's core: the browser has the other one for itself.
    took = float(run_json("bench.page_publisher", str(count), str(rate), str(first), env=env, core="server"))
    seen, since = -1, time.monotonic()
    while (now := page.evaluate("bench.events")) < wanted:
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise BenchError(f"the page has {now} of {wanted} events, and nothing came for {PATIENCE} s")
        page.wait_for_timeout(100)
    if now > wanted:
        raise BenchError(f"the page has {now} events of {wanted}: some came twice")
    return took


def _frames(page: Page, env: Mapping[str, str], options: Options) -> Frames:
    """Let the page show what comes, and watch."""
    seconds = 3 if options.quick else SECONDS
    # What is compiled and laid out once is not counted.
    _publish(page, env, RATE, RATE, 0)
    page.evaluate("bench.isOn = true")
    took = _publish(page, env, RATE * seconds, RATE, RATE)
    found: dict[str, Any] = page.evaluate("(bench.isOn = false, bench)")
    if took > 1.1 * seconds:
        print(f"  the publisher took {took:.1f} s for {seconds} s: less than {RATE} events a second", flush=True)
    return Frames(frames=found["frames"], tasks=found["tasks"])


def _memory(page: Page, env: Mapping[str, str], milestones: tuple[int, ...]) -> Memory:
    """Let the page show many, and read its memory on the way."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    session.send("HeapProfiler.enable")
    memory, shown = Memory(), 0
    for milestone in milestones:
        _publish(page, env, milestone - shown, FAST, shown)
        shown = milestone
        # What waits to be painted is painted, and then the second collection frees what the first has found.
        page.wait_for_timeout(1500)
        for _ in range(2):
            session.send("HeapProfiler.collectGarbage")
        metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
        memory.heap[milestone], memory.nodes[milestone] = metrics["JSHeapUsedSize"], metrics["Nodes"]
    return memory


def _measure(options: Options, milestones: tuple[int, ...]) -> tuple[dict[str, list[Frames]], dict[str, list[Memory]]]:
    from playwright.sync_api import Error, sync_playwright  # noqa: PLC0415 - installed, or this is not called

    frames: dict[str, list[Frames]] = {LIVE: [], BARE: []}
    memory: dict[str, list[Memory]] = {LIVE: [], BARE: []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox", "--disable-gpu"])
        try:
            for turn in range(options.runs):
                for who in (LIVE, BARE):
                    # A log of its own each time: what another run has published is in nobody's way.
                    with _site() as (port, env), _opened(browser, port, who) as page:
                        found = _frames(page, env, options)
                        frames[who].append(found)
                    with _site() as (port, env), _opened(browser, port, who) as page:
                        memory[who].append(_memory(page, env, milestones))
                    print(
                        f"  run {turn + 1}: {who}: longest frame {max(found.frames, default=0):.0f} ms, longest task "
                        f"{max(found.tasks, default=0):.0f} ms, heap "
                        + ", ".join(f"{heap / 2**20:.2f} MiB" for heap in memory[who][-1].heap.values()),
                        flush=True,
                    )
        except Error as error:
            raise BenchError(f"Chromium: {error}") from error
        finally:
            browser.close()
    return frames, memory


def run(options: Options) -> list[Table]:
    """Frames and memory, of the live page and of the barest one, in turn."""
    milestones = tuple(count // 10 for count in MILESTONES) if options.quick else MILESTONES
    smooth = Table(
        title=f"A page that shows {RATE:,} events a second",
        columns=("page", "frames, p50 ms", "p99 ms", "max ms", f"tasks above {BUDGET} ms", "longest ms", "target"),
        note=f"Intervals between frames, and tasks of the main thread. Both pages keep {ROWS} rows.",
    )
    flat = Table(
        title="Memory of a page that has shown many events",
        columns=(
            "page",
            *(f"heap after {count:,}, MiB" for count in milestones),
            *(f"DOM nodes after {count:,}" for count in milestones),
            "target",
        ),
        note=f"Of the JavaScript heap, after a garbage collection. Both pages keep {ROWS} rows.",
    )
    if find_spec("playwright") is None or _chromium() is None or not installed(UVICORN):
        print("  not measured: it takes Playwright, Chromium and uvicorn", flush=True)
        return [smooth, flat]
    frames, memory = _measure(options, milestones)
    for who in (LIVE, BARE):
        times = (spread([percentile(each.frames, share) for each in frames[who]]) for share in (0.5, 0.99, 1.0))
        smooth.rows.append(
            (
                who,
                *times,
                spread([float(len(each.tasks)) for each in frames[who]]),
                spread([max(each.tasks, default=0.0) for each in frames[who]]),
                f"no frame, no task above {BUDGET} ms" if who == LIVE else "",
            )
        )
        flat.rows.append(
            (
                who,
                *(spread([each.heap[count] / 2**20 for each in memory[who]]) for count in milestones),
                *(spread([each.nodes[count] for each in memory[who]]) for count in milestones),
                "flat" if who == LIVE else "",
            )
        )
    return [smooth, flat]
