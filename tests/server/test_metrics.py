"""The figures, each against what was done: by a scripted engine, and by the real one."""

from __future__ import annotations

import re

import pytest

from chroma_plugin.config import EngineConfig
from chroma_plugin.errors import EngineBusy
from chroma_plugin.server.metrics import BYTES, ENGINE, Metrics
from chroma_plugin.server.pool import Pool
from tests.fakes import FakeEngine
from tests.server.client import Client, connected
from tests.server.scripted import Clock, Page, ScriptedEngine, Stats


async def test_a_conversation_in_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A greeting, a turn, one that is talked over, one that fails: with times that are known."""
    clock, engine = Clock(monkeypatch), ScriptedEngine(monkeypatch)
    metrics = Metrics()
    async with connected(engine, observe=metrics.observe) as client:
        await client.send("response.create")
        clock.go(0.25)
        engine.speak(2)
        await client.until("response.output_audio.delta", 2)
        engine.end(2)
        await client.until("response.done")

        await client.say(0.512)
        await client.say(0.6, loud=False)
        await client.until("response.created", 2)
        clock.go(0.5)
        engine.speak(3)
        await client.until("response.output_audio.delta", 5)
        await client.say(0.3)  # and so it is stopped
        await client.until("response.done", 2)

        await client.send("response.create")
        engine.tell(EngineBusy("no row"))
        await client.until("response.done", 3)

        await client.send("response.create")
        engine.speak(1)
        await client.until("response.output_audio.delta", 6)
        await client.send("response.cancel")
        await client.until("response.done", 4)
    page = Page(metrics.page())
    statuses = {"completed": 1, "cancelled": 2, "failed": 1}
    for status, count in statuses.items():
        assert page("chroma_responses_total", status=status) == count, status
    assert page("chroma_interruptions_total", by="server") == 1
    assert page("chroma_interruptions_total", by="client") == 1
    assert page("chroma_time_to_first_audio_seconds_count") == 3
    assert page("chroma_time_to_first_audio_seconds_sum") == 0.75
    assert page("chroma_speech_end_to_first_audio_seconds_count") == 1
    assert page("chroma_speech_end_to_first_audio_seconds_sum") == pytest.approx(0.5 + 0.512)
    assert page("chroma_spoken_seconds_total") == pytest.approx(0.08 * 6)
    heard_s = page("chroma_heard_seconds_total")
    assert heard_s is not None and 1.0 < heard_s < 1.3  # 1.024 s, and the padding that there was
    for part, seconds in {"queued": 0.12, "voice": 0.02, "prefill": 0.06}.items():
        assert page("chroma_reply_wait_seconds_sum", part=part) == pytest.approx(seconds)
        assert page("chroma_reply_wait_seconds_count", part=part) == 1
    assert page("chroma_rtf_count") == 1
    assert page("chroma_rtf_sum") == pytest.approx(128 / 160)


async def test_what_the_engine_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(monkeypatch)
    pool = Pool(engine, 9)
    await pool.start()
    assert pool.take()
    page = Page(Metrics(pool.as_dict, lambda: 12e9, "1.2.3").page())
    assert page("chroma_slots") == 9
    assert page("chroma_slots_taken") == 1
    assert page("chroma_ready") == 1
    stats = Stats()
    for field, name, kind, _ in ENGINE:
        suffix = "_total" if kind == "counter" else ""
        assert page(name + suffix) == getattr(stats, field), name
    for field, of in BYTES.items():
        assert page("chroma_engine_bytes", of=of) == getattr(stats, field)
    steps = "chroma_frame_step_seconds"
    assert page.counts(steps) == [2, 5, 1]
    assert (page(f"{steps}_count"), page(f"{steps}_sum")) == (8, 0.5)
    assert page("chroma_step_part_seconds_total", part="thinker") == 0.2
    assert page("chroma_gpu_memory_bytes") == 12e9
    assert page("chroma_build_info", version="1.2.3") == 1
    await engine.close()


async def test_an_engine_that_says_nothing_leaves_its_figures_out() -> None:
    pool = Pool(FakeEngine(), 4)
    page = Page(Metrics(pool.as_dict).page())
    assert page("chroma_ready") == 0  # it was not started
    assert page("chroma_slots") == 4
    names = {family.name for family in page.families}
    assert not names & {name for _, name, _, _ in ENGINE}
    assert "chroma_frame_step_seconds" not in names
    assert "chroma_gpu_memory_bytes" not in names


def test_steps_are_counted_around_a_frame() -> None:
    from chroma_plugin.engine.clock import STEP_BOUNDS_S

    assert 0.08 in STEP_BOUNDS_S
    assert sum(0.04 <= bound <= 0.12 for bound in STEP_BOUNDS_S) >= 6


async def test_labels_take_few_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a client sends becomes a label: ids, names and words would be without end."""
    engine = ScriptedEngine(monkeypatch)
    metrics = Metrics(Pool(engine, 1).as_dict)
    async with connected(engine, observe=metrics.observe) as client:
        await client.send(
            "response.create", response={"metadata": {"who": "me"}, "instructions": "Be brief."}
        )
        engine.speak(1)
        await client.until("response.output_audio.delta")
        engine.end(1)
        await client.until("response.done")
    page = Page(metrics.page())
    labels = {name for sample in page.samples for name in sample.labels}
    assert labels <= {
        "le",
        "reason",
        "status",
        "by",
        "ended_by",
        "of",
        "part",
        "route",
        "method",
        "version",
    }
    values = {value for sample in page.samples for value in sample.labels.values()}
    assert not [value for value in values if re.search(r"resp_|sess_|item_", value)]


