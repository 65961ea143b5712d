"""The page as its user has it: in Chromium, with a microphone that plays a recording.

A picture of the page is kept in the folder that CHROMA_TEST_PICTURES names, or in the test's own.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from chroma_plugin.server.settings import ServerConfig
from tests.browser import chromium
from tests.fakes import FakeEngine
from tests.server.browsing import (
    ToneEngine,
    blameless,
    browsing,
    click,
    lines,
    listening,
    pictures,
    problem,
    question,
    sent,
    state,
    type_in,
)

BASE64_SECOND = 24000 * 2 * 4 / 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def test_a_spoken_conversation(tmp_path: Path) -> None:
    """A question, a long reply that is talked over, and one that is heard to its end."""
    chromium()
    engine = ToneEngine((440.0, 15), (660.0, 400), (880.0, 15))
    async with (
        listening(engine) as address,
        browsing(address, tmp_path, question()) as page,
    ):
        await click(page, "#call")
        first = await page.run("ears.until(() => ears.tone(440))")
        await page.run("ears.until(() => ears.tone(660))")
        await state(page, "speaking")
        await page.run(
            "ears.until(() => document.querySelector('#level-chroma i').style.transform"
            " !== 'scaleX(0.000)')"
        )
        await page.screenshot(pictures(tmp_path) / "page-speaking.png")
        third = await page.run("ears.until(() => ears.tone(880))")
        await state(page, "ready")
        await page.screenshot(pictures(tmp_path) / "page-done.png")

        # what was heard, and when
        began, ended = await page.run("ears.tone(660)")
        assert first[0] < began < ended < third[0]
        assert await page.run("ears.wanted.echoCancellation") is True
        starts = await page.run(
            "ears.got.filter((e) => e.type.endsWith('speech_started')).map((e) => e.at)"
        )
        interrupted = next(at for at in starts if at > began)
        assert ended - interrupted < 400, "it spoke on"  # about 40 if nobody is busy
        (cut,) = await sent(page, "conversation.item.truncate")
        assert cut["audio_end_ms"] == pytest.approx(ended - began, abs=250)
        assert await page.run("ears.appended") > 6 * BASE64_SECOND
        late_ms, off_ms = ended - interrupted, cut["audio_end_ms"] - (ended - began)
        print(f"silent {late_ms:.0f} ms after it was told; told {off_ms:+.0f} ms of what was heard")

        # what is shown
        user, bot = await lines(page, ".user"), await lines(page, ".bot")
        assert user[:3] == ["You: what was said"] * 3
        assert bot[0] == "Chroma: 440 Hz one two" and bot[2] == "Chroma: 880 Hz one two"
        assert bot[1].startswith("Chroma: 660 Hz one") and bot[1].endswith("(interrupted)")
        kept = len(bot[1].removesuffix("\u00a0— (interrupted)").split()) - 2
        assert kept == cut["audio_end_ms"] // 400 + 1
        assert await lines(page, ".cut") == [bot[1]]
        assert len(engine.conversations) == 1
        times = await page.run("document.querySelector('.bot .times').textContent")
        for part in ("turn's end is found", "first sound arrives", "reaches the loudspeaker"):
            assert part in times
        assert "server: " in times or "first word" in times
        assert "median of" in await page.run("document.querySelector('#summary').textContent")

        # mute, hang up
        await click(page, "#mute")
        await state(page, "muted")
        tracks = "ears.stream.getAudioTracks()[0]"
        assert await page.run(f"{tracks}.enabled") is False
        assert await page.run("document.querySelector('#mute').ariaPressed") == "true"
        await click(page, "#mute")
        assert await page.run(f"{tracks}.enabled") is True
        await click(page, "#call")
        await state(page, "off")
        assert await page.run(f"{tracks}.readyState") == "ended"
        assert await page.run("document.querySelector('#text').disabled") is True
        blameless(page, address)


async def test_typing_instead_of_speaking(tmp_path: Path) -> None:
    """The microphone is not allowed; what is typed is answered, and stops what is being said."""
    chromium()
    engine = ToneEngine((440.0, 200), (880.0, 10))
    async with listening(engine) as address, browsing(address, tmp_path) as page:
        await page.run("ears.refuse = 'NotAllowedError', 0")
        await click(page, "#call")
        await state(page, "ready")
        await problem(page, "The microphone was not allowed.")
        await type_in(page, "And <b>in</b> words?")
        await page.run("ears.until(() => ears.tone(440))")
        assert await lines(page, ".user") == ["You: And <b>in</b> words?"]
        await type_in(page, "Stop!")
        await page.run("ears.until(() => ears.tone(880))")
        await state(page, "ready")
        (cut,) = await sent(page, "conversation.item.truncate")
        began, ended = await page.run("ears.tone(440)")
        assert cut["audio_end_ms"] == pytest.approx(ended - began, abs=250)
        assert (await lines(page, ".bot"))[1] == "Chroma: 880 Hz one"
        await page.run("ears.context.suspend()")  # as a telephone does with what is not seen
        await page.run("document.dispatchEvent(new Event('visibilitychange'))")
        await page.run("ears.until(() => ears.context.state === 'running')")
        asked = [c for c in engine.conversations[0].calls if c[0] == "start_reply"]
        assert len(asked) == 2
        assert [e["type"] for e in await page.run("ears.got") if e["type"] == "error"] == []
        await click(page, "#call")
        await state(page, "off")
        blameless(page, address)


async def test_the_server_goes_away_and_comes_back(tmp_path: Path) -> None:
    """The page says so, tries again, and tells what was said before."""
    chromium()
    before, after = ToneEngine((440.0, 60)), ToneEngine((880.0, 5))
    async with AsyncExitStack() as first:
        address = await first.enter_async_context(listening(before))
        async with browsing(address, tmp_path) as page:
            await click(page, "#call")
            await state(page, "ready")
            await type_in(page, "My name is Ada.")
            await page.run("ears.until(() => ears.tone(440))")
            await first.aclose()
            await state(page, "lost")
            assert "Trying again" in await page.run("document.querySelector('#state').innerText")
            assert await page.run("document.querySelector('#text').disabled") is True
            await page.screenshot(pictures(tmp_path) / "page-lost.png")
            async with listening(after, port=int(address.rpartition(":")[2])):
                await state(page, "ready")
                assert (
                    await page.run("document.querySelector('#connection').innerText") == "Connected"
                )
                await type_in(page, "Who am I?")
                await page.run("ears.until(() => ears.tone(880))")
                history = after.opened[-1]["history"]
                assert [(m.role, m.text) for m in history if m.role == "user"] == [
                    ("user", "My name is Ada."),
                    ("user", "Who am I?"),
                ]
                assert (history[1].role, history[1].text[:6]) == ("assistant", "440 Hz")
                assert await lines(page, ".user") == ["You: My name is Ada.", "You: Who am I?"]
                await state(page, "ready")
                await click(page, "#call")
                await state(page, "off")
            assert page.complaints == []
            assert {text.partition(":")[0] for text in page.findings} <= {"network"}


async def test_a_connection_that_takes_nothing_is_given_up(tmp_path: Path) -> None:
    """Half open, it would never say that it is closed: what is said piles up, which tells."""
    chromium()
    async with listening(FakeEngine()) as address, browsing(address, tmp_path) as page:
        await click(page, "#call")
        await state(page, "ready")
        await page.run(
            "Object.defineProperty(WebSocket.prototype, 'bufferedAmount',"
            " {configurable: true, get: () => ears.sockets === 1 ? 1e6 : 0}) && 0"
        )
        await page.run("ears.until(() => ears.sockets === 2)")
        await state(page, "ready")
        await click(page, "#call")
        blameless(page, address)


async def test_a_call_waits_while_the_model_is_loaded(tmp_path: Path) -> None:
    chromium()
    engine, loaded = ToneEngine((440.0, 5)), asyncio.Event()
    start = engine.start

    async def load() -> None:
        await loaded.wait()
        await start()

    engine.start = load  # type: ignore[method-assign]
    async with listening(engine) as address, browsing(address, tmp_path) as page:
        await click(page, "#call")
        words = "document.querySelector('#state-words').innerText"
        await page.until(f"{words} === 'The server loads its model'")
        await click(page, "#call")  # one may give it up
        await state(page, "off")
        await click(page, "#call")
        await page.until(f"{words} === 'The server loads its model'")
        loaded.set()
        await state(page, "ready")
        await type_in(page, "Hello")
        await page.run("ears.until(() => ears.tone(440))")


async def test_a_call_that_nobody_uses_is_not_made_again(tmp_path: Path) -> None:
    """Without a microphone nothing is sent; the place is somebody else's then."""
    chromium()
    config = ServerConfig(idle_s=0.2)
    async with listening(FakeEngine(), config) as address, browsing(address, tmp_path) as page:
        await page.run("ears.refuse = 'NotFoundError', 0")
        await click(page, "#call")
        await problem(page, "Nothing came for 0.2 s")
        await state(page, "off")
        assert await page.run("ears.sockets") == 1


