"""Chromium without a window: where it is, and a page in it that a test drives.

The DevTools protocol is spoken over the websocket package that Pipecat brings. A driver such as
Playwright would add a Node runtime of 45 MB and is made for its own builds of Chromium, not for the
one that the system brings; a test here needs five of the protocol's commands.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE_S = 60.0
QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-sync", "--disable-extensions", "--disable-component-update",
    "--disable-background-networking", "--disable-default-apps", "--mute-audio",
)  # fmt: skip


def chromium() -> str:
    """The command that starts Chromium; the test is skipped where there is none."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium here: `apt-get install chromium` brings one")


class Page:
    """One page: commands go out, what it loads and complains of is written down.

    Attributes:
        requested: the addresses of everything that the page asked for.
        complaints: errors and warnings from its console.
        findings: what the browser itself has against it: refused by a policy, not loaded.
    """

    def __init__(self, socket: Any) -> None:
        self.requested: list[str] = []
        self.complaints: list[str] = []
        self.findings: list[str] = []
        self._socket = socket
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message)
            if (answer := self._answers.pop(told.get("id", 0), None)) and not answer.done():
                answer.set_result(told)
            parameters = told.get("params", {})
            match told.get("method"):
                case "Network.requestWillBeSent":
                    self.requested.append(parameters["request"]["url"])
                case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                    entry = parameters["entry"]
                    self.findings.append(f"{entry['source']}: {entry['text'][:500]}")
                case "Runtime.exceptionThrown":
                    self.complaints.append(str(parameters["exceptionDetails"])[:500])
                case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning"):
                    values = [str(a.get("value", a)) for a in parameters["args"]]
                    self.complaints.append(" ".join(values)[:500])

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and its result."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        command = {"id": number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        await self._socket.send(json.dumps(command))
        async with asyncio.timeout(PATIENCE_S):
            told = await answer
        assert "error" not in told, f"{method}: {told['error']}"
        result: dict[str, Any] = told["result"]
        return result

    async def open(self, before: str = "") -> None:
        """Makes the page; the script runs in it before anything of its own does."""
        target = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send("Target.attachToTarget", flatten=True, **target)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.send(f"{domain}.enable")
        await self.send("Page.addScriptToEvaluateOnNewDocument", source=before)

    async def go(self, address: str) -> None:
        """Loads an address."""
        told = await self.send("Page.navigate", url=address)
        assert not told.get("errorText"), f"{address}: {told['errorText']}"

    async def run(self, script: str) -> Any:
        """What the script's expression, or the promise that it is, comes to."""
        told = await self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, condition: str) -> None:
        """Waits in the page until the condition holds; whatever changes the page looks again."""
        script = f"""new Promise((done, fail) => {{
            const look = () => {{ if ({condition}) {{ watch.disconnect(); done(); }} }};
            const watch = new MutationObserver(look);
            watch.observe(document, {{subtree: true, childList: true, attributes: true,
                                      characterData: true}});
            setTimeout(() => fail(new Error("never: " + document.body.innerText)),
                       {1000 * (PATIENCE_S - 5)});
            look();
        }})"""
        await self.run(script)

    async def screenshot(self, path: Path) -> None:
        """A picture of what the page shows, as PNG."""
        told = await self.send("Page.captureScreenshot")
        path.write_bytes(base64.b64decode(told["data"]))


@asynccontextmanager
async def open_page(
    folder: Path, flags: Sequence[str] = (), before: str = ""
) -> AsyncIterator[Page]:
    """A page in a Chromium of its own, with a profile in the folder; both end with the test.

    Args:
        folder: for the profile.
        flags: more arguments of Chromium.
        before: a script that runs in every document before its own.
    """
    from websockets.asyncio.client import connect

    process = await asyncio.create_subprocess_exec(
        chromium(), *QUIET, f"--user-data-dir={folder / 'profile'}", "--remote-debugging-port=0",
        *flags, "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    draining: asyncio.Task[bytes] | None = None
    try:
        address = ""
        async with asyncio.timeout(PATIENCE_S):
            while not address:
                line = (await process.stderr.readline()).decode(errors="replace")
                assert line, "Chromium ended before it listened"
                address = line.partition("DevTools listening on ")[2].strip()
        draining = asyncio.create_task(process.stderr.read())
        async with connect(address, max_size=None) as socket:
            page = Page(socket)
            try:
                await page.open(before)
                yield page
            finally:
                page._reader.cancel()
    finally:
        if process.returncode is None:
            process.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(10):
                    await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        if draining is not None:
            await draining
