"""Voices by their names, and those that another process deletes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from chroma_plugin.server.voicing import Voicing
from chroma_plugin.voice import Voice
from chroma_plugin.voice_clip import as_flac
from chroma_plugin.voice_store import VoiceStore
from tests.server.client import WAIT_S

CLIP = Voice.default()


async def test_a_voice_that_another_process_deletes_is_gone_here(tmp_path: Path) -> None:
    elsewhere = VoiceStore(tmp_path)
    consent = elsewhere.new_consent("Ada", "Yes.")
    await asyncio.to_thread(elsewhere.add, "ada", as_flac(CLIP.samples), CLIP.transcript, consent)
    voicing = Voicing(VoiceStore(tmp_path))
    voice = await voicing.find("ada", "voice")
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    assert voice.keeper is not None and not voice.keeper.gone
    voice.keeper.when_gone(lambda: loop.call_soon_threadsafe(gone.set))
    following = asyncio.create_task(voicing.follow_removals(every_s=0.001))
    try:
        async with asyncio.timeout(WAIT_S):
            elsewhere.remove("ada")
            await gone.wait()
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
    assert voice.keeper.gone


async def test_without_a_folder_there_is_nothing_to_follow() -> None:
    async with asyncio.timeout(WAIT_S):
        await Voicing(None).follow_removals(every_s=0.0)
