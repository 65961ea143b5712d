"""The page in a Chromium with a recorded microphone, and an engine that answers in tones."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from chroma_plugin.audio import (
    FRAME_SAMPLES,
    INPUT_RATE_HZ,
    OUTPUT_RATE_HZ,
    Samples,
    float_to_pcm,
    read_audio,
    write_wav,
)
from chroma_plugin.config import SamplingParams
from chroma_plugin.conversation import ReplyRequest
from chroma_plugin.reply import AudioChunk, EndReason, Sink, TextDelta, TurnDone
from chroma_plugin.server.app import create_app
from chroma_plugin.server.run import uvicorn_config
from chroma_plugin.server.settings import ServerConfig
from chroma_plugin.session import Session, SpeechEngine
from chroma_plugin.voice import Voice
from tests.browser import Page, open_page
from tests.fakes import FakeConversation, FakeEngine
from tests.server.client import WAIT_S

CAPITAL = Path(str(files("chroma_plugin") / "assets" / "questions" / "capital.flac"))
EARS = (Path(__file__).parent / "ears.js").read_text(encoding="utf-8")
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


class ToneEngine(FakeEngine):
    """Each reply of a conversation is its own tone, (Hz, frames); the last one comes again."""

    def __init__(self, *replies: tuple[float, int], frame_s: float = 0.05) -> None:
        super().__init__(frame_s=frame_s)
        self.replies = replies
        self.opened: list[dict[str, Any]] = []

    async def open_session(self, **settings: Any) -> Session:
        self.opened.append(settings)
        self.conversations.append(_Tones(self))
        given = {name: value for name, value in settings.items() if value is not None}
        defaults = {"voice": Voice.default(), "instructions": "", "sampling": SamplingParams()}
        return Session(self.conversations[-1], **(defaults | given))


class _Tones(FakeConversation):
    """A word every 400 ms of it; made faster than it is played."""

    engine: ToneEngine

    async def _speak(self, request: ReplyRequest, sink: Sink) -> None:
        asked = sum(call[0] == "start_reply" for call in self.calls)
        hz, frames = self.engine.replies[min(asked, len(self.engine.replies)) - 1]
        times = np.arange(frames * FRAME_SAMPLES) / OUTPUT_RATE_HZ
        pcm = float_to_pcm((0.3 * np.sin(2 * np.pi * hz * times)).astype(np.float32))
        said = [f" {WORDS[i % 10 - 1]}" if i else f"{hz:.0f} Hz" for i in range((frames + 4) // 5)]
        for i in range(frames):
            await asyncio.sleep(self.engine.frame_s)
            if i % 5 == 0:
                sink(TextDelta(said[i // 5], i * 80.0))
            start = 2 * FRAME_SAMPLES * i
            sink(AudioChunk(pcm[start : start + 2 * FRAME_SAMPLES], i * 80.0))
        sink(TurnDone(EndReason.END_OF_SPEECH, "".join(said), frames * 80.0, len(said), frames))


@asynccontextmanager
async def listening(
    engine: SpeechEngine, config: ServerConfig | None = None, port: int = 0
) -> AsyncIterator[str]:
    """A server, as it is run; gives `127.0.0.1:PORT`."""
    config = config or ServerConfig()
    server = uvicorn.Server(uvicorn_config(create_app(engine, config), config))
    with socket.socket(proto=socket.IPPROTO_TCP) as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(("127.0.0.1", port))
        address = f"127.0.0.1:{place.getsockname()[1]}"
        task = asyncio.create_task(server.serve([place]))
        try:
            async with asyncio.timeout(WAIT_S):
                while not server.started:
                    await asyncio.sleep(0.001)
            yield address
        finally:
            server.should_exit = True
            with suppress(asyncio.CancelledError):
                await asyncio.wait_for(task, WAIT_S)


@asynccontextmanager
async def browsing(
    address: str, folder: Path, microphone: Samples | None = None, flags: Sequence[str] = ()
) -> AsyncIterator[Page]:
    """The page of a server, loaded; its microphone plays the samples (16 kHz) over and over."""
    heard = silence(1.0) if microphone is None else microphone
    write_wav(folder / "microphone.wav", float_to_pcm(heard), INPUT_RATE_HZ)
    given = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",  # says yes when the page asks for the microphone
        f"--use-file-for-fake-audio-capture={folder / 'microphone.wav'}",
        "--autoplay-policy=no-user-gesture-required",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no network
        "--window-size=900,800",
    ]
    async with open_page(folder, [*given, *flags], EARS) as page:
        await page.go(f"http://{address}/")
        await page.until("document.querySelector('#call')?.disabled === false")
        yield page


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * INPUT_RATE_HZ), np.float32)


def question() -> Samples:
    """What is the capital of France?, with pauses around it."""
    return np.concatenate([silence(2.0), read_audio(CAPITAL, INPUT_RATE_HZ), silence(1.2)])


async def click(page: Page, element: str) -> None:
    await page.run(f"document.querySelector('{element}').click()")


async def fill(page: Page, element: str, text: str) -> None:
    await page.run(f"document.querySelector('{element}').value = {text!r}")


async def type_in(page: Page, text: str) -> None:
    """Types to Chroma and sends it."""
    await fill(page, "#text", text)
    await page.run("document.querySelector('#say').requestSubmit()")


async def state(page: Page, name: str) -> None:
    """Waits until the call is in a state: off, ready, thinking, speaking, lost, ..."""
    await page.until(f"document.querySelector('#state').dataset.state === '{name}'")


async def lines(page: Page, kind: str) -> list[str]:
    """What the transcript shows of a kind: .user, .bot, .cut."""
    found: list[str] = await page.run(
        f"[...document.querySelectorAll('#log {kind} p')].map((line) => line.textContent)"
    )
    return found


async def sent(page: Page, kind: str) -> list[dict[str, Any]]:
    """The events of a type that the page sent."""
    found: list[dict[str, Any]] = await page.run(f"ears.sent.filter((e) => e.type === '{kind}')")
    return found


def blameless(page: Page, address: str) -> None:
    """Nothing came from elsewhere, nothing was complained of."""
    asked = {url.split("/")[2] for url in page.requested if url.startswith(("http", "ws"))}
    assert asked == {address}
    schemes = {url.split(":")[0] for url in page.requested}
    assert schemes <= {"http", "ws", "blob", "data"}  # the last are Chromium's own icons
    assert page.complaints == [] and page.findings == []


async def problem(page: Page, text: str, element: str = "#problem") -> None:
    """Waits until the page says this is wrong."""
    await page.until(f"document.querySelector('{element}')?.innerText.includes({text!r})")


def pictures(folder: Path) -> Path:
    kept = Path(os.environ.get("CHROMA_TEST_PICTURES", folder))
    kept.mkdir(parents=True, exist_ok=True)
    return kept
