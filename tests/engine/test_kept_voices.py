"""An engine and a folder of voices: nothing is encoded twice, and what is deleted is gone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chroma_plugin.config import EngineConfig
from chroma_plugin.engine.runner import ReadyVoice
from chroma_plugin.engine.voices import codec_identity
from chroma_plugin.errors import VoiceError
from chroma_plugin.model.codec import Codec
from chroma_plugin.voice import Voice
from chroma_plugin.voice_clip import as_flac
from chroma_plugin.voice_store import VoiceStore
from tests.contract import Reply, assert_same_speech, read
from tests.engine.test_engine import (
    SEEDED,
    SHORT_S,
    new_engine,
    on_thread,
    shared_parts,
    worker_of,
)

CLIP = Voice.default()
SECONDS = 4
SAMPLES = CLIP.samples[: SECONDS * 24_000]
SAID = CLIP.transcript[: SECONDS * 12]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = VoiceStore(tmp_path)
    store.add("ada", as_flac(SAMPLES), SAID, store.new_consent("Ada", "Use my voice."))
    return tmp_path


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of every clip that is encoded from now on, but for the packaged one."""
    found: list[int] = []
    encode = Codec.encode

    def counted(codec: Codec, audio: torch.Tensor) -> torch.Tensor:
        if audio.shape[-1] != len(CLIP.samples):
            found.append(audio.shape[-1])
        return encode(codec, audio)

    monkeypatch.setattr(Codec, "encode", counted)
    return found


async def speak(voice: Voice) -> tuple[Reply, ReadyVoice]:
    """A reply in a voice, and what a new engine had made ready for it."""
    async with new_engine() as engine:
        session = await engine.open_session(voice=voice, sampling=SEEDED, max_reply_s=SHORT_S)
        reply, worker = await read(session.say("Good morning")), worker_of(engine)
        ready = await on_thread(worker, lambda: worker.voices.ready(voice))
        assert isinstance(ready, ReadyVoice)
        return reply, ready


def assert_the_same(one: tuple[Reply, ReadyVoice], other: tuple[Reply, ReadyVoice]) -> None:
    """To the bit what replies start from; the codec's sums may come in another order."""
    for a, b in (
        (one[1].prompt.codes, other[1].prompt.codes),
        (one[1].prompt.embeds, other[1].prompt.embeds),
        (one[1].prefix.k, other[1].prefix.k),
        (one[1].prefix.v, other[1].prefix.v),
    ):
        assert torch.equal(a, b)
    assert one[0].text == other[0].text
    assert_same_speech(one[0], other[0])


async def test_a_second_start_encodes_nothing_and_says_the_same(
    folder: Path, encoded: list[int]
) -> None:
    store = VoiceStore(folder)
    without = await speak(replace(store.get("ada"), keeper=None))
    assert encoded == [len(SAMPLES)] and not codes_of(folder)
    first = await speak(store.get("ada"))
    store.settle()
    assert encoded == [len(SAMPLES)] * 2

    codec = shared_parts(EngineConfig()).model.codec
    assert codes_of(folder) == [f"codes-{codec_identity(codec)}.npy"]
    again = await speak(VoiceStore(folder).get("ada"))  # as another process would
    assert encoded == [len(SAMPLES)] * 2
    assert_the_same(without, first)
    assert_the_same(without, again)


async def test_codes_of_another_codec_are_not_used(folder: Path, encoded: list[int]) -> None:
    store = VoiceStore(folder)
    wrong = torch.zeros(8, SECONDS * 25 // 2, dtype=torch.int64).numpy()
    store.keep_codes("ada", "0" * 32, wrong)
    _, ready = await speak(store.get("ada"))
    store.settle()
    assert encoded == [len(SAMPLES)]
    assert len(codes_of(folder)) == 2
    assert ready.prompt.codes.any()


async def test_a_deleted_voice_leaves_a_running_engine(folder: Path) -> None:
    store, elsewhere = VoiceStore(folder), VoiceStore(folder)
    async with new_engine() as engine:
        session = await engine.open_session(voice=store.get("ada"), max_reply_s=SHORT_S)
        assert (await read(session.say("Good morning"))).done.frames
        assert engine.stats.voices == 2
        elsewhere.remove("ada")  # as another process would
        store.notice_removals()
        await on_thread(worker_of(engine), lambda: None)
        assert engine.stats.voices == 1
        with pytest.raises(VoiceError, match="was deleted"):
            await read(session.say("Good evening"))
    store.settle()
    assert not codes_of(folder)


def codes_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("codes-*"))
