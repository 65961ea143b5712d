"""FakeEngine: an engine without a model, in a few lines. It is the test of the seam."""

from __future__ import annotations

import asyncio
from typing import Any

from chroma_plugin.config import SamplingParams
from chroma_plugin.conversation import ReplyRequest
from chroma_plugin.errors import ChromaError, EngineClosed
from chroma_plugin.reply import AudioChunk, EndReason, Sink, TextClock, TextDelta, TurnDone
from chroma_plugin.session import Session
from chroma_plugin.transcript import TextSink
from chroma_plugin.voice import Voice


class FakeEngine:
    """Answers every turn with the same words, at a frame per event loop step or `frame_s` apart."""

    def __init__(self, reply: str = "one two three four", frames: int = 24, frame_s: float = 0.0):
        self.words, self.frames, self.frame_s = reply.split(), frames, frame_s
        self.transcript: str | ChromaError | None = "what was said"  # of every turn; None: never
        self.conversations: list[FakeConversation] = []
        self.started = self.closed = False

    async def start(self) -> None:
        self.started = True

    async def open_session(self, **settings: Any) -> Session:
        if not self.started or self.closed:
            raise EngineClosed("Call `await engine.start()` before open_session().")
        self.conversations.append(FakeConversation(self))
        given = {name: value for name, value in settings.items() if value is not None}
        defaults = {"voice": Voice.default(), "instructions": "", "sampling": SamplingParams()}
        return Session(self.conversations[-1], **(defaults | given))

    async def close(self) -> None:
        self.closed = True
        for conversation in self.conversations:
            conversation.close()


class FakeConversation:
    """Writes every call down in `calls` and speaks from an asyncio task."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.calls, self.task = engine, list[tuple[Any, ...]](), None

    def __getattr__(self, name: str) -> Any:  # push_audio, commit_audio, add_text, keep_reply, ...
        return lambda *args: self.calls.append((name, *args))

    def start_reply(self, request: ReplyRequest, sink: Sink) -> None:
        self.calls.append(("start_reply", request))
        self.task = asyncio.create_task(self._speak(request, sink))

    async def _speak(self, request: ReplyRequest, sink: Sink) -> None:
        words = request.say.split() if request.say else self.engine.words
        frames = min(self.engine.frames, int((request.max_reply_s or 1e9) * 12.5))
        clock = TextClock(request.voice.chars_per_second)
        for i in range(frames):
            await asyncio.sleep(self.engine.frame_s)
            if i % 2 == 0 and i // 2 < len(words):
                text = words[i // 2] if i == 0 else " " + words[i // 2]
                sink(TextDelta(text, clock.place(text, i * 80.0)))
            sink(AudioChunk(b"\x10\x20" * 1920, i * 80.0))
        ends, spoken = frames == self.engine.frames, " ".join(words[: (frames + 1) // 2])
        reason = EndReason.END_OF_SPEECH if ends else EndReason.MAX_SECONDS
        sink(TurnDone(reason, spoken, frames * 80.0, len(words), frames))

    def cancel_reply(self, turn: int) -> None:
        self.calls.append(("cancel_reply", turn))
        if self.task:
            self.task.cancel()

    def transcribe(self, turn: int, sink: TextSink) -> None:
        self.calls.append(("transcribe", turn))
        if self.engine.transcript is not None:
            asyncio.get_running_loop().call_soon(sink, self.engine.transcript)

    def close(self) -> None:
        self.cancel_reply(-1)
