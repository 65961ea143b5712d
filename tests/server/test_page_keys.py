"""The page and who may use it: keys, and voices with their consents, in Chromium."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from chroma_plugin.audio import INPUT_RATE_HZ, resample
from chroma_plugin.server.settings import ApiKey, ServerConfig
from chroma_plugin.voice import Voice
from chroma_plugin.voice_store import VoiceStore
from tests.browser import Page, chromium
from tests.fakes import FakeEngine
from tests.server.browsing import (
    ToneEngine,
    blameless,
    browsing,
    click,
    fill,
    listening,
    pictures,
    problem,
    state,
    type_in,
)

KEY, TALK_KEY = "k" * 32, "t" * 32
KEYS = (ApiKey(KEY), ApiKey(TALK_KEY, ("talk",)))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def test_a_key_is_asked_for_and_kept_for_the_tab(tmp_path: Path) -> None:
    chromium()
    config = ServerConfig(api_keys=KEYS, voices=tmp_path / "voices")
    async with (
        listening(ToneEngine((440.0, 10)), config) as address,
        browsing(address, tmp_path) as page,
    ):
        await problem(page, "needs an API key")
        assert await page.run("document.querySelector('#key-box').open") is True
        for wrong, says in (("nonsense", "wrong"), ("two words", "no browser can send")):
            await fill(page, "#key", wrong)
            await page.run("document.querySelector('#key-form').requestSubmit()")
            await problem(page, says)
            await click(page, "#call")
            await state(page, "off")
            await problem(page, says)
        await fill(page, "#key", TALK_KEY)
        await page.run("document.querySelector('#key-form').requestSubmit()")
        await page.until("!document.querySelector('#key-box').open")
        await page.until("document.querySelector('#problem').hidden")
        await click(page, "#call")
        await state(page, "ready")
        assert await page.run("ears.protocols") == [
            "realtime",
            f"openai-insecure-api-key.{TALK_KEY}",
        ]
        assert not [url for url in page.requested if TALK_KEY in url]
        assert await page.run("[localStorage.length, document.cookie]") == [0, ""]
        await click(page, "#enrol")  # that key does not open voices
        await problem(page, "wrong, or does not open that", "#enrol-problem")
        assert await page.run("document.querySelector('#enrol-save').disabled") is True
        box = await page.run(
            "document.querySelector('#enrol-problem').getBoundingClientRect().toJSON()"
        )
        assert 0 < box["top"] < box["bottom"] < await page.run("innerHeight")  # it is seen
        await page.screenshot(pictures(tmp_path) / "page-refused.png")
        await click(page, "#enrol-cancel")
        await page.go(f"http://{address}/")  # the tab remembers it
        await page.until("document.querySelector('#call')?.disabled === false")
        await click(page, "#call")
        await state(page, "ready")
        assert page.complaints == []
        assert {finding.partition(":")[0] for finding in page.findings} == {"network"}  # the 401s


async def test_where_a_browser_gives_no_sound_it_says_so(tmp_path: Path) -> None:
    """A page without https from another machine."""
    chromium()
    config = ServerConfig(api_keys=KEYS)
    elsewhere = "--host-resolver-rules=MAP chroma.test 127.0.0.1"
    async with (
        listening(FakeEngine(), config) as address,
        browsing(address, tmp_path, flags=[elsewhere]) as page,
    ):
        await page.go(f"http://chroma.test:{address.rpartition(':')[2]}/")
        await problem(page, "needs an API key")
        await click(page, "#call")
        await problem(page, "pages from https, or from this machine, only")
        await state(page, "off")


async def test_a_voice_is_enrolled_with_consent_and_speaks(tmp_path: Path) -> None:
    """Refused with the check's words, mended, uploaded; another one recorded in the page."""
    chromium()
    voice, folder = Voice.default(), tmp_path / "voices"
    clip, short = tmp_path / "ada.flac", tmp_path / "short.wav"
    soundfile.write(clip, voice.samples, 24000)
    soundfile.write(short, voice.samples[:24000], 24000)
    engine = ToneEngine((440.0, 10))
    microphone = resample(voice.samples, 24000, INPUT_RATE_HZ)
    async with (
        listening(engine, ServerConfig(voices=folder)) as address,
        browsing(address, tmp_path, microphone) as page,
    ):
        store = VoiceStore(folder)
        await page.until("document.querySelector('#voice').value === 'default'")
        await click(page, "#call")
        await state(page, "ready")
        await click(page, "#enrol")
        assert await page.run("ears.stream.getAudioTracks()[0].enabled") is False
        await click(page, "#enrol-save")  # the browser says what is missing
        assert await page.run("document.querySelector('#enrolment form').checkValidity()") is False
        await fill(page, "#enrol-name", "ada")
        await fill(page, "#enrol-who", "Ada L.")
        await fill(page, "#enrol-words", voice.transcript)
        await click(page, "[name=agreed]")
        await click(page, "#enrol-save")
        await problem(page, "There is no clip yet", "#enrol-problem")

        await _upload(page, short)
        await click(page, "#enrol-save")
        await problem(page, "at least 3 s of speech are needed", "#enrol-problem")
        assert store.names() == [] and store.consents() == []  # nothing is left of it
        await page.screenshot(pictures(tmp_path) / "page-check.png")

        await _upload(page, clip)
        await click(page, "#enrol-save")
        await page.until("!document.querySelector('#enrolment').open")
        await page.until("document.querySelector('#voice').value === 'ada'")
        record = store.record("ada")
        assert (record.consent.who, record.transcript) == ("Ada L.", voice.transcript)
        assert "I agree that this server clones it" in record.consent.statement
        await page.run(
            "ears.until(() => ears.got.some((e) => e.session?.audio.output.voice === 'ada'))"
        )
        assert await page.run("ears.stream.getAudioTracks()[0].enabled") is True

        # recorded: the microphone plays the same clip again and again
        await click(page, "#enrol")
        await click(page, "#enrol-record")
        await page.until("parseFloat(document.querySelector('#enrol-time').textContent) > 4.5")
        await page.screenshot(pictures(tmp_path) / "page-recording.png")
        await click(page, "#enrol-record")
        await page.until("!document.querySelector('#enrol-preview').hidden")
        assert await page.run("ears.wanted.noiseSuppression") is False
        await fill(page, "#enrol-name", "eve")
        await fill(page, "#enrol-who", "Eve")
        await click(page, "#enrol-read")
        await fill(page, "#enrol-words", voice.transcript)
        await click(page, "[name=agreed]")
        await click(page, "#enrol-save")
        await page.until("document.querySelector('#voice').value === 'eve'")
        assert store.record("eve").seconds == pytest.approx(4.8, abs=0.8)
        assert np.abs(store.get("eve").samples).max() > 0.1

        # chosen by hand; one that is gone is said to be, and the voice before it stays
        await _choose(page, "ada")
        await page.run(
            "ears.until(() => ears.got.findLast((e) => e.session)"
            ".session.audio.output.voice === 'ada')"
        )
        now = await page.run("performance.now()")
        await type_in(page, "Who speaks?")
        await page.run(f"ears.until(() => ears.tone(440, {now}))")
        requests = [c[1] for c in engine.conversations[0].calls if c[0] == "start_reply"]
        assert requests[-1].voice.name == "ada"
        store.remove("eve")
        await _choose(page, "eve")
        await problem(page, "There is no voice 'eve'")
        await page.until("document.querySelector('#voice').value === 'ada'")
        (finding,) = page.findings
        assert "the server responded with a status of 4" in finding  # the clip that was refused
        page.findings.clear()
        blameless(page, address)


async def test_no_folder_of_voices(tmp_path: Path) -> None:
    chromium()
    async with listening(FakeEngine()) as address, browsing(address, tmp_path) as page:
        await click(page, "#enrol")
        await problem(page, "folder of voices", "#enrol-problem")
        assert await page.run("document.querySelector('#enrol-save').disabled") is True


async def _upload(page: Page, path: Path) -> None:
    """Chooses a file, as in the dialog for it."""
    root = (await page.send("DOM.getDocument"))["root"]["nodeId"]
    field = await page.send("DOM.querySelector", nodeId=root, selector="#enrol-file")
    await page.send("DOM.setFileInputFiles", nodeId=field["nodeId"], files=[str(path)])
    await page.until("!document.querySelector('#enrol-preview').hidden")


async def _choose(page: Page, voice: str) -> None:
    await page.run(
        f"(() => {{ const list = document.querySelector('#voice'); list.value = '{voice}';"
        " list.dispatchEvent(new Event('change')); })()"
    )
