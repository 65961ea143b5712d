"""How long a user waits for the bot, from the last sound of a question to the first of the reply.

    pip install "chroma-plugin[pipecat]"
    python examples/pipecat_latency.py question.wav

Pipecat's `UserBotLatencyObserver` measures it at the pace of speech. Put the observer into the
pipeline that you have now, ask the same question, and compare.
"""

import argparse
import asyncio
from pathlib import Path
from statistics import median

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import EndFrame
from pipecat.observers.user_bot_latency_observer import UserBotLatencyObserver
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.workers.runner import WorkerRunner

from chroma_plugin import Engine, EngineConfig
from chroma_plugin.audio import INPUT_RATE_HZ, read_audio
from chroma_plugin.pipecat import ChromaRealtimeLLMService
from chroma_plugin.pipecat.wav import WavTransport


async def main(question: Path, model: str, turns: int) -> None:
    engine = Engine(EngineConfig(model=model))
    await engine.start()

    transport, context = WavTransport(), LLMContext()
    user, assistant = LLMContextAggregatorPair(
        context,
        user_params=LLMUserAggregatorParams(
            vad_analyzer=SileroVADAnalyzer(),
            user_turn_strategies=UserTurnStrategies(  # VAD's 0.2 s of silence, and no more
                stop=[SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=0.0)]
            ),
        ),
    )
    settings = ChromaRealtimeLLMService.Settings(max_reply_s=1.0)
    chroma = ChromaRealtimeLLMService(engine=engine, context=context, settings=settings)
    observer, waits = UserBotLatencyObserver(), list[float]()
    samples = read_audio(question, INPUT_RATE_HZ)

    @observer.event_handler("on_latency_measured")
    async def measured(_: UserBotLatencyObserver, seconds: float) -> None:
        waits.append(seconds)

    @assistant.event_handler("on_assistant_turn_stopped")
    async def replied(*_: object) -> None:
        if len(waits) < turns:
            transport.ask(samples)
        else:
            await worker.queue_frame(EndFrame())

    worker = PipelineWorker(
        Pipeline([transport.input(), user, chroma, transport.output(), assistant]),
        observers=[observer],
        enable_rtvi=False,
        idle_timeout_secs=30,  # in case nobody speaks
    )
    runner = WorkerRunner()
    await runner.add_workers(worker)
    transport.ask(samples)
    await runner.run()
    await engine.close()
    if not waits:
        raise SystemExit("No speech was found in the question.")
    told = " ".join(f"{wait:.2f}" for wait in waits)
    print(f"{model}: median {median(waits):.2f} s of {len(waits)} turns ({told})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="How long a user waits for the bot.")
    parser.add_argument("question", type=Path, help="WAV, FLAC, MP3 or OGG")
    parser.add_argument("--model", default="chroma-tiny")
    parser.add_argument("--turns", type=int, default=5)
    asyncio.run(main(**vars(parser.parse_args())))
