"""VoiceStore: names that are no paths, consents, codes, deletion, several processes."""

from __future__ import annotations

import io
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from chroma_plugin import voice_store
from chroma_plugin.errors import VoiceError
from chroma_plugin.voice import Voice
from chroma_plugin.voice_clip import decode_clip
from chroma_plugin.voice_consent import Consent
from chroma_plugin.voice_store import MAX_CODECS, VoiceStore

CLIP = Voice.default()
CODEC = "0123456789abcdef" * 2
CODES = np.arange(16).reshape(8, 2)


def sound(samples: Any = CLIP.samples, rate: int = 24000, form: str = "WAV") -> bytes:
    data = io.BytesIO()
    soundfile.write(data, samples, rate, format=form)
    return data.getvalue()


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads are decoded in this process, which is quicker; tests/test_voice_upload.py has it."""
    monkeypatch.setattr(voice_store, "decode_upload", decode_clip)


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
    store.keep_codes("ada", CODEC, CODES)
    assert store.codes("ada", CODEC) is not None
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


def test_a_consent_withdrawn_while_its_clip_is_decoded_gives_no_voice(
    store: VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    consent = store.new_consent("Ada", "Yes.")

    def decode(*given: Any, **more: Any) -> Any:
        store.remove_consent(consent.id)
        return decode_clip(*given, **more)

    monkeypatch.setattr(voice_store, "decode_upload", decode)
    with pytest.raises(VoiceError, match="no consent"):
        add(store, "ada", consent)
    assert store.names() == []


def test_what_cannot_be_read_now_is_not_deleted(
    store: VoiceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store)
    voice = store.get("ada")
    assert voice.keeper is not None

    def read(name: str) -> Any:
        raise OSError(24, "Too many open files")

    (store._folder / "voices" / "new").mkdir()  # so that the folder is another one
    with monkeypatch.context() as patched:
        patched.setattr(store, "_read", read)
        with pytest.raises(OSError, match="Too many"):
            store.notice_removals()
    assert not voice.keeper.gone


def test_codes_are_kept_by_voice_and_codec(store: VoiceStore) -> None:
    add(store)
    assert store.codes("ada", CODEC) is None
    store.keep_codes("ada", CODEC, CODES)
    kept = store.codes("ada", CODEC)
    assert kept is not None and np.array_equal(kept, CODES)
    assert store.codes("ada", "f" * 32) is None
    for damage in (b"garbage", b"", np.arange(3).tobytes()):
        (store._place("ada") / f"codes-{CODEC}.npy").write_bytes(damage)
        assert store.codes("ada", CODEC) is None
    with pytest.raises(VoiceError, match="no voice"):
        store.keep_codes("bob", CODEC, CODES)
    for wrong in ("", "../" + "a" * 29, "A" * 32):
        with pytest.raises(VoiceError, match="no identity"):
            store.keep_codes("ada", wrong, CODES)


def test_a_voice_brings_its_codes_and_takes_new_ones_back(store: VoiceStore) -> None:
    add(store)
    store.keep_codes("ada", CODEC, CODES)
    keeper = store.get("ada").keeper
    assert keeper is not None
    assert np.array_equal(np.asarray(keeper.codes(CODEC)), CODES)
    keeper.keep_codes("e" * 32, CODES + 1)
    assert np.array_equal(np.asarray(keeper.codes("e" * 32)), CODES + 1)
    store.settle()
    kept = VoiceStore(store._folder).codes("ada", "e" * 32)
    assert kept is not None and np.array_equal(kept, CODES + 1)
    assert store.get("ada").keeper is keeper


def test_codes_of_many_codecs_do_not_pile_up(store: VoiceStore) -> None:
    add(store)
    for i in range(MAX_CODECS + 2):
        store.keep_codes("ada", f"{i:032x}", CODES)
        os.utime(store._place("ada") / f"codes-{i:032x}.npy", ns=(i, i))
    kept = [i for i in range(MAX_CODECS + 2) if store.codes("ada", f"{i:032x}") is not None]
    assert kept == list(range(2, MAX_CODECS + 2))


def test_who_holds_a_voice_is_told_of_its_end(
    store: VoiceStore, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    consent = store.new_consent("Ada", "Yes.")
    add(store, "ada", consent)
    add(store, "bob")
    ada, bob = store.get("ada").keeper, store.get("bob").keeper
    assert ada is not None and bob is not None
    ada.keep_codes(CODEC, CODES)
    store.settle()
    ada.when_gone(lambda: told.append("ada"))
    bob.when_gone(lambda: told.append("bob"))
    store.remove_consent(consent.id)
    assert (told, ada.gone, bob.gone) == (["ada"], True, False)
    assert ada.codes(CODEC) is None
    ada.when_gone(lambda: told.append("late"))
    assert told == ["ada", "late"]
    ada.keep_codes(CODEC, CODES)  # from an engine that was about to
    store.settle()
    assert not [name for name in files(store) if "ada" in name]

    VoiceStore(store._folder).remove("bob")  # as another process would
    assert not bob.gone
    with caplog.at_level(logging.WARNING):
        bob.keep_codes(CODEC, CODES)
        store.settle()
    assert "not kept" in caplog.text and files(store) == []
    store.notice_removals()
    store.notice_removals()
    assert (told, bob.gone) == (["ada", "late", "bob"], True)


def test_another_voice_by_the_same_name_is_another_voice(store: VoiceStore) -> None:
    add(store)
    old = store.get("ada").keeper
    other = VoiceStore(store._folder)
    other.remove("ada")
    add(other)
    assert old is not None and not old.gone
    new = store.get("ada").keeper
    assert new is not old and old.gone
    assert new is not None and not new.gone


def test_a_folder_that_is_away_has_removed_nobody(store: VoiceStore) -> None:
    add(store)
    keeper = store.get("ada").keeper
    store._voices.rename(store._folder / "away")
    with pytest.raises(OSError):
        store.notice_removals()
    assert keeper is not None and not keeper.gone


def test_no_voice_has_a_name_that_windows_has_taken(store: VoiceStore) -> None:
    for name in ("con", "nul", "com1"):
        with pytest.raises(VoiceError, match="Windows"):
            add(store, name)


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
