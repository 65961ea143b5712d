"""Where training speech comes from: voices, and speakers that say a text in one.

A `Speaker` is espeak-ng with synthetic voices drawn from a continuous range (`EspeakSpeaker`), any
command that makes a sound file (`CommandSpeaker`), or an engine of this package (`EngineSpeaker`).
Knows nothing of dialogues and records.
"""

from __future__ import annotations

import asyncio
import math
import shlex
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from chroma_plugin.audio import OUTPUT_RATE_HZ, Samples, pcm_to_float, read_audio, resample
from chroma_plugin.errors import AudioError, ChromaError
from chroma_plugin.reply import AudioChunk
from chroma_plugin.session import SpeechEngine
from chroma_plugin.voice import Voice

LEVEL = 0.07
"""RMS of a clip: -23 dBFS."""
PEAK = 0.95
ESPEAK_TIMEOUT_S = 30.0
_PITCH_OCTAVES = 1.35  # that espeak-ng's -p spans from 0 to 100, the voice's own at 50; measured

V = TypeVar("V")


class Speaker(Protocol[V]):
    """Says texts in voices of its own kind."""

    def draw(self, rng: np.random.Generator, *, held_out: bool = False) -> V:
        """A voice; one that training never hears, if it is held out."""

    def describe(self, voice: V) -> str:
        """The voice in a few words: equal for equal voices."""

    def speak(self, text: str, voice: V) -> Samples:
        """The text in the voice: float32 `[n]`, mono, 24 kHz, silence trimmed, -23 dBFS.

        Raises:
            AudioError: nothing can be heard.
            ChromaError: the speaker does not work at all; says how to mend it.
        """


@dataclass(frozen=True, slots=True)
class SyntheticVoice:
    """A voice of espeak-ng.

    Attributes:
        variant: espeak-ng's name for its formants and phonation.
        pitch: factor on the variant's own pitch.
        speed: words a minute.
        formant: factor on the formants; above 1 is a shorter vocal tract.
    """

    variant: str
    pitch: float = 1.0
    speed: float = 160.0
    formant: float = 1.0

    VARIANTS = (
        *("m1", "m2", "m3", "m5", "m6", "m7", "m8", "adam", "Michael", "edward", "norbert", "Lee"),
        *("f1", "f2", "f3", "f5", "Annie", "Alicia", "belinda", "linda", "Andrea"),
    )
    """Variants of espeak-ng 1.51 that can be understood and do not clip."""
    HELD_OUT_VARIANTS = ("m4", "max", "f4", "steph")
    """Variants that training never hears."""
    PITCH, SPEED, FORMANT = (0.8, 1.3), (130.0, 190.0), (0.88, 1.16)
    """What `draw` draws from: pitch and formant evenly on a log scale, speed evenly."""

    @classmethod
    def draw(cls, rng: np.random.Generator, *, held_out: bool = False) -> SyntheticVoice:
        """A voice from anywhere in the range; of a held-out variant, if it is held out."""
        variants = cls.HELD_OUT_VARIANTS if held_out else cls.VARIANTS
        return cls(
            variants[rng.integers(len(variants))],
            round(math.exp(rng.uniform(*np.log(cls.PITCH))), 3),
            round(rng.uniform(*cls.SPEED), 1),
            round(math.exp(rng.uniform(*np.log(cls.FORMANT))), 3),
        )

    def __str__(self) -> str:
        return f"{self.variant} pitch {self.pitch:g} speed {self.speed:g} formant {self.formant:g}"