async def test_the_real_engine_and_its_figures_agree() -> None:
    from chroma_plugin.engine.engine import Engine
    from tests.miniature import MINIATURE

    engine = Engine(EngineConfig(str(MINIATURE), "cpu", max_replies=2))
    pool = Pool(engine, 3)
    await pool.start()
    metrics = Metrics(pool.as_dict)
    before = engine.stats.steps
    assert sum(before.counts) == 0  # warming up is nobody's frame
    client = Client(engine, observe=metrics.observe, max_reply_s=0.8)  # type: ignore[arg-type]
    await client.realtime.start()
    await client.manual()
    for turn in (1, 2):
        await client.say(0.4)
        await client.send("input_audio_buffer.commit")
        await client.send("response.create")
        await client.until("response.done", turn)
    stats = engine.stats
    page = Page(metrics.page())
    heard = sum(len(client.audio(turn)) for turn in (0, 1)) / 48000
    assert heard > 0
    assert page("chroma_spoken_seconds_total") == pytest.approx(heard)
    assert page("chroma_heard_seconds_total") == pytest.approx(0.8, abs=0.02)
    assert page("chroma_time_to_first_audio_seconds_count") == 2
    assert page("chroma_rtf_count") == 2
    frames = sum(e["chroma"]["done"]["frames"] for e in client.of("response.done"))
    steps = page("chroma_frame_step_seconds_count")
    assert steps is not None and frames <= steps <= frames + 2  # the end of speech is a step, too
    assert (steps, page("chroma_frame_step_seconds_sum")) == (
        sum(stats.steps.counts),
        stats.steps.seconds,
    )
    for part in ("thinker", "backbone", "depth", "codec"):
        assert page("chroma_step_part_seconds_total", part=part) == stats.steps.parts_s[part] > 0
    assert (page("chroma_rows_free"), page("chroma_rows_taken")) == (2, 0)
    assert page("chroma_engine_bytes", of="thinker_cache") == stats.thinker_cache_bytes
    assert page("chroma_underruns_total") == stats.underruns
    await client.realtime.aclose()
    await engine.close()
    assert Page(metrics.page())("chroma_rows_free") is None  # and the page is still there
