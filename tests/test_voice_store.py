"""VoiceStore: names that are no paths, consents, hostile clips, deletion, several processes."""

from __future__ import annotations

import io
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from chroma_plugin.errors import VoiceError
from chroma_plugin.voice import Voice
from chroma_plugin.voice_clip import decode_clip
from chroma_plugin.voice_consent import Consent
from chroma_plugin.voice_store import VoiceStore

CLIP = Voice.default()


def sound(samples: Any = CLIP.samples, rate: int = 24000, form: str = "WAV") -> bytes:
    data = io.BytesIO()
    soundfile.write(data, samples, rate, format=form)
    return data.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> VoiceStore:
    return VoiceStore(tmp_path / "voices")


def add(store: VoiceStore, name: str = "ada", consent: Consent | None = None) -> Any:
    consent = consent or store.new_consent("Ada", "Use my voice.")
    return store.add(name, sound(), CLIP.transcript, consent)


def files(store: VoiceStore) -> list[str]:
    found = [p for p in store._folder.rglob("*") if p.is_file()]
    return sorted(str(p.relative_to(store._folder)) for p in found if p.name != ".lock")


def test_a_voice_is_kept_with_its_consent(store: VoiceStore) -> None:
    record = add(store)
    assert (record.name, record.consent.who) == ("ada", "Ada")
    assert store.names() == ["ada"]
    assert store.records() == [VoiceStore(store._folder).record("ada")] == [record]
    voice = store.get("ada")
    assert voice.transcript == CLIP.transcript
    assert np.abs(voice.samples - CLIP.samples).max() < 1e-5
    assert voice.key == record.key


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/b", "a\\b", ".hidden", "A", "a" * 65, "a\n", "é", "a\0", "default"],
)
def test_a_name_is_no_path(store: VoiceStore, name: str) -> None:
    consent = store.new_consent("Ada", "Yes.")
    before = files(store)
    for wrong in (
        lambda: store.add(name, sound(), CLIP.transcript, consent),
        lambda: store.get(name),
        lambda: store.remove(name),
        lambda: store.record(name),
    ):
        with pytest.raises(VoiceError):
            wrong()
    assert files(store) == before


def test_without_consent_there_is_no_voice(store: VoiceStore) -> None:
    for who, statement in (("", "Yes."), ("Ada", " "), ("a" * 201, "Yes.")):
        with pytest.raises(VoiceError):
            store.new_consent(who, statement)
    empty = Consent("", "", 0.0, "cons_0000000000000000")
    with pytest.raises(VoiceError, match="consent"):
        store.add("ada", sound(), CLIP.transcript, empty)
    add(store)
    path = store._place("ada") / "voice.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"consent": None}))
    with pytest.raises(VoiceError, match="consent"):
        store.get("ada")
    assert store.records() == []


def test_another_clip_in_its_place_is_refused(store: VoiceStore) -> None:
    add(store)
    (store._place("ada") / "sample.flac").write_bytes(sound(CLIP.samples[::-1], form="FLAC"))
    with pytest.raises(VoiceError, match="not the one"):
        store.get("ada")


def test_deletion_leaves_nothing(store: VoiceStore) -> None:
    consent = store.new_consent("Ada", "Yes.")
    add(store, "ada", consent)
    add(store, "ada-2", consent)
    store.keep_codes("ada", np.arange(16).reshape(8, 2))
    assert store.codes("ada") is not None
    store.remove("ada")
    assert not [name for name in files(store) if "ada/" in name]
    assert store.consents() == [consent]  # the other voice stands on it
    store.remove("ada-2")
    assert files(store) == []
    with pytest.raises(VoiceError, match="no voice"):
        store.remove("ada")


def test_a_consent_that_is_withdrawn_takes_its_voices_along(store: VoiceStore) -> None:
    consent = store.new_consent("Ada", "Yes.", recording=b"yes")
    assert len(consent.recording_sha256) == 64
    add(store, "ada", consent)
    add(store, "bob")
    store.remove_consent(consent.id)
    assert store.names() == ["bob"]
    for wrong in (consent.id, "../voices/bob/voice", "cons_x"):
        with pytest.raises(VoiceError, match="no consent"):
            store.consent(wrong)


def test_codes_are_kept_with_their_voice(store: VoiceStore) -> None:
    add(store)
    assert store.codes("ada") is None
    codes = np.arange(24).reshape(8, 3)
    store.keep_codes("ada", codes)
    kept = store.codes("ada")
    assert kept is not None and np.array_equal(kept, codes)
    (store._place("ada") / "codes.npy").write_bytes(b"garbage")
    assert store.codes("ada") is None
    with pytest.raises(VoiceError):
        store.keep_codes("bob", codes)


def test_a_name_is_given_once_however_many_ask(store: VoiceStore) -> None:
    consent = store.new_consent("Ada", "Yes.")
    others = [VoiceStore(store._folder) for _ in range(4)]

    def enrol(one: VoiceStore) -> bool:
        try:
            add(one, "ada", consent)
        except VoiceError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(enrol, others)) == 1
    assert store.get("ada").key == store.record("ada").key


def test_what_a_dead_process_left_is_swept(store: VoiceStore) -> None:
    for left in (".new-abc", ".gone-abc"):
        (store._voices / left).mkdir()
        (store._voices / left / "sample.flac").write_bytes(b"x")
    assert store.names() == []
    VoiceStore(store._folder)
    assert files(store) == []


# -- hostile clips ---------------------------------------------------------------------------


def lying_wav(rate: int, channels: int, promised: int) -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * 2, 2, 16)
    head = struct.pack("<4sI4s", b"RIFF", promised, b"WAVE")
    return head + form + struct.pack("<4sI", b"data", promised) + bytes(4000)


@pytest.mark.parametrize(
    "clip",
    [
        b"",
        b"RIFF",
        b"\0" * 10_000,
        b"PK\3\4" + bytes(1000),
        b"fLaC" + b"\xff" * 1000,
        lying_wav(2**31 - 1, 1, 2**32 - 1),
        lying_wav(24000, 60000, 2**32 - 1),
        lying_wav(1, 1, 100),
        bytes(17 << 20),
        sound(np.zeros((24000, 6), np.float32)),
        sound(np.zeros(24000, np.float32), form="AIFF"),
    ],
    ids=["empty", "cut", "zeros", "zip", "flac", "rate", "channels", "slow", "huge", "six", "aiff"],
)
def test_a_hostile_clip_is_refused(clip: bytes) -> None:
    with pytest.raises(VoiceError):
        decode_clip(clip)


def test_a_long_silence_is_decoded_as_far_as_a_voice_may_be_long(store: VoiceStore) -> None:
    hour = sound(np.zeros(8000 * 3600, np.int16), 8000, "FLAC")
    assert len(hour) < 1 << 20
    assert len(decode_clip(hour)) == 31 * 24000
    with pytest.raises(VoiceError, match=r"31\.0 s long"):
        store.add("ada", hour, CLIP.transcript, store.new_consent("Ada", "Yes."))


def test_a_header_that_promises_more_than_there_is_is_not_believed() -> None:
    assert len(decode_clip(lying_wav(24000, 1, 2**32 - 100))) == 2000
