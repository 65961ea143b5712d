"""The step over rows: equal to the plain loop, blind to neighbours, no word from the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from chroma_plugin.config import GREEDY, EngineConfig, SamplingParams
from chroma_plugin.engine.graphs import DeviceMode
from chroma_plugin.engine.parts import Parts, load_parts
from chroma_plugin.engine.runner import PIECE_POSITIONS, ReadyVoice, Runner
from chroma_plugin.voice import Voice
from tests.host_reads import NoHostReads
from tests.miniature import MINIATURE
from tests.recorded import GPU_LIKE, GRAPHS_OFF

SEEDED = SamplingParams(temperature=0.8, top_k=30, top_p=0.95)
FRAMES = 14


@pytest.fixture(scope="module")
def parts() -> Parts:
    return load_parts(EngineConfig(model=MINIATURE))


MODES = {"as_it_is": DeviceMode(), "graphs": GPU_LIKE, "graphs_off": GRAPHS_OFF}


@pytest.fixture(params=MODES.values(), ids=MODES.keys())
def runner(parts: Parts, request: pytest.FixtureRequest) -> Iterator[Runner]:
    config = EngineConfig(
        max_replies=4, thinker_rows=6, thinker_positions=256, backbone_positions=512
    )
    runner = Runner(parts.model, parts.prompt, config, request.param)
    runner.capture()
    assert bool(len(runner.graphs)) == (request.param is GPU_LIKE)
    yield runner
    assert not runner.graphs.uncaptured, "a step was run in a shape that was not captured"


@pytest.fixture
def voice(runner: Runner) -> ReadyVoice:
    return runner.prepare_voice(Voice.default())


class Speaker:
    """Drives one row as the worker does, and writes down what it makes."""

    def __init__(
        self,
        runner: Runner,
        voice: ReadyVoice,
        row: int,
        seed: int,
        *,
        thinker_row: int | None = None,
        sampling: SamplingParams = SEEDED,
        say: list[int] | None = None,
    ) -> None:
        self.row, self.codes, self.tokens, self.audio = row, [], [], []
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(256, (20 + seed,), generator=generator).tolist()
        thinker_row = row if thinker_row is None else thinker_row
        self.embeds = runner.model.embed_tokens(ids)
        hidden = runner.prefill(thinker_row, self.embeds, 0)
        runner.start(row, voice, thinker_row, len(ids), hidden, sampling, seed, say)

    def take(self, result: Any, *, pair: bool) -> None:
        self.codes.append(result.codes[self.row])
        self.audio.append(result.audio[self.row])
        if pair:
            self.tokens.append(int(result.tokens[self.row]))


def run(
    runner: Runner, speakers: list[Speaker], frames: int, *, batch: int, first: int = 0
) -> None:
    for i in range(first, first + frames):
        result = runner.step(batch, think=i % 2 == 0, thinker_span=256, span=512)
        for speaker in speakers:
            speaker.take(result, pair=i % 2 == 0)


def assert_equal(one: Speaker, other: Speaker) -> None:
    assert torch.equal(torch.stack(one.codes), torch.stack(other.codes))
    assert one.tokens == other.tokens
    a, b = torch.cat(one.audio), torch.cat(other.audio)
    assert (a - b).abs().max() < 1e-5 * a.abs().max()


def test_a_greedy_row_equals_the_plain_loop(runner: Runner, voice: ReadyVoice) -> None:
    speaker = Speaker(runner, voice, 0, 3, sampling=GREEDY)
    run(runner, [speaker], FRAMES, batch=1)
    plain = runner.model.generate_greedy(speaker.embeds, voice.prompt.embeds, FRAMES)
    assert torch.equal(torch.stack(speaker.codes), plain.codes)
    assert speaker.tokens[: len(plain.text_ids)] == plain.text_ids


def test_given_text_equals_the_plain_loop(runner: Runner, voice: ReadyVoice) -> None:
    say = [5, 77, 200]
    speaker = Speaker(runner, voice, 0, 3, sampling=GREEDY, say=say)
    run(runner, [speaker], FRAMES, batch=1)
    plain = runner.model.generate_greedy(speaker.embeds, voice.prompt.embeds, FRAMES, say=say)
    assert torch.equal(torch.stack(speaker.codes), plain.codes)
    assert speaker.tokens[:4] == plain.text_ids == [*say, runner.model.config.im_end]


def test_rows_of_a_batch_equal_each_alone(runner: Runner, voice: ReadyVoice) -> None:
    alone = []
    for seed in (1, 2, 3):
        speaker = Speaker(runner, voice, 0, seed)
        run(runner, [speaker], FRAMES, batch=1)
        runner.stop(0)
        alone.append(speaker)
    together = [Speaker(runner, voice, row, seed) for row, seed in ((2, 1), (0, 2), (1, 3))]
    run(runner, together, FRAMES, batch=4)
    for one, other in zip(alone, together, strict=True):
        assert_equal(one, other)


def test_a_greedy_row_is_the_same_beside_one_that_draws(runner: Runner, voice: ReadyVoice) -> None:
    alone = Speaker(runner, voice, 0, 1, sampling=GREEDY)
    run(runner, [alone], FRAMES, batch=1)
    runner.stop(0)
    beside, drawing = Speaker(runner, voice, 0, 1, sampling=GREEDY), Speaker(runner, voice, 1, 2)
    run(runner, [beside, drawing], FRAMES, batch=2)
    assert_equal(alone, beside)


def test_joining_late_and_leaving_early_disturbs_nobody(runner: Runner, voice: ReadyVoice) -> None:
    alone = Speaker(runner, voice, 0, 1)
    run(runner, [alone], FRAMES, batch=1)
    late_alone = Speaker(runner, voice, 0, 2)
    run(runner, [late_alone], FRAMES - 6, batch=1)
    runner.stop(0)

    steady, leaving = Speaker(runner, voice, 3, 1), Speaker(runner, voice, 1, 5)
    run(runner, [steady, leaving], 6, batch=4)
    runner.stop(1)
    late = Speaker(runner, voice, 1, 2, thinker_row=5)  # on the row that was left
    run(runner, [steady, late], FRAMES - 6, batch=4, first=6)
    assert_equal(alone, steady)
    assert_equal(late_alone, late)


def test_a_cached_voice_equals_a_new_one(runner: Runner, voice: ReadyVoice) -> None:
    again = runner.prepare_voice(Voice.default())
    assert torch.equal(voice.prompt.codes, again.prompt.codes)
    one = Speaker(runner, voice, 0, 1)
    run(runner, [one], FRAMES, batch=1)
    other = Speaker(runner, again, 0, 1)
    run(runner, [other], FRAMES, batch=1)
    assert_equal(one, other)
    assert voice.nbytes > 0


def test_no_step_reads_from_the_device(runner: Runner, voice: ReadyVoice) -> None:
    """Every step function runs on the device alone; `step` itself copies its results once."""
    Speaker(runner, voice, 0, 1)
    with torch.inference_mode(), NoHostReads():
        runner.think(2, 256)
        runner.read_inputs(2, 512, True)
        codes = runner.pick_frame(2, 0)
        runner.decode(2, 1)
        runner.make_frame(2, 512, False, runner.mode.codec_frames - 1)
        runner.decode(2, runner.mode.codec_frames)
        runner.read(PIECE_POSITIONS, 256)
        runner.tower.hear()
    with pytest.raises(AssertionError, match="reads back"), NoHostReads():
        int(codes[0, 0])


def test_a_reply_begins_and_ends_without_waiting(runner: Runner, voice: ReadyVoice) -> None:
    """A step is under way while rows are given and taken back."""
    speaker = Speaker(runner, voice, 0, 1)
    with NoHostReads():
        hidden = runner.prefill(1, speaker.embeds, 0)
        runner.start(1, voice, 1, len(speaker.embeds), hidden, SEEDED, 3, None)
        runner.stop(0)
    assert runner.rows.active.tolist() == [False, True, False, False]
    with pytest.raises(AssertionError, match="number of the host"), NoHostReads():
        runner.rows.active[0] = True


def test_a_guarded_row_wanders_and_is_the_same_beside_others(
    runner: Runner, voice: ReadyVoice
) -> None:
    guarded = SamplingParams(temperature=0.0, top_k=0, repetition_penalty=2.0)
    plain = Speaker(runner, voice, 0, 1, sampling=GREEDY)
    run(runner, [plain], 2 * FRAMES, batch=1)
    runner.stop(0)
    alone = Speaker(runner, voice, 0, 1, sampling=guarded)
    run(runner, [alone], 2 * FRAMES, batch=1)
    runner.stop(0)
    used = [len({int(codes[0]) for codes in speaker.codes}) for speaker in (plain, alone)]
    assert used[1] > used[0]

    beside = Speaker(runner, voice, 2, 1, sampling=guarded)
    others = [Speaker(runner, voice, 0, 5), Speaker(runner, voice, 1, 6, sampling=GREEDY)]
    run(runner, [*others, beside], 2 * FRAMES, batch=4)
    assert_equal(alone, beside)
