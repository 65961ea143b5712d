r"""Two agents with two voices: the first hands the caller over to the second after three answers.

    pip install "chroma-plugin[livekit,server]"
    python examples/livekit_two_agents.py console
    ADA="ada.flac|What she says in it." BOB="bob.flac|What he says." \\
        python examples/livekit_two_agents.py dev

Each voice is a recording of 3 to 30 s and its words, with a bar between them; without one it is
the packaged voice. Use the voice of nobody who has not agreed to it. See livekit_agent.py for
rooms and for where the model runs.
"""

import os

from livekit.agents import (
    Agent,
    AgentServer,
    AgentSession,
    ConversationItemAddedEvent,
    JobContext,
    cli,
    inference,
)

from chroma_plugin import Voice
from chroma_plugin import livekit as chroma

ENGINE = os.environ.get("CHROMA_ENGINE_URL") or chroma.LocalServer()
ANSWERS_OF_THE_FIRST = 3
capacity = chroma.Capacity(ENGINE)
server = AgentServer(load_fnc=capacity.load, load_threshold=1.0, num_idle_processes=1)


def speaker(name: str) -> chroma.RealtimeModel:
    """A model with the voice that the environment names."""
    clip, _, words = os.environ.get(name, "").partition("|")
    voice = Voice.from_file(clip, words, name) if clip else None
    consent = f"given to whoever set {name}"
    return chroma.RealtimeModel(engine=ENGINE, voice=voice, voice_consent=consent, transcribe=True)


class Desk(Agent):
    """Takes the call."""

    def __init__(self) -> None:
        super().__init__(instructions="You are at the desk. Be short.", llm=speaker("ADA"))
        self.answers = 0

    async def on_enter(self) -> None:
        """Greets, and counts what is answered."""
        self.session.on("conversation_item_added", self.count)
        self.session.say("This is the desk. What can I do for you?")

    async def on_exit(self) -> None:
        """Counts no more."""
        self.session.off("conversation_item_added", self.count)

    def count(self, event: ConversationItemAddedEvent) -> None:
        """Hands over when enough was answered; what was said so far goes with it."""
        if getattr(event.item, "role", "") == "assistant":
            self.answers += 1
        if self.answers == ANSWERS_OF_THE_FIRST + 1:  # one was the greeting
            self.session.update_agent(Expert(self.chat_ctx))


class Expert(Agent):
    """Goes on."""

    def __init__(self, chat_ctx) -> None:  # type: ignore[no-untyped-def]
        super().__init__(
            instructions="You are the expert. Be exact.", llm=speaker("BOB"), chat_ctx=chat_ctx
        )

    async def on_enter(self) -> None:
        """Says who is there now."""
        self.session.say("The expert here. Go on, please.")


@server.rtc_session(on_request=capacity.take_or_refuse)
async def talk(job: JobContext) -> None:
    """One conversation: one job of the worker."""
    session: AgentSession[None] = AgentSession(
        vad=inference.VAD(),
        turn_handling={
            "turn_detection": inference.TurnDetector(version="v1-mini"),
            "interruption": {"mode": "vad"},
        },
    )
    await session.start(Desk(), room=job.room)


if __name__ == "__main__":
    cli.run_app(server)
