"""A Pipecat pipeline with Chroma in it, between a microphone and a loudspeaker made of files.

    pip install "chroma-plugin[pipecat]"
    python examples/pipecat_wav.py question.wav reply.wav

The question is said at the pace of speech. For a conversation put any transport of Pipecat in the
place of `WavTransport`; nothing else changes. `--model` takes a checkpoint folder or a hub id.
"""

import argparse
import asyncio
from pathlib import Path

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import EndFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    AssistantTurnStoppedMessage,
    LLMAssistantAggregator,
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.workers.runner import WorkerRunner

from chroma_plugin import Engine, EngineConfig, Voice
from chroma_plugin.audio import INPUT_RATE_HZ, OUTPUT_RATE_HZ, read_audio, write_wav
from chroma_plugin.pipecat import ChromaRealtimeLLMService
from chroma_plugin.pipecat.wav import WavTransport


async def main(question: Path, reply: Path, model: str) -> None:
    engine = Engine(EngineConfig(model=model))  # one for all conversations of a process
    await engine.start()

    transport = WavTransport(read_audio(question, INPUT_RATE_HZ))
    context = LLMContext([{"role": "system", "content": "You are a friendly guide."}])
    user, assistant = LLMContextAggregatorPair(
        context, user_params=LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer())
    )
    chroma = ChromaRealtimeLLMService(engine=engine, voice=Voice.default(), context=context)
    pipeline = Pipeline([transport.input(), user, chroma, transport.output(), assistant])
    worker = PipelineWorker(pipeline, idle_timeout_secs=30)  # in case nobody speaks

    @assistant.event_handler("on_assistant_turn_stopped")
    async def replied(_: LLMAssistantAggregator, turn: AssistantTurnStoppedMessage) -> None:
        print(f"Chroma: {turn.content}")
        await worker.queue_frame(EndFrame())

    runner = WorkerRunner()
    await runner.add_workers(worker)
    await runner.run()
    await engine.close()
    write_wav(reply, bytes(transport.pcm), OUTPUT_RATE_HZ)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One spoken question through Pipecat and Chroma.")
    parser.add_argument("question", type=Path, help="WAV, FLAC, MP3 or OGG")
    parser.add_argument("reply", type=Path, help="the WAV file to write")
    parser.add_argument("--model", default="chroma-tiny")
    asyncio.run(main(**vars(parser.parse_args())))