async def test_latency_is_told_in_parts(tmp_path: Path) -> None:
    chromium()
    async with listening(FakeEngine()) as address, browsing(address, tmp_path) as page:
        told = await page.run(
            """import('/page/latency.js').then(({Timing, StreamClock, median, milliseconds}) => {
                const spoken = new Timing(), typed = new Timing(), clock = new StreamClock();
                for (const at of [150, 190, 290, 310]) clock.sent(40, at);  // some came late
                const marks = {spoken: clock.timeOf(100), found: 700, created: 705, text: 820,
                               audio: 900, heard: 950, done: 1700};
                for (const [name, at] of Object.entries(marks)) spoken.mark(name, at);
                spoken.mark('audio', 990);  // the first one counts
                spoken.server = {ask_to_first_audio: 180.4, audio: 2400, other: 'x'};
                typed.mark('typed', 100);
                typed.mark('audio', 250);
                return [clock.timeOf(100), spoken.wait, spoken.parts, spoken.rest, typed.wait,
                        typed.parts, median([3, 1, 2]), median([1, 2, 3, 10]),
                        milliseconds(812.4), milliseconds(12345)];
            })"""
        )
    assert told[:2] == [210, 740]
    assert [ms for _, ms in told[2]] == [490, 200, 50]
    assert told[3] == [
        ["first word", 120],
        ["whole reply made", 995],
        ["server: ask to first audio", 180.4],
    ]
    assert (told[4], told[5]) == (None, [["the reply's first sound arrives", 150]])
    assert told[6:] == [2, 2.5, "812 ms", "12.3 s"]


