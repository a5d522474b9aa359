"""
Firefox, driven by WebDriver BiDi, which it speaks by itself: https://w3c.github.io/webdriver-bidi/.

Playwright drives a Firefox of its own making only. This is the one that a distribution ships, with the few commands
that tests need.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Ping, Request, TextMessage

from .servers import GUARD

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Self

#: Nothing at home shall be called, asked or shown. (Driven from outside, Firefox sets many others itself.)
PREFERENCES: dict[str, bool | int | str] = {
    "app.normandy.enabled": False,
    "app.update.auto": False,
    "app.update.disabledForTesting": True,
    "browser.aboutwelcome.enabled": False,
    "browser.cache.disk.enable": False,
    "browser.newtabpage.enabled": False,
    "browser.region.network.url": "",
    "browser.region.update.enabled": False,
    "browser.safebrowsing.blockedURIs.enabled": False,
    "browser.safebrowsing.downloads.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.search.update": False,
    "browser.sessionstore.resume_from_crash": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.homepage": "about:blank",
    "browser.startup.page": 0,
    "browser.tabs.firefox-view": False,
    "datareporting.healthreport.uploadEnabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "dom.push.connection.enabled": False,
    "extensions.blocklist.enabled": False,
    "extensions.getAddons.cache.enabled": False,
    "extensions.systemAddon.update.enabled": False,
    "extensions.update.enabled": False,
    "media.gmp-manager.updateEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.dns.disablePrefetch": True,
    "network.prefetch-next": False,
    "network.proxy.type": 0,
    "security.certerrors.mitm.priming.enabled": False,
    "security.remote_settings.crlite_filters.enabled": False,
    "security.remote_settings.intermediates.enabled": False,
    "services.settings.server": "data:,#nowhere",
    "toolkit.telemetry.enabled": False,
    "toolkit.telemetry.server": "",
    "toolkit.telemetry.unified": False,
}
#: What tells of violations of a page's Content-Security-Policy, which are not told to its console.
VIOLATIONS = """() => document.addEventListener(
  "securitypolicyviolation",
  (event) => console.error("violation: " + event.violatedDirective + " " + event.blockedURI),
)"""


class FirefoxError(Exception):
    """Firefox refused a command, or what was evaluated threw."""


class Firefox:
    """
    A Firefox with a profile of its own in `folder`, and no window.

    with Firefox(program, tmp_path) as firefox:
        tab = firefox.open("http://127.0.0.1:8000/")
        assert tab.evaluate("document.title") == "…"
    """

    def __init__(self, program: str, folder: Path, guard: float = GUARD) -> None:
        self.guard = guard
        self.folder = folder
        #: Errors and warnings of all pages, as the console shows them.
        self.faults: list[str] = []
        #: What of these the test makes on purpose.
        self.expected = re.compile("(?!)")
        self._numbers = itertools.count(1)
        self._profile = "default"
        self._incoming: list[dict[str, Any]] = []
        self._text = ""
        profile = folder / "profile"
        profile.mkdir(parents=True)
        lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in PREFERENCES.items()]
        (profile / "user.js").write_text("\n".join(lines))
        self._log = folder / "firefox.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [program, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"],
                # It writes to its user's folders, and fails where they are not.
                env={**os.environ, "HOME": str(folder), "XDG_CACHE_HOME": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A group of its own, so that its content processes end with it.
                start_new_session=True,
            )
        self._socket: socket.socket | None = None
        try:
            self._connect(self._address())
            self.command("session.new", capabilities={})
            self.command("session.subscribe", events=["log.entryAdded"])
            self.command("script.addPreloadScript", functionDeclaration=VIOLATIONS)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, at once."""
        if self._socket is not None:
            self._socket.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(self.guard)

    @contextmanager
    def fresh(self) -> Iterator[Self]:
        """With cookies and storage of its own, in which no page may have a fault that is not `expected`."""
        self._profile = self.command("browser.createUserContext")["userContext"]
        self.expected = re.compile("(?!)")
        try:
            yield self
            assert self.unexpected == []
        finally:
            # With all of its tabs.
            self.command("browser.removeUserContext", userContext=self._profile)
            self.faults.clear()

    def open(self, url: str) -> Tab:
        """A new tab, in front, that shows this page."""
        tab = Tab(self, self.command("browsingContext.create", type="tab", userContext=self._profile)["context"])
        tab.goto(url)
        return tab

    @property
    def unexpected(self) -> list[str]:
        """What of all faults so far nobody meant to happen."""
        # What was said before the answer has come before it.
        self.command("session.status")
        return [fault for fault in self.faults if not self.expected.search(fault)]

    def command(self, method: str, **params: Any) -> Any:
        """Tell it something; what it answers."""
        number = next(self._numbers)
        self._send(TextMessage(data=json.dumps({"id": number, "method": method, "params": params})))
        end = time.monotonic() + self.guard
        while True:
            message = self._receive(end, method)
            if message.get("method") == "log.entryAdded":
                self._said(message["params"])
            elif message.get("id") == number:
                if message["type"] == "error":
                    raise FirefoxError(f"{method}: {message['error']}: {message['message']}")
                return message["result"]

    def _said(self, entry: dict[str, Any]) -> None:
        if entry["level"] in ("error", "warn"):
            where = (entry.get("stackTrace") or {}).get("callFrames") or [{"url": ""}]
            self.faults.append(f"{entry['level']}: {entry['text']} {where[0]['url']}")

    # The WebSocket

    def _address(self) -> str:
        end = time.monotonic() + self.guard
        while True:
            said = self._log.read_text("utf-8", "replace")
            if found := re.search(r"WebDriver BiDi listening on (ws://\S+)", said):
                return found[1]
            assert self._process.poll() is None, f"Firefox ended by itself:\n{said[-2000:]}"
            assert time.monotonic() < end, f"waited {self.guard} s until Firefox listens:\n{said[-2000:]}"
            time.sleep(0.05)

    def _connect(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._socket = socket.create_connection((parts.hostname, parts.port), self.guard)
        self._connection = WSConnection(ConnectionType.CLIENT)
        self._send(Request(host=f"{parts.hostname}:{parts.port}", target="/session"))
        end = time.monotonic() + self.guard
        while not self._feed(end):
            pass

    def _send(self, event: Any) -> None:
        assert self._socket is not None
        self._socket.settimeout(self.guard)
        self._socket.sendall(self._connection.send(event))

    def _receive(self, end: float, what: str) -> dict[str, Any]:
        while not self._incoming:
            try:
                self._feed(end)
            except TimeoutError:
                raise TimeoutError(f"waited {self.guard} s until Firefox answered {what}") from None
        return self._incoming.pop(0)

    def _feed(self, end: float) -> bool:
        """Take in what comes next. True where the connection was accepted by it."""
        assert self._socket is not None
        self._socket.settimeout(max(0.01, end - time.monotonic()))
        data = self._socket.recv(65_536)
        self._connection.receive_data(data or None)
        accepted = False
        for event in self._connection.events():
            if isinstance(event, AcceptConnection):
                accepted = True
            elif isinstance(event, Ping):
                self._send(event.response())
            elif isinstance(event, TextMessage):
                self._text += event.data
                if event.message_finished:
                    self._incoming.append(json.loads(self._text))
                    self._text = ""
            elif isinstance(event, CloseConnection):
                raise FirefoxError(f"Firefox has closed the connection: {event.code} {event.reason}")
        return accepted


class Tab:
    """A tab of Firefox. Where another is opened, it is behind that one."""

    def __init__(self, firefox: Firefox, context: str) -> None:
        self.firefox = firefox
        self.context = context

    def goto(self, url: str) -> None:
        """Show another page, and wait until it has loaded."""
        self.firefox.command("browsingContext.navigate", context=self.context, url=url, wait="complete")

    def reload(self) -> None:
        """Load the page anew."""
        self.firefox.command("browsingContext.reload", context=self.context, wait="complete")

    def activate(self) -> None:
        """Bring it to the front."""
        self.firefox.command("browsingContext.activate", context=self.context)

    def close(self) -> None:
        """Close it, as its user does."""
        self.firefox.command("browsingContext.close", context=self.context)

    def evaluate(self, expression: str, **values: Any) -> Any:
        """What an expression of JavaScript comes to, awaited, as JSON has it. It may use `values` by their names."""
        names = ", ".join(values)
        answer = self.firefox.command(
            "script.callFunction",
            functionDeclaration=f"async (given) => {{ const {{ {names} }} = JSON.parse(given); "
            f"return JSON.stringify(await ({expression})) ?? 'null'; }}",
            arguments=[{"type": "string", "value": json.dumps(values)}],
            target={"context": self.context},
            awaitPromise=True,
        )
        if answer["type"] == "exception":
            raise FirefoxError(answer["exceptionDetails"]["text"])
        return json.loads(answer["result"]["value"])

    def wait_for(self, expression: str, guard: float | None = None, **values: Any) -> Any:
        """What the expression comes to as soon as that is true in JavaScript's sense."""
        guard = guard or self.firefox.guard
        end = time.monotonic() + guard
        while not (answer := self.evaluate(expression, **values)):
            assert time.monotonic() < end, f"waited {guard} s until {expression} (is {answer!r})"
            time.sleep(0.05)
        return answer
