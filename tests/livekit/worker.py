"""A worker for the tests of rooms: `python -m tests.livekit.worker start`."""

import os

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, cli, inference

from chroma_plugin import livekit as chroma

ENGINE = os.environ["CHROMA_ENGINE_URL"]
capacity = chroma.Capacity(ENGINE)
server = AgentServer(
    load_fnc=capacity.load,
    load_threshold=1.0,
    num_idle_processes=1,
    initialize_process_timeout=60.0,
    host="127.0.0.1",
    port=0,
)


@server.rtc_session(agent_name="chroma", on_request=capacity.take_or_refuse)
async def talk(job: JobContext) -> None:
    session: AgentSession[None] = AgentSession(
        llm=chroma.RealtimeModel(engine=ENGINE),
        vad=inference.VAD(),
        turn_handling={
            "turn_detection": inference.TurnDetector(version="v1-mini"),
            "interruption": {"mode": "vad"},
        },
    )
    await session.start(Agent(instructions="Answer."), room=job.room, record=False)
    session.say(f"Process {os.getpid()} is here.")


if __name__ == "__main__":
    cli.run_app(server)
