"""Chroma in a browser, over a telephone or in a Daily room: one bot, whoever connects.

    pip install "chroma-plugin[web]"
    python examples/pipecat_webrtc.py                  # then open http://localhost:7860
    python examples/pipecat_webrtc.py -t twilio -x your.public.host
    python examples/pipecat_webrtc.py -t daily         # needs pipecat-ai[daily] and its API key

Pipecat's runner brings the routes and the options (`--help`) and calls `bot` for each conversation.
The page at / asks nobody but this server for anything; Pipecat's own page is at /client/ and needs
the internet. CHROMA_MODEL names another checkpoint: a folder or a hub id. The command
`chroma-plugin talk --web` runs this file.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.runner.run import app, main
from pipecat.runner.types import RunnerArguments
from pipecat.runner.utils import create_transport
from pipecat.serializers.protobuf import ProtobufFrameSerializer
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams
from pipecat.workers.runner import WorkerRunner

from chroma_plugin import Engine, EngineConfig, Voice
from chroma_plugin.pipecat import ChromaRealtimeLLMService

engine = Engine(EngineConfig(model=os.environ.get("CHROMA_MODEL", "chroma-tiny")))
voice = Voice.default()  # or Voice.from_file("me.wav", transcript="What I say in it.")
settings = ChromaRealtimeLLMService.Settings(
    system_instruction="You are a friendly guide.",
    greeting="Hello! What would you like to know?",
)

# At the rate of the line: resampled further on, a reply would lose its last tenth of a second.
TELEPHONE = PipelineParams(audio_in_sample_rate=8000, audio_out_sample_rate=8000)
SPEECH = {"audio_in_enabled": True, "audio_out_enabled": True}


def daily() -> TransportParams:
    from pipecat.transports.daily.transport import DailyParams

    return DailyParams(**SPEECH)


TRANSPORTS = {
    "webrtc": lambda: TransportParams(**SPEECH),
    "daily": daily,
    "twilio": lambda: FastAPIWebsocketParams(**SPEECH),  # its serializer comes with the call
    "websocket": lambda: FastAPIWebsocketParams(**SPEECH, serializer=ProtobufFrameSerializer()),
}


async def bot(runner_args: RunnerArguments) -> None:
    """One conversation, from its first word to the end of the connection."""
    await engine.start()  # once for all conversations; the others find it running
    transport = await create_transport(runner_args, TRANSPORTS)
    context = LLMContext()
    user, assistant = LLMContextAggregatorPair(
        context, user_params=LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer())
    )
    chroma = ChromaRealtimeLLMService(
        engine=engine, voice=voice, context=context, settings=settings, transcribe=True
    )
    pipeline = Pipeline([transport.input(), user, chroma, transport.output(), assistant])
    worker = PipelineWorker(
        pipeline,
        params=TELEPHONE if runner_args.call_data else PipelineParams(),
        idle_timeout_secs=runner_args.pipeline_idle_timeout_secs,
    )

    @transport.event_handler("on_client_disconnected")
    async def hang_up(_: BaseTransport, client: object) -> None:
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=runner_args.handle_sigint)
    await runner.add_workers(worker)
    await runner.run()


@asynccontextmanager
async def running(_: FastAPI) -> AsyncIterator[None]:
    """Loads the engine before the first client comes, and closes it when the server stops."""
    async with engine:
        yield


app.router.lifespan_context = running


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    """What the browser shows: a button, what is said, and a line to type in."""
    return (files("chroma_plugin") / "assets" / "talk.html").read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