class EspeakSpeaker:
    """Speaks by espeak-ng, one short process a text. May be used by several threads at once.

    Args:
        command: how to call it; more than a name where it is not installed as usual, such as
            `("env", "LD_LIBRARY_PATH=/opt/lib", "/opt/bin/espeak-ng", "--path=/opt/share")`.
        language: espeak-ng's name of language and accent.

    Raises:
        ChromaError: it is missing or does not run; says how to install it.
    """

    def __init__(self, command: Sequence[str] = ("espeak-ng",), language: str = "en-us") -> None:
        self._command, self._language = tuple(command), language
        listed = self._run(["--voices=variant"], "").decode("utf-8", "replace")
        self._variants = frozenset(line.rsplit("/", 1)[-1].strip() for line in listed.splitlines())

    def draw(self, rng: np.random.Generator, *, held_out: bool = False) -> SyntheticVoice:
        """See `SyntheticVoice.draw`."""
        return SyntheticVoice.draw(rng, held_out=held_out)

    def describe(self, voice: SyntheticVoice) -> str:
        """All of the voice's settings."""
        return str(voice)

    def speak(self, text: str, voice: SyntheticVoice) -> Samples:
        """See `Speaker.speak`.

        Raises:
            AudioError: nothing can be heard, or the voice's variant is unknown here.
            ChromaError: espeak-ng does not run.
        """
        if voice.variant not in self._variants:  # espeak-ng itself would take another one
            raise AudioError(
                f"This espeak-ng has no variant {voice.variant!r}; `espeak-ng --voices=variant` "
                "lists those that it has."
            )
        # played faster by `formant`, formants, pitch and speed rise together: the last two are
        # asked for lower by as much
        shift = math.log2(voice.pitch / voice.formant) / _PITCH_OCTAVES
        options = [
            *("-v", f"{self._language}+{voice.variant}"),
            *("-p", str(min(max(round(50 + 100 * shift), 0), 99))),
            *("-s", str(max(round(voice.speed / voice.formant), 80))),
            *("-a", "60", "-b", "1", "-z", "--stdin", "--stdout"),
        ]
        wav = self._run(options, text)
        if len(wav) <= 44:
            raise AudioError(f"espeak-ng says nothing for {text!r}.")
        rate_hz = int.from_bytes(wav[24:28], "little")
        samples = pcm_to_float(wav[44 : len(wav) // 2 * 2])
        return trimmed(resample(samples, round(rate_hz * voice.formant), OUTPUT_RATE_HZ), text)

    def _run(self, options: list[str], text: str) -> bytes:
        try:
            done = subprocess.run(
                [*self._command, *options],
                input=text.encode(),
                capture_output=True,
                timeout=ESPEAK_TIMEOUT_S,
                check=True,
            )
        except FileNotFoundError as error:
            raise ChromaError(
                f"{self._command[0]} is not installed. `apt install espeak-ng` (Debian, Ubuntu), "
                "`dnf install espeak-ng` (Fedora) or `brew install espeak-ng` (macOS) installs "
                "espeak-ng; or use another speaker."
            ) from error
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode("utf-8", "replace").strip()
            raise ChromaError(f"{shlex.join(self._command)} failed: {said}") from error
        except subprocess.TimeoutExpired as error:
            raise ChromaError(
                f"{shlex.join(self._command)} took more than {ESPEAK_TIMEOUT_S:g} s for a text of "
                f"{len(text)} characters."
            ) from error
        return done.stdout


class CommandSpeaker:
    """Speaks by any command that makes a sound file of a text file.

    Args:
        command: with `{text_file}`, `{out}` (a WAV file to write) and, where there are several
            voices, `{voice}`; no shell reads it: `"piper -m {voice}.onnx -i {text_file} -f {out}"`.
        voices: what `{voice}` may be.
        held_out: voices for tests only.
        timeout_s: how long one text may take.

    Raises:
        ChromaError: the command lacks a placeholder.
    """

    def __init__(
        self,
        command: str,
        voices: Sequence[str] = ("default",),
        held_out: Sequence[str] = (),
        timeout_s: float = 120.0,
    ) -> None:
        needed = ["{text_file}", "{out}"] + ["{voice}"] * (len({*voices, *held_out}) > 1)
        if missing := [name for name in needed if name not in command]:
            raise ChromaError(f"The speech command {command!r} lacks {' and '.join(missing)}.")
        self._words, self._timeout_s = shlex.split(command), timeout_s
        self._voices, self._held_out = tuple(voices), tuple(held_out)

    def draw(self, rng: np.random.Generator, *, held_out: bool = False) -> str:
        """One of the voices."""
        return _one_of(rng, self._held_out if held_out else self._voices, held_out)

    def describe(self, voice: str) -> str:
        """Its name."""
        return voice

    def speak(self, text: str, voice: str) -> Samples:
        """See `Speaker.speak`."""
        with tempfile.TemporaryDirectory() as folder:
            text_file, out = Path(folder, "text.txt"), Path(folder, "speech.wav")
            text_file.write_text(text + "\n", encoding="utf-8")
            places = {"{text_file}": str(text_file), "{out}": str(out), "{voice}": voice}
            words = [_filled(word, places) for word in self._words]
            try:
                done = subprocess.run(words, capture_output=True, timeout=self._timeout_s)
            except FileNotFoundError as error:
                raise ChromaError(f"{words[0]}: no such command.") from error
            except subprocess.TimeoutExpired as error:
                raise AudioError(
                    f"{words[0]} took more than {self._timeout_s:g} s for {text!r}."
                ) from error
            if done.returncode:
                said = done.stderr.decode("utf-8", "replace").strip()[-300:]
                raise AudioError(f"{words[0]} failed on {text!r} ({done.returncode}): {said}")
            return trimmed(read_audio(out, OUTPUT_RATE_HZ), text)


class EngineSpeaker:
    """Speaks by an engine of this package, in cloned voices. Close it when done.

    Args:
        engine: one that is not started; it runs on an event loop of this speaker's own.
        voices: reference clips to speak in.
        held_out: reference clips for tests only.
    """

    def __init__(
        self, engine: SpeechEngine, voices: Sequence[Voice], held_out: Sequence[Voice] = ()
    ) -> None:
        self._engine, self._voices, self._held_out = engine, tuple(voices), tuple(held_out)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="speaker", daemon=True)
        self._thread.start()

    def draw(self, rng: np.random.Generator, *, held_out: bool = False) -> Voice:
        """One of the voices."""
        return _one_of(rng, self._held_out if held_out else self._voices, held_out)

    def describe(self, voice: Voice) -> str:
        """Its name, and the beginning of its key."""
        return f"{voice.name} {voice.key[:12]}"

    def speak(self, text: str, voice: Voice) -> Samples:
        """See `Speaker.speak`."""
        _ = self._started
        said = asyncio.run_coroutine_threadsafe(self._say(text, voice), self._loop).result()
        return trimmed(pcm_to_float(said), text)

    def close(self) -> None:
        """Closes the engine and ends the thread; idempotent."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._engine.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @cached_property
    def _started(self) -> bool:
        asyncio.run_coroutine_threadsafe(self._engine.start(), self._loop).result()
        return True

    async def _say(self, text: str, voice: Voice) -> bytes:
        session = await self._engine.open_session(voice=voice)
        try:
            events = [event async for event in session.say(text)]
            return b"".join(event.pcm for event in events if isinstance(event, AudioChunk))
        finally:
            await session.aclose()


def trimmed(samples: Samples, text: str = "") -> Samples:
    """Speech without the silence around it, at the level of all training speech.

    Args:
        samples: float32 `[n]`, 24 kHz.
        text: what is said, for the message.

    Returns:
        The stretch within 40 dB of the loudest 10 ms, 20 ms before and 60 ms after it.

    Raises:
        AudioError: nothing can be heard.
    """
    step = OUTPUT_RATE_HZ // 100
    whole = np.pad(samples, (0, -len(samples) % step))
    loud = np.abs(whole.reshape(-1, step)).max(axis=1, initial=0)
    if not len(samples) or loud.max() < 1e-3:
        raise AudioError(f"Nothing can be heard in what was said for {text!r}.")
    heard = np.flatnonzero(loud > loud.max() / 100)
    kept = samples[max(0, (heard[0] - 2) * step) : (heard[-1] + 7) * step]
    gain = LEVEL / np.sqrt(np.mean(np.square(kept, dtype=np.float64)))
    return np.asarray(kept * min(gain, PEAK / np.abs(kept).max()), np.float32)


def speak_all(
    speaker: Speaker[V], jobs: Iterable[tuple[str, V]], workers: int = 2
) -> Iterator[Samples]:
    """Texts in voices, in the order of the jobs, on several threads.

    Args:
        speaker: one that may be used by several threads.
        jobs: (text, voice); drawn from no faster than they are spoken.
        workers: how many are spoken at a time.

    Raises:
        AudioError: a text cannot be spoken.
    """
    say: Callable[[str, V], Samples] = speaker.speak
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Samples]] = deque()
        for job in jobs:
            waiting.append(pool.submit(say, *job))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _one_of(rng: np.random.Generator, voices: tuple[V, ...], held_out: bool) -> V:
    if not voices:
        raise ChromaError(f"The speaker has no {'held-out ' * held_out}voices; name at least one.")
    return voices[rng.integers(len(voices))]


def _filled(word: str, places: dict[str, str]) -> str:
    for name, value in places.items():
        word = word.replace(name, value)
    return word
