"""How long a user waits for the bot, from the last sound of a question to the first of the reply.

    pip install "chroma-plugin[pipecat]"
    python examples/pipecat_latency.py one.wav two.wav --cascade

Pipecat's `UserBotLatencyObserver` measures it at the pace of speech. With `--cascade` the same
questions go to a bot of three services as well, built from the very same weights: the model writes
down what was said, the answer is looked up, the model reads it out. So what differs is the shape of
the pipeline and nothing else. Put the observer into the pipeline that you have now, and compare.
"""

import argparse
import asyncio
from collections.abc import AsyncGenerator, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import median

from loguru import logger
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VAD_STOP_SECS
from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InputAudioRawFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    VADUserStartedSpeakingFrame,
)
from pipecat.observers.user_bot_latency_observer import UserBotLatencyObserver
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.settings import STTSettings, TTSSettings
from pipecat.services.stt_service import SegmentedSTTService
from pipecat.services.tts_service import TTSService
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.utils.time import time_now_iso8601
from pipecat.workers.runner import WorkerRunner

from chroma_plugin import AudioChunk, Engine, EngineConfig, Session, TurnDone
from chroma_plugin.audio import INPUT_RATE_HZ, OUTPUT_RATE_HZ, Samples, read_audio
from chroma_plugin.pipecat import ChromaRealtimeLLMService
from chroma_plugin.pipecat.wav import WavTransport

CAPITAL = files("chroma_plugin") / "assets" / "questions" / "capital.flac"
NO_ANSWER = "I do not know."
LIMIT_S = 60.0
"""For a question, its reply and everything between. Pipecat's own limits must not end it before."""


class Recognition(SegmentedSTTService):
    """Speech to text: hears while the user speaks, writes down when VAD has found the end."""

    def __init__(self, session: Session) -> None:
        settings = STTSettings(model=None, language=None)
        super().__init__(settings=settings, trailing_silence_secs=0.0, ttfs_p99_latency=LIMIT_S)
        self._session = session
        self._hears = True
        self.text = ""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        if isinstance(frame, VADUserStartedSpeakingFrame):
            self._hears = True
        await super().process_frame(frame, direction)

    async def process_audio_frame(
        self, frame: InputAudioRawFrame, direction: FrameDirection
    ) -> None:
        await super().process_audio_frame(frame, direction)
        if self._hears:  # not the silence after the question
            self._session.push_audio(frame.audio)

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame, None]:
        self._hears = False
        self.text = await self._session.transcribe(self._session.commit_audio())
        # Without any text the turn would never end.
        yield TranscriptionFrame(self.text or "(nothing)", "", time_now_iso8601())


