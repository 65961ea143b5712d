"""Spoken conversations held with an engine: what is asked, and the two ways in which it is.

What is asked are training records. A way of asking holds one conversation and tells every reply in
the same form, whether it went through a `Session` alone or through a whole Pipecat pipeline. Knows
nothing of how replies are judged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from chroma_plugin.audio import (
    INPUT_RATE_HZ,
    OUTPUT_RATE_HZ,
    Samples,
    float_to_pcm,
    pcm_to_float,
    write_wav,
)
from chroma_plugin.config import SamplingParams
from chroma_plugin.errors import (
    AudioError,
    ChromaError,
    ConfigError,
    EngineClosed,
    EngineFailed,
)
from chroma_plugin.reply import AudioChunk, EndReason, TurnDone
from chroma_plugin.session import SpeechEngine
from chroma_plugin.training.records import Clip, Records, Turn
from chroma_plugin.voice import Voice

PIECE = INPUT_RATE_HZ // 50
"""Samples of a question that are pushed at once: 20 ms, as a telephone does."""
LONG_TURNS = 10


@dataclass(frozen=True, slots=True)
class Talk:
    """One conversation to be held.

    Attributes:
        turns: questions, and their answers as they were recorded.
        voice: whose voice replies.
        prompt: the clip of it that the model is given.
        speaker: its name among the records' speakers.
        long: it is made of several dialogues.
    """

    turns: tuple[Turn, ...]
    voice: Voice
    prompt: Clip
    speaker: str
    long: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one question.

    Attributes:
        text: what the thinker chose to say.
        audio: float32, 24 kHz.
        reason: why it ended; None if it failed.
        made_s: wall time from the end of the question to the end of the making.
        error: why it failed; "" if it did not.
    """

    text: str = ""
    audio: Samples = field(default_factory=lambda: np.zeros(0, np.float32))
    reason: EndReason | None = None
    made_s: float = 0.0
    error: str = ""

    @property
    def seconds(self) -> float:
        return len(self.audio) / OUTPUT_RATE_HZ

    @property
    def ended(self) -> bool:
        """By itself: it met no cap and did not fail."""
        return self.reason is EndReason.END_OF_SPEECH


Ask = Callable[[SpeechEngine, Talk, SamplingParams], Awaitable[list[Reply]]]
"""Holds a conversation in a session of its own; the replies to its turns, as far as it came."""
Progress = Callable[[int, int], None]
"""How many of how many conversations are held."""


# -- what is asked ---------------------------------------------------------------------------


def talks_of(records: Records, count: int | None = None) -> tuple[list[Talk], list[str]]:
    """The dialogues of some records, each in the voice that answers it there.

    Args:
        records: of a split.
        count: only the first so many dialogues.

    Returns:
        The talks, and the dialogues that are left out because no clip of their voice can be its
        prompt, with the reason.
    """
    talks: list[Talk] = []
    left_out: list[str] = []
    for number in records.dialogues[:count]:
        record = records[number]
        why = ""
        for clip in record.references:
            try:
                voice = Voice.from_samples(
                    clip.samples(), OUTPUT_RATE_HZ, clip.text, record.speaker
                )
            except AudioError as error:
                why = why or str(error)
                continue
            talks.append(Talk(record.turns, voice, clip, record.speaker))
            break
        else:
            left_out.append(f"{record.speaker}: {why}")
    return talks, left_out


def long_talks(talks: Sequence[Talk], count: int, turns: int = LONG_TURNS) -> list[Talk]:
    """Conversations of so many turns, of one dialogue after the other, each in one voice.

    Every dialogue begins with a question that stands alone, so it may follow any other one.

    Args:
        talks: the dialogues, used in turn, from the first on again when they are used up.
        count: conversations.
        turns: of each; the last dialogue is cut.
    """
    made: list[Talk] = []
    place = 0
    for _ in range(count if talks else 0):
        first = talks[place % len(talks)]
        joined: list[Turn] = []
        while len(joined) < turns:
            joined += talks[place % len(talks)].turns
            place += 1
        made.append(Talk(tuple(joined[:turns]), first.voice, first.prompt, first.speaker, True))
    return made


# -- how it is asked -------------------------------------------------------------------------


def by_session(max_reply_s: float) -> Ask:
    """Asks through a `Session`: questions in pieces of 20 ms, replies as they stream in."""

    async def ask(engine: SpeechEngine, talk: Talk, sampling: SamplingParams) -> list[Reply]:
        session = await engine.open_session(
            voice=talk.voice, sampling=sampling, max_reply_s=max_reply_s
        )
        replies: list[Reply] = []
        try:
            for turn in talk.turns:
                question = turn.question.samples()
                for first in range(0, len(question), PIECE):
                    session.push_audio(question[first : first + PIECE])
                pcm = b""
                async for event in session.commit_turn():
                    if isinstance(event, AudioChunk):
                        pcm += event.pcm
                    elif isinstance(event, TurnDone):
                        replies.append(_reply(event, pcm))
        except (EngineFailed, EngineClosed):
            raise
        except ChromaError as error:
            replies.append(Reply(error=str(error)))
        finally:
            await session.aclose()
        return replies

    return ask


