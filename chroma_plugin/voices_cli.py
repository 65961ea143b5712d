"""`chroma-plugin voices`: add, list, check, remove and play the voices of a folder; find marks."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from chroma_plugin.audio import OUTPUT_RATE_HZ, float_to_pcm, read_audio, write_wav
from chroma_plugin.errors import ChromaError
from chroma_plugin.reply import AudioChunk
from chroma_plugin.session import SpeechEngine
from chroma_plugin.voice import Voice
from chroma_plugin.voice_store import VoiceStore, default_folder
from chroma_plugin.voice_upload import decode_upload

NOT_FOUND = 3
"""Exit code of `detect` when there is no mark."""

app = typer.Typer(
    name="voices",
    help="Voices in a folder, each with the consent of its owner.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


Name = Annotated[str, typer.Argument(help="The voice's id: a-z, 0-9, - and _.")]
Clip = Annotated[Path, typer.Argument(help="3 to 30 s of speech: WAV, FLAC, MP3 or OGG.")]
Said = Annotated[str, typer.Option("--transcript", help="What is said in it, word for word.")]
Folder = Annotated[
    Path | None, typer.Option("--folder", help="Of the voices; $CHROMA_VOICES if not given.")
]


def _store(folder: Path | None) -> VoiceStore:
    return VoiceStore(folder or default_folder())


@app.command()
def add(
    name: Name,
    clip: Clip,
    transcript: Said,
    consent_by: Annotated[str, typer.Option(help="Whose voice it is, who agreed.")],
    statement: Annotated[str, typer.Option(help="What they agreed to, in their words.")],
    recording: Annotated[
        Path | None, typer.Option(help="A recording of that; its hash is kept.")
    ] = None,
    folder: Folder = None,
) -> None:
    """Enrol a voice, with the consent of its owner."""
    store = _store(folder)
    said = None if recording is None else _read(recording)
    sample = _read(clip)
    _checked(sample, transcript, name)
    consent = store.new_consent(consent_by, statement, recording=said)
    try:
        record = store.add(name, sample, transcript, consent)
    except ChromaError:
        store.remove_consent(consent.id)
        raise
    print(f"{record.name}: {record.seconds:.1f} s, consent {record.consent.id}")


@app.command(name="list")
def list_voices(folder: Folder = None) -> None:
    """List the voices, and who agreed to them."""
    table = Table("voice", "seconds", "consent by", "on", box=None)
    for record in _store(folder).records():
        day = time.strftime("%Y-%m-%d", time.gmtime(record.consent.when))
        table.add_row(record.name, f"{record.seconds:.1f}", record.consent.who, day)
    Console(width=None if os.isatty(1) else 120).print(table)


@app.command()
def check(clip: Clip, transcript: Said) -> None:
    """Say whether a clip can be used as a voice, or why not and what mends it."""
    voice = _checked(_read(clip), transcript, clip.stem)
    rate = len(voice.transcript) / voice.seconds
    print(f"usable: {voice.seconds:.1f} s, {rate:.0f} characters a second")


@app.command()
def remove(name: Name, folder: Folder = None) -> None:
    """Delete a voice, its clip and all that was made of it."""
    _store(folder).remove(name)
    print(f"{name} is gone")


@app.command()
def play(
    name: Name,
    text: Annotated[str | None, typer.Argument(help="What it is to say; its clip if none.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write WAV instead of playing it.")
    ] = None,
    model: Annotated[str, typer.Option(help="What speaks the text.")] = "chroma-tiny",
    folder: Folder = None,
) -> None:
    """Play a voice: its clip, or a text that it says."""
    voice = _store(folder).get(name)
    pcm = float_to_pcm(voice.samples) if text is None else asyncio.run(_speak(voice, text, model))
    if output is not None:
        write_wav(output, pcm, OUTPUT_RATE_HZ)
        return
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise ChromaError(
            f"Nothing here can play sound ({error}). Write it to a file: -o {name}.wav"
        ) from error
    with sounddevice.RawOutputStream(OUTPUT_RATE_HZ, channels=1, dtype="int16") as speaker:
        speaker.write(pcm)


@app.command()
def detect(
    file: Annotated[Path, typer.Argument(help="A recording: WAV, FLAC, MP3 or OGG.")],
) -> None:
    """Look for the mark of replies in a recording. Exit code: 0 found, 3 not found, 1 unreadable.

    No mark is no proof: it can be turned off, and taken out by whoever wants it out.
    """
    from chroma_plugin.perth import Perth, marked_runs

    samples = read_audio(file, OUTPUT_RATE_HZ)
    stretches = list(Perth.load().search(samples))
    for run in marked_runs(stretches):
        print(f"marked: {run.start_s:.1f} to {run.end_s:.1f} s, confidence {run.confidence:.2f}")
    if not any(stretch.marked for stretch in stretches):
        highest = max((stretch.confidence for stretch in stretches), default=0.0)
        print(f"no mark found in {len(samples) / OUTPUT_RATE_HZ:.1f} s, confidence {highest:.2f}")
        raise typer.Exit(NOT_FOUND)


async def _speak(voice: Voice, text: str, model: str) -> bytes:
    from chroma_plugin.config import EngineConfig
    from chroma_plugin.engine.engine import Engine

    engine: SpeechEngine = Engine(EngineConfig(model, max_replies=1))
    await engine.start()
    try:
        session = await engine.open_session(voice=voice)
        events = [event async for event in session.say(text)]
    finally:
        await engine.close()
    return b"".join(event.pcm for event in events if isinstance(event, AudioChunk))


def _checked(clip: bytes, transcript: str, name: str) -> Voice:
    return Voice.from_samples(decode_upload(clip), OUTPUT_RATE_HZ, transcript, name)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ChromaError(f"{path}: cannot be read ({error.strerror}).") from error
