"""A headless Chromium to open pages with: driven over its debugging pipe, no package needed.

with Chromium() as browser:
    page = browser.open(Path("report.html"), width=390, dark=True)
    page.evaluate("document.title")
    page.screenshot(Path("report.png"))
    assert not page.errors and not page.requests
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium() -> str | None:
    """The first Chromium or Chrome on the PATH."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
)


class BrowserError(RuntimeError):
    """The browser did not start, did not answer in time, or a script in the page threw."""


class Chromium:
    """One browser process with a profile of its own; a context manager."""

    def __init__(self, executable: str | None = None, *, timeout_s: float = 60.0) -> None:
        executable = executable or find_chromium()
        if executable is None:
            raise BrowserError(f"no Chromium on the PATH (looked for {', '.join(NAMES)})")
        self.timeout_s, self._ids, self._buffer = timeout_s, itertools.count(1), b""
        self._events: list[dict[str, Any]] = []
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        to_child, self._write = map(_away_from_3_and_4, os.pipe())
        self._read, from_child = map(_away_from_3_and_4, os.pipe())
        null = os.open(os.devnull, os.O_RDWR)
        placed = {0: null, 1: null, 2: null, 3: to_child, 4: from_child}  # it reads on 3 and answers on 4
        self.process = os.posix_spawn(
            executable,
            [executable, *_OPTIONS, f"--user-data-dir={self._profile.name}", "about:blank"],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, here, there) for there, here in placed.items()],
            setsid=True,
        )
        for descriptor in (to_child, from_child, null):
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and all its processes; safe to call twice."""
        if self._write < 0:
            return
        try:
            os.killpg(self.process, signal.SIGKILL)  # it has nothing to save
            os.waitpid(self.process, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self._write)
        os.close(self._read)
        self._write = self._read = -1
        self._profile.cleanup()

    def open(self, file: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """A page with this file, loaded; ``width`` and ``height`` in CSS pixels."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        page.send("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1,
                  uploadThroughput=-1)  # fmt: skip
        mobile = width < 600
        page.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if mobile else 1,
            mobile=mobile,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.send("Emulation.setEmulatedMedia", features=[scheme])
        page.load(file)
        return page

    def send(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """Run a command of the DevTools protocol and return its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        try:
            os.write(self._write, json.dumps(message).encode() + b"\0")
        except BrokenPipeError:
            raise BrowserError("Chromium ended") from None
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._events.append(answer)

    def wait_for(self, method: str, session: str) -> dict[str, Any]:
        """The next event of this name in the session; others are kept."""
        for event in self._events:
            if event.get("method") == method and event.get("sessionId") == session:
                return event
        while True:
            event = self._receive()
            self._events.append(event)
            if event.get("method") == method and event.get("sessionId") == session:
                return event

    def events(self, session: str) -> list[dict[str, Any]]:
        """All that was reported of a session so far."""
        return [event for event in self._events if event.get("sessionId") == session]

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + self.timeout_s
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._read, 1 << 20) if ready else b""
            if not data:
                raise BrowserError("Chromium ended" if ready else f"no answer for {self.timeout_s:g} s")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        parsed: dict[str, Any] = json.loads(message)
        return parsed


def _away_from_3_and_4(descriptor: int) -> int:
    """The same end of a pipe at a number that is not in the way, closed in processes that are started."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved


class Page:
    """A tab with one file in it."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self.browser, self.session = browser, session
        self.load_s = 0.0  # from asking for the file to its load event

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **params)

    def load(self, file: Path) -> None:
        """Open the file and wait for its load event."""
        self.url = file.resolve().as_uri()
        start = time.perf_counter()
        self.send("Page.navigate", url=self.url)
        self.browser.wait_for("Page.loadEventFired", self.session)
        self.load_s = time.perf_counter() - start

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression, as JSON.

        Raises:
            BrowserError: it threw.
        """
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(answer["exceptionDetails"].get("exception", {}).get("description", script))
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """A key on what has the focus."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def move_to(self, x: float, y: float) -> None:
        """The pointer, in CSS pixels of the window."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    @property
    def errors(self) -> list[str]:
        """Exceptions and console messages of level error or warning so far."""
        self.evaluate("0")  # what has happened before has been reported when this is answered
        found = []
        for event in self.browser.events(self.session):
            params, method = event.get("params", {}), event["method"]
            if method == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description") or details["text"])
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
        return found

    @property
    def requests(self) -> list[str]:
        """Addresses that were asked for beside the file itself and data held within it."""
        asked = [
            event["params"]["request"]["url"]
            for event in self.browser.events(self.session)
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in asked if url != self.url and not url.startswith("data:")]

    def screenshot(self, out: Path, *, whole: bool = True, top: float = 0, height: float = 0) -> None:
        """A PNG of the whole page, of the window, or of ``height`` CSS pixels from ``top`` on."""
        options: dict[str, Any] = {"format": "png", "captureBeyondViewport": whole or bool(height)}
        if whole or height:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            tall = height or size["height"] - top
            options["clip"] = {"x": 0, "y": top, "width": size["width"], "height": tall, "scale": 1}
        out.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **options)["data"]))

    def close(self) -> None:
        self.send("Page.close")
