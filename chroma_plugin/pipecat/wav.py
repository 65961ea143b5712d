"""`WavTransport`: a microphone and a loudspeaker made of samples.

It stands for a real transport in tests, in `chroma_plugin.talk` and in examples. It knows nothing
of Chroma.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from pipecat.frames.frames import (
    CancelFrame,
    ClientConnectedFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    OutputAudioRawFrame,
    StartFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat.turns.types import ProcessFrameResult
from pipecat.turns.user_start import VADUserTurnStartStrategy
from pipecat.turns.user_stop import BaseUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies

from chroma_plugin.audio import INPUT_RATE_HZ, OUTPUT_RATE_HZ, Samples, float_to_pcm

FRAME_S = 0.02
FRAME_BYTES = round(FRAME_S * INPUT_RATE_HZ) * 2
NO_SPEECH_AFTER_S = 1.0
"""Silence after a question in which VAD must have found its speech."""


class WavTransport(BaseTransport):
    """A microphone and a loudspeaker made of samples.

    Args:
        questions: what the microphone says, 16 kHz mono; silence follows.
        fast: say it as fast as the aggregators take it and play without waiting. Needs the
            `turn_strategies`; without ``fast`` any will do.

    Attributes:
        on_turn: called with ``user_started``, ``user_stopped``, or ``nothing_heard`` when a
            question was over and no turn had begun; only with the `turn_strategies`.
        on_step: called for each frame that was heard; only with the `turn_strategies`.
        on_audio: called with what the loudspeaker plays.
    """

    def __init__(self, *questions: Samples, fast: bool = False) -> None:
        super().__init__()
        self.on_turn: Callable[[str], None] = lambda name: None
        self.on_step: Callable[[], None] = lambda: None
        self.on_audio: Callable[[bytes], None] = lambda pcm: None
        self.pcm = bytearray()
        """Everything played so far: PCM16, mono, 24 kHz."""
        self._microphone = _Microphone(self, fast)
        self._loudspeaker = _Loudspeaker(self, fast)
        for samples in questions:
            self.ask(samples)

    def input(self) -> BaseInputTransport:
        """The microphone."""
        return self._microphone

    def output(self) -> BaseOutputTransport:
        """The loudspeaker."""
        return self._loudspeaker

    def ask(self, samples: Samples) -> None:
        """Says one more question."""
        self._microphone.say(float_to_pcm(samples))

    @property
    def turn_strategies(self) -> UserTurnStrategies:
        """Strategies for the user aggregator by which a question is one turn, at any speed."""
        return UserTurnStrategies(
            start=[VADUserTurnStartStrategy()], stop=[_QuestionEnd(self, self._microphone)]
        )


@dataclass
class _Silence(InputAudioRawFrame):
    """What a microphone hears when nobody speaks into it: after a question."""


class _Microphone(BaseInputTransport):
    """Says what it was given, in frames of 20 ms, then silence."""

    def __init__(self, transport: WavTransport, fast: bool) -> None:
        rate = TransportParams(audio_in_enabled=True, audio_in_sample_rate=INPUT_RATE_HZ)
        super().__init__(rate)
        self._transport = transport
        self._fast = fast
        self._script: deque[bytes] = deque()
        self._resting = fast  # nothing to say and nobody waits for silence
        self._resume = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def say(self, pcm: bytes) -> None:
        self._script.extend(
            pcm[i : i + FRAME_BYTES].ljust(FRAME_BYTES, b"\0")
            for i in range(0, len(pcm), FRAME_BYTES)
        )
        self._resting = False
        self._resume.set()

    def heard(self) -> None:
        """The aggregator has dealt with a frame, and all that it set off is in its queue."""
        self._resume.set()

    def rest(self) -> None:
        self._resting = self._fast and not self._script

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)
        if self._task is None:
            await self.push_frame(ClientConnectedFrame())
            self._task = self.create_task(self._speak())

    async def stop(self, frame: EndFrame) -> None:
        await self._hush()
        await super().stop(frame)

    async def cancel(self, frame: CancelFrame) -> None:
        await self._hush()
        await super().cancel(frame)

    async def cleanup(self) -> None:
        await self._hush()
        await super().cleanup()  # type: ignore[no-untyped-call]

    async def _hush(self) -> None:
        if self._task is not None:
            task, self._task = self._task, None
            await self.cancel_task(task)

    async def _speak(self) -> None:
        due = time.monotonic()
        while True:
            self._resume.clear()
            if not self._resting:
                await self.push_audio_frame(self._next_frame())
            if self._fast:  # one at a time: what a frame sets off comes before the next frame
                await self._resume.wait()
            else:
                due += FRAME_S
                await asyncio.sleep(due - time.monotonic())

    def _next_frame(self) -> InputAudioRawFrame:
        if self._script:
            return InputAudioRawFrame(self._script.popleft(), INPUT_RATE_HZ, 1)
        return _Silence(bytes(FRAME_BYTES), INPUT_RATE_HZ, 1)


class _QuestionEnd(BaseUserTurnStopStrategy):
    """Ends the user's turn in the silence after a question, when VAD hears no voice any more.

    So a pause inside a question does not end it, however long, and no clock takes part.
    """

    def __init__(self, transport: WavTransport, microphone: _Microphone) -> None:
        super().__init__()
        self._transport = transport
        self._microphone = microphone
        self._voice = False
        self._in_turn = False
        self._answered = False  # the question that was said last has been a turn
        self._silent_s = 0.0

    async def process_frame(self, frame: Frame) -> ProcessFrameResult:
        if isinstance(frame, VADUserStartedSpeakingFrame):
            self._voice = True
        elif isinstance(frame, VADUserStoppedSpeakingFrame):
            self._voice = False
        elif isinstance(frame, _Silence):
            self._silent_s += FRAME_S
            if self._in_turn and not self._voice:
                await self.trigger_user_turn_stopped()
            elif not self._in_turn and self._silent_s >= NO_SPEECH_AFTER_S:
                self._microphone.rest()
                if not self._answered:
                    self._answered = True
                    self._transport.on_turn("nothing_heard")
            self._step()
        elif isinstance(frame, InputAudioRawFrame):
            if self._silent_s:  # a question begins
                self._silent_s, self._answered = 0.0, False
            self._step()
        return ProcessFrameResult.CONTINUE

    def _step(self) -> None:
        self._transport.on_step()
        self._microphone.heard()

    async def handle_user_turn_started(self) -> None:
        self._in_turn = self._answered = True
        self._transport.on_turn("user_started")

    async def handle_user_turn_stopped(self) -> None:
        self._in_turn = False
        self._microphone.rest()
        self._transport.on_turn("user_stopped")


class _Loudspeaker(BaseOutputTransport):
    """Plays at the pace of sound, or without waiting."""

    def __init__(self, transport: WavTransport, fast: bool) -> None:
        params = TransportParams(
            audio_out_enabled=True,
            audio_out_sample_rate=OUTPUT_RATE_HZ,
            audio_out_end_silence_secs=0,
        )
        super().__init__(params)
        self._transport = transport
        self._fast = fast
        self._plays_until = 0.0

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        self._transport.pcm += frame.audio
        self._transport.on_audio(frame.audio)
        if not self._fast:
            seconds = len(frame.audio) / 2 / frame.sample_rate
            self._plays_until = max(self._plays_until, time.monotonic()) + seconds
            await asyncio.sleep(self._plays_until - time.monotonic())
        return True
