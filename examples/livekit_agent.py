"""An agent that talks in a LiveKit room, or in this terminal, with everything on this machine.

    pip install "chroma-plugin[livekit,server]"
    python examples/livekit_agent.py console     # your microphone and your loudspeaker
    python examples/livekit_agent.py dev         # rooms of the server at $LIVEKIT_URL

The first conversation starts a server for the model, the others share it, and it ends with this
program. `CHROMA_ENGINE_URL=ws://gpu-1:8000` uses one that runs elsewhere, `CHROMA_MODEL=...` other
weights than the small ones inside the package. Rooms of `livekit-server --dev` need
LIVEKIT_URL=ws://127.0.0.1:7880, LIVEKIT_API_KEY=devkey and LIVEKIT_API_SECRET=secret.
"""

import os

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, cli, inference

from chroma_plugin import livekit as chroma

ENGINE = os.environ.get("CHROMA_ENGINE_URL") or chroma.LocalServer(
    model=os.environ.get("CHROMA_MODEL", "chroma-tiny")
)
capacity = chroma.Capacity(ENGINE)
server = AgentServer(load_fnc=capacity.load, load_threshold=1.0, num_idle_processes=1)


class Host(Agent):
    """Greets whoever comes in, and answers."""

    async def on_enter(self) -> None:
        """Speaks first."""
        self.session.say("Hello. What would you like to know?")


@server.rtc_session(on_request=capacity.take_or_refuse)
async def talk(job: JobContext) -> None:
    """One conversation: one job of the worker."""
    session: AgentSession[None] = AgentSession(
        llm=chroma.RealtimeModel(engine=ENGINE, transcribe=True),
        vad=inference.VAD(),  # with the turn detector's small version nothing leaves the machine
        turn_handling={
            "turn_detection": inference.TurnDetector(version="v1-mini"),
            "interruption": {"mode": "vad"},
        },
    )
    await session.start(Host(instructions="Answer in one short sentence."), room=job.room)


if __name__ == "__main__":
    cli.run_app(server)