def by_pipeline(max_reply_s: float) -> Ask:
    """Asks through a Pipecat pipeline with VAD and both aggregators, as fast as it goes.

    Raises:
        ChromaError: Pipecat is missing.
    """
    try:
        from chroma_plugin.talk import talk as converse
    except ImportError as error:
        raise ChromaError(
            f"A pipeline needs Pipecat ({error}). Install it: pip install 'pipecat-ai>=1.14,<2'; "
            "or ask by --through session."
        ) from error

    async def ask(engine: SpeechEngine, talk: Talk, sampling: SamplingParams) -> list[Reply]:
        try:
            report = await converse(
                engine,
                [turn.question.samples() for turn in talk.turns],
                voice=talk.voice,
                sampling=sampling,
                max_reply_s=max_reply_s,
                fast=True,
            )
        except (EngineFailed, EngineClosed):
            raise
        except ChromaError as error:
            return [Reply(error=str(error))]
        return [
            Reply(turn.text, pcm_to_float(turn.pcm), turn.reason, turn.timings.total_ms / 1000)
            for turn in report.turns
        ]

    return ask


def _reply(done: TurnDone, pcm: bytes) -> Reply:
    return Reply(done.text, pcm_to_float(pcm), done.reason, done.timings.total_ms / 1000)


async def hold(
    engine: SpeechEngine,
    talks: Sequence[Talk],
    ask: Ask,
    sampling: SamplingParams | None = None,
    *,
    seed: int = 0,
    together: int = 1,
    progress: Progress = lambda done, of: None,
) -> list[list[Reply]]:
    """Holds conversations.

    Args:
        engine: one that is started.
        talks: what to ask.
        ask: the way.
        sampling: how codes are drawn; the released defaults if None.
        seed: of the first conversation's speech; the others follow it.
        together: conversations at once, no more than the engine's rows.
        progress: told after each.

    Returns:
        For each talk as many replies as it has turns; what a conversation that broke off did not
        come to has failed.

    Raises:
        EngineFailed: the engine is dead.
        EngineClosed: it is closed.
    """
    room, done = asyncio.Semaphore(together), 0
    plain = sampling or SamplingParams()

    async def one(number: int, talk: Talk) -> list[Reply]:
        nonlocal done
        async with room:
            replies = await ask(engine, talk, replace(plain, seed=seed + number))
        done += 1
        progress(done, len(talks))
        missing = len(talk.turns) - len(replies)
        return replies + [Reply(error="the conversation broke off before it")] * missing

    return list(await asyncio.gather(*(one(i, talk) for i, talk in enumerate(talks))))


def read_settings(text: str) -> list[SamplingParams]:
    """Settings to be compared, of "TEMPERATURE:TOP_K ..."; a temperature alone draws among all.

    Raises:
        ConfigError: one is none, or out of range; names it.
    """
    found: list[SamplingParams] = []
    for word in text.split():
        temperature, _, top_k = word.partition(":")
        try:
            found.append(SamplingParams(float(temperature), int(top_k or 0)))
        except ValueError as error:  # with ConfigError
            raise ConfigError(f"--sampling {word!r}: {error}. Write 0.7:20, or 0.") from error
    if not found:
        raise ConfigError("--sampling names no setting; write 1:50, or several: 1:50 0.7:20 0.")
    return found


def written_setting(sampling: SamplingParams) -> str:
    """As `read_settings` reads it."""
    kept = f":{sampling.top_k}" if sampling.top_k else ""
    return f"{sampling.temperature:g}{kept}"


def save_talk(folder: Path, name: str, talk: Talk, replies: Sequence[Reply]) -> None:
    """Writes `NAME-prompt.wav`, and for each turn its question and reply, with their texts.

    Raises:
        AudioError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AudioError(f"{folder}: cannot be made ({error.strerror}).") from error
    write_wav(folder / f"{name}-prompt.wav", float_to_pcm(talk.voice.samples), OUTPUT_RATE_HZ)
    texts = [f"prompt: {talk.voice.transcript}"]
    for place, (turn, reply) in enumerate(zip(talk.turns, replies, strict=True), 1):
        question = float_to_pcm(turn.question.samples())
        write_wav(folder / f"{name}-{place}-question.wav", question, INPUT_RATE_HZ)
        write_wav(folder / f"{name}-{place}-reply.wav", float_to_pcm(reply.audio), OUTPUT_RATE_HZ)
        texts += [f"{place} question: {turn.question.text}", f"{place} wanted: {turn.answer.text}"]
        texts += [f"{place} reply: {reply.text}"] + [f"{place} failed: {reply.error}"] * bool(
            reply.error
        )
    (folder / f"{name}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
