"""An `AgentSession` without a room: a microphone and a loudspeaker that keep time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from livekit import rtc
from livekit.agents import Agent, AgentSession, inference
from livekit.agents.voice import io
from livekit.agents.voice.transcription import TranscriptSynchronizer

from chroma_plugin.audio import Samples
from tests.livekit.stage import RATE_HZ, WAIT_S, at_room_rate, frame, until
from tests.pipecat.recordings import capital

FRAME_S = 0.05


def question() -> Samples:
    """A recording, at the rate of a room."""
    return at_room_rate(capital())


class Microphone(io.AudioInput):
    """Gives what was said into it, and silence, at the pace of a microphone."""

    def __init__(self) -> None:
        super().__init__(label="microphone")
        self._waiting: deque[Samples] = deque()
        self._due = 0.0

    def say(self, samples: Samples) -> None:
        step = round(FRAME_S * RATE_HZ)
        padded = np.concatenate([samples, np.zeros(-len(samples) % step, np.float32)])
        self._waiting.extend(padded.reshape(-1, step))

    @property
    def quiet(self) -> bool:
        return not self._waiting

    async def __anext__(self) -> rtc.AudioFrame:
        now = time.monotonic()
        self._due = max(self._due + FRAME_S, now - FRAME_S)
        await asyncio.sleep(max(self._due - now, 0))
        if self._waiting:
            return frame(self._waiting.popleft())
        return frame(np.zeros(round(FRAME_S * RATE_HZ), np.float32))


class Loudspeaker(io.AudioOutput):
    """Plays at the pace of audio, can be paused, and knows what was heard."""

    def __init__(self, *, can_pause: bool = True) -> None:
        super().__init__(
            label="loudspeaker",
            capabilities=io.AudioOutputCapabilities(pause=can_pause),
            sample_rate=RATE_HZ,
        )
        self.segments: list[tuple[float, bool]] = []  # seconds heard, and whether it was cut
        self.captured_s = 0.0  # of this segment
        self.pauses = self.resumes = 0
        self._played_s = 0.0
        self._running_since: float | None = None
        self._flushed = self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def played_s(self) -> float:
        running = 0.0 if self._running_since is None else time.time() - self._running_since
        return min(self._played_s + running, self.captured_s)

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if not self.captured_s:
            if not self._paused:
                self._running_since = time.time()
            self.on_playback_started(created_at=time.time())
        self.captured_s += frame.duration

    def flush(self) -> None:
        super().flush()
        if self.captured_s:
            self._flushed = True
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flushed and not self._paused:
            left = self.captured_s - self.played_s
            self._timer = asyncio.get_running_loop().call_later(left, self._ended, False)

    def _ended(self, cut: bool) -> None:
        played_s = self.played_s if cut else self.captured_s
        self.segments.append((played_s, cut))
        self.captured_s = self._played_s = 0.0
        self._running_since, self._flushed = None, False
        self.on_playback_finished(playback_position=played_s, interrupted=cut)

    def clear_buffer(self) -> None:
        if self.captured_s:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._ended(True)

    def pause(self) -> None:
        super().pause()
        if not self._paused:
            self.pauses += 1
            self._played_s = self.played_s
            self._paused, self._running_since = True, None
            self._arm()

    def resume(self) -> None:
        super().resume()
        if self._paused:
            self.resumes += 1
            self._paused = False
            if self.captured_s:
                self._running_since = time.time()
            self._arm()


class Screen(io.TextOutput):
    """Shows what the agent says."""

    def __init__(self) -> None:
        super().__init__(label="screen", next_in_chain=None)
        self.text, self.shown = "", list[str]()

    async def capture_text(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        if self.text:
            self.shown.append(self.text)
        self.text = ""


class Call:
    """A conversation with an agent, and all that happened in it."""

    def __init__(self, session: AgentSession[None], *, can_pause: bool = True) -> None:
        self.session = session
        self.microphone, self.speaker = Microphone(), Loudspeaker(can_pause=can_pause)
        self.screen = Screen()
        self.states: list[str] = []
        self.events: list[tuple[str, Any]] = []
        session.input.audio = self.microphone
        together = TranscriptSynchronizer(  # as in a room: words appear when they are heard
            next_in_chain_audio=self.speaker, next_in_chain_text=self.screen
        )
        session.output.audio = together.audio_output
        session.output.transcription = together.text_output
        session.on("agent_state_changed", lambda event: self.states.append(event.new_state))
        for kind in ("error", "close", "agent_false_interruption", "user_input_transcribed"):
            session.on(kind, lambda event, kind=kind: self.events.append((kind, event)))

    def of(self, kind: str) -> list[Any]:
        return [event for name, event in self.events if name == kind]

    async def ask(self, samples: Samples | None = None) -> None:
        """Says something into the microphone, to its end or that of the session."""
        self.microphone.say(question() if samples is None else samples)
        await self.until(lambda: self.microphone.quiet or self.of("close"))

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def played(self, count: int) -> None:
        """Waits until so many replies have been played, and the session has noticed."""
        await self.until(lambda: len(self.speaker.segments) >= count)
        await self.until(lambda: self.session.agent_state == "listening")

    async def hand_over(self, agent: Agent) -> None:
        """Has another agent go on."""
        entered = asyncio.Event()

        async def on_enter() -> None:
            entered.set()

        agent.on_enter = on_enter  # type: ignore[method-assign]
        self.session.update_agent(agent)
        async with asyncio.timeout(WAIT_S):
            await entered.wait()

    @property
    def history(self) -> list[tuple[str, str | None]]:
        items = self.session.history.items
        return [(item.role, item.text_content) for item in items if item.type == "message"]


@asynccontextmanager
async def calling(
    model: Any,
    agent: Agent | None = None,
    *,
    can_pause: bool = True,
    interruption: dict[str, Any] | None = None,
    detection: Any = None,
    **options: Any,
) -> AsyncIterator[Call]:
    """An agent that listens with the real VAD and the real turn detector of the framework."""
    session: AgentSession[None] = AgentSession(
        llm=model,
        vad=inference.VAD(),
        turn_handling={
            "turn_detection": detection or inference.TurnDetector(version="v1-mini"),
            "interruption": {"mode": "vad"} | (interruption or {}),
        },
        aec_warmup_duration=None,
        **options,
    )
    call = Call(session, can_pause=can_pause)
    try:
        async with asyncio.timeout(WAIT_S):
            await session.start(agent or Agent(instructions="Answer."), record=False)
        yield call
    finally:
        async with asyncio.timeout(WAIT_S):
            await session.aclose()
            await model.aclose()


__all__ = ["Call", "calling", "question", "until"]