class LookUp(FrameProcessor):
    """A language model that takes no time at all: the answer is there."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self._answer = answer

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMContextFrame):
            await self.push_frame(LLMFullResponseStartFrame())
            await self.push_frame(LLMTextFrame(self._answer))
            await self.push_frame(LLMFullResponseEndFrame())
        else:
            await self.push_frame(frame, direction)


class Speech(TTSService):
    """Text to speech, streamed."""

    def __init__(self, session: Session) -> None:
        super().__init__(
            settings=TTSSettings(model=None, voice=None, language=None),
            sample_rate=OUTPUT_RATE_HZ,
            push_start_frame=True,
            push_stop_frames=True,
            stop_frame_timeout_s=LIMIT_S,
        )
        self._session = session

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        async for event in self._session.say(text):
            if isinstance(event, AudioChunk):
                yield TTSAudioRawFrame(event.pcm, OUTPUT_RATE_HZ, 1, context_id=context_id)


async def ask_chroma(engine: Engine, question: Samples) -> tuple[float, str]:
    """The wait in seconds, and what was answered."""
    context, answers = LLMContext(), list[str]()
    chroma = ChromaRealtimeLLMService(engine=engine, context=context)

    @chroma.event_handler("on_reply_done")
    async def done(_: ChromaRealtimeLLMService, reply: TurnDone) -> None:
        answers.append(reply.text.strip())

    seconds = await ask(question, context, [], [chroma])
    return seconds, "".join(answers)


async def ask_cascade(engine: Engine, question: Samples, answer: str) -> tuple[float, str]:
    """The wait in seconds, and what was understood."""
    ear, mouth = await engine.open_session(), await engine.open_session()
    recognition = Recognition(ear)
    try:
        services = [LookUp(answer or NO_ANSWER), Speech(mouth)]
        return await ask(question, LLMContext(), [recognition], services), recognition.text
    finally:
        await ear.aclose()
        await mouth.aclose()


async def ask(
    question: Samples,
    context: LLMContext,
    before: Sequence[FrameProcessor],
    after: Sequence[FrameProcessor],
) -> float:
    """Asks one question in a pipeline of its own, with services before and after its user
    aggregator. Seconds until the reply began."""
    transport, observer = WavTransport(question), UserBotLatencyObserver()
    user, assistant = LLMContextAggregatorPair(
        context,
        user_params=LLMUserAggregatorParams(
            vad_analyzer=SileroVADAnalyzer(),
            user_turn_strategies=UserTurnStrategies(  # VAD's 0.2 s of silence, and no more
                stop=[SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=0.0)]
            ),
            user_turn_stop_timeout=LIMIT_S,
        ),
    )
    measured: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    @observer.event_handler("on_latency_measured")
    async def began(_: UserBotLatencyObserver, seconds: float) -> None:
        if not measured.done():
            measured.set_result(seconds)

    worker = PipelineWorker(
        Pipeline([transport.input(), *before, user, *after, transport.output(), assistant]),
        observers=[observer],
        enable_rtvi=False,
        idle_timeout_secs=None,
    )
    runner = WorkerRunner()
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    try:
        async with asyncio.timeout(LIMIT_S):
            seconds = await measured
            await worker.queue_frame(EndFrame())  # it waits for the rest of the reply
            await running
    except TimeoutError:
        await worker.cancel()
        await asyncio.wait([running], timeout=LIMIT_S)
        raise SystemExit("A question got no reply. Is there speech in it?") from None
    return seconds


async def main(
    questions: Sequence[Path], model: str, rounds: int, max_seconds: float, cascade: bool
) -> None:
    engine = Engine(EngineConfig(model=model, max_reply_s=max_seconds))
    await engine.start()
    ours, theirs = list[float](), list[float]()
    try:
        for question in [*questions] * rounds:  # in turn: a busy machine is as busy for both
            samples = read_audio(question, INPUT_RATE_HZ)
            seconds, answer = await ask_chroma(engine, samples)
            ours.append(seconds)
            print(f"{question.name}: Chroma {seconds:.3f} s ({answer})", flush=True)
            if cascade:
                seconds, text = await ask_cascade(engine, samples, answer)
                theirs.append(seconds)
                print(f"{question.name}: three services {seconds:.3f} s ({text})", flush=True)
    finally:
        await engine.close()
    tell("Chroma", ours)
    if cascade:
        tell("three services", theirs)
        us, them = median(ours), median(theirs)
        rest = (them - VAD_STOP_SECS) / (us - VAD_STOP_SECS)
        print(f"three services / Chroma: {them / us:.2f}, after VAD's silence {rest:.2f}")


def tell(bot: str, seconds: Sequence[float]) -> None:
    span = f"{min(seconds):.3f} to {max(seconds):.3f}"
    print(f"{bot}: median {median(seconds):.3f} s of {len(seconds)} turns ({span})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="How long a user waits for the bot.")
    parser.add_argument(
        "questions", type=Path, nargs="*", default=[Path(str(CAPITAL))], help="WAV, FLAC, MP3, OGG"
    )
    parser.add_argument("--model", default="chroma-tiny")
    parser.add_argument("--rounds", type=int, default=3, help="how often each question is asked")
    parser.add_argument("--max-seconds", type=float, default=3.0, help="a cap on each reply")
    parser.add_argument("--cascade", action="store_true", help="three services, too")
    logger.remove()  # Pipecat's log
    asyncio.run(main(**vars(parser.parse_args())))
