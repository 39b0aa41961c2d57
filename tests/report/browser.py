"""A real headless Chromium, driven over its debugging pipe: true widths, colour schemes, hovering, console errors."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = """
    --headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe
"""
PATIENCE = 60  # seconds


class Page:
    """One page. What the console, the script and the network said is collected in `problems` and `requests`."""

    def __init__(self, connection: Connection, session: str):
        self.connection, self.session = connection, session
        self.problems: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.connection.call(method, params, self.session, self._notice)

    def _notice(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])

    def open(self, path: Path, width: int, scheme: str = "light") -> Page:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.media(scheme)
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.documentElement?.dataset.chartsDrawn !== undefined")
        return self

    def media(self, scheme: str) -> None:
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def read(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.read(condition):
            assert time.monotonic() < end, f"the page never came to {condition}"
            time.sleep(0.05)

    def hover(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path) -> None:
        image = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(image["data"]))


class Connection:
    """Messages of the debugging protocol: JSON, each ended by a zero byte."""

    def __init__(self, to_browser: int, from_browser: int):
        self.to_browser, self.from_browser = to_browser, from_browser
        self.numbers = itertools.count(1)
        self.buffer = b""

    def call(
        self, method: str, params: dict[str, Any], session: str | None = None, notice: Any = None
    ) -> dict[str, Any]:
        message = {"id": next(self.numbers), "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer
                return answer["result"]
            if notice:
                notice(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.from_browser], [], [], PATIENCE)
            data = os.read(self.from_browser, 1 << 20) if ready else b""
            assert data, "the browser does not answer"
            self.buffer += data
        text, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(text)


@contextmanager
def running(profile: Path) -> Iterator[Connection]:
    """Start the browser; it reads from descriptor 3 and writes to 4."""
    child_reads, to_browser = os.pipe()
    from_browser, child_writes = os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (child_reads, child_writes)]

    def place() -> None:
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    command = [str(BROWSER), *FLAGS.split(), f"--user-data-dir={profile}", "about:blank"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, preexec_fn=place, close_fds=False)
    for end in (child_reads, child_writes, *ends):
        os.close(end)
    connection = Connection(to_browser, from_browser)
    try:
        yield connection
    finally:
        try:
            connection.call("Browser.close", {})
            process.wait(timeout=20)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        os.close(to_browser)
        os.close(from_browser)


@contextmanager
def new_page(connection: Connection) -> Iterator[Page]:
    target = connection.call("Target.createTarget", {"url": "about:blank"})["targetId"]
    session = connection.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
    yield Page(connection, session)
    connection.call("Target.closeTarget", {"targetId": target})


def state(page: Page) -> dict[str, str]:
    """What the page's script notes of its own work."""
    found: dict[str, str] = json.loads(page.read("JSON.stringify(document.documentElement.dataset)"))
    return found


def at(value: Any, key: str) -> Any:
    """What stands in JSON under a dotted key."""
    for part in key.split("."):
        value = value[int(part) if part.isdigit() else part]
    return value