async def test_a_transcript_shows_what_was_heard(tmp_path: Path) -> None:
    chromium()
    async with listening(FakeEngine()) as address, browsing(address, tmp_path) as page:
        shown = await page.run(
            """import('/page/transcript.js').then(({Transcript}) => {
                const log = document.createElement('div'), lines = new Transcript(log), seen = [];
                const look = () => seen.push([...log.querySelectorAll('.said, .coming')]
                    .map((part) => part.textContent));
                lines.reply('a');
                lines.replyText('a', 'one', 0);
                lines.replyText('a', ' two', 400);
                lines.replyText('a', ' three', 800);
                look();
                lines.played('a', 500);
                look();
                lines.cut('a', 600);
                lines.played('a', 900);  // told before the cut, and late
                lines.finished('a');
                look();
                lines.user('b', null);
                look();
                lines.userText('b', '<i>four</i>');
                look();
                lines.userText('none', 'nobody said that');
                lines.clear();
                look();
                return seen;
            })"""
        )
    cut = ["one two", "\u00a0\u2014 (interrupted)"]
    assert shown == [
        ["one", " two three"],
        ["one two", " three"],
        cut,
        [*cut, "(spoken)", ""],
        [*cut, "<i>four</i>", ""],
        [],
    ]


async def test_a_full_server_says_so(tmp_path: Path) -> None:
    chromium()
    config = ServerConfig(max_sessions=1)
    async with (
        listening(FakeEngine(), config) as address,
        connect(f"ws://{address}/v1/realtime"),
        browsing(address, tmp_path) as page,
    ):
        await click(page, "#call")
        await problem(page, "No room for another conversation")
        await state(page, "off")
        assert await page.run("document.querySelector('#call').innerText") == "Call"


async def test_the_real_engine_speaks(tmp_path: Path) -> None:
    """The smallest checkpoint, of random weights: what it speaks is noise, and is heard."""
    from chroma_plugin.config import EngineConfig
    from chroma_plugin.engine.engine import Engine
    from tests.miniature import MINIATURE

    chromium()
    config = EngineConfig(str(MINIATURE), "cpu", max_replies=2, max_reply_s=2.0)
    async with (
        listening(Engine(config)) as address,
        browsing(address, tmp_path, question()) as page,
    ):
        await click(page, "#call")  # it waits until the model is loaded
        await page.run("ears.until(() => ears.heard.some(([, , level]) => level > 0.001))")
        await page.until("document.querySelector('.bot .times')")
        await page.screenshot(pictures(tmp_path) / "page-real.png")
        assert (await lines(page, ".bot"))[0].startswith("Chroma: ")
        assert (await lines(page, ".user"))[0].startswith("You: ")
        assert page.complaints == []
        assert [f for f in page.findings if "503" not in f] == []  # while it was loading
