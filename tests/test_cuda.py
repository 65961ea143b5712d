"""What only a GPU can show. Everywhere else these tests are skipped; `.ci/gpu` runs them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import torch

from chroma_plugin.config import GREEDY, EngineConfig, SamplingParams
from chroma_plugin.engine.engine import Engine
from chroma_plugin.engine.graphs import DeviceMode, own_stream
from chroma_plugin.engine.parts import Parts, load_parts
from chroma_plugin.engine.runner import Runner
from chroma_plugin.model.weights import load_checkpoint
from chroma_plugin.reply import AudioChunk
from chroma_plugin.voice import Voice
from tests.golden import Golden, GoldenPrompt, assert_close, folders, load, mel

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
FRAMES = 24


def on_cuda(golden: Golden) -> Parts:
    model = load_checkpoint(golden.folder, "cuda", torch.float32)
    return Parts(model, GoldenPrompt(golden.pieces()), mel())


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: folder.name)
def test_the_plain_loop_agrees_with_the_golden_results(folder: Path) -> None:
    golden = load(folder)
    model, expected = on_cuda(golden).model, golden.expected
    voice = model.voice_prompt(golden.transcript, torch.tensor(golden.clip))
    made = model.generate_greedy(golden.embeds().cuda(), voice.embeds, golden.frames)
    assert torch.equal(made.codes[None].cpu(), expected["codes"])
    assert made.text_ids == expected["text_ids"].tolist()
    assert_close(made.backbone_logits.cpu(), expected["backbone_logits"][0], "backbone logits")
    audio = model.codec.decode(made.codes.T[None].cuda()).cpu()
    assert_close(audio, expected["audio"], "audio")


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "graphs_off"])
@pytest.mark.parametrize("folder", folders(), ids=lambda folder: folder.name)
def test_the_steps_agree_with_the_golden_results(folder: Path, graphs: bool) -> None:
    golden = load(folder)
    parts = on_cuda(golden)
    mode = DeviceMode.of(parts.model.device, graphs=graphs)
    with own_stream(parts.model.device):
        runner = Runner(parts.model, parts.prompt, golden.config(max_replies=2), mode)
        runner.capture()
        assert bool(len(runner.graphs)) == graphs
        voice = runner.prepare_voice(golden.voice())
        embeds = golden.embeds().cuda()
        for start in range(0, len(embeds), 256):
            hidden = runner.prefill(1, embeds[start : start + 256], start)
        runner.start(1, voice, 1, len(embeds), hidden, GREEDY, 0, None)
        results = [
            runner.step(2, think=i % 2 == 0, thinker_span=1024, span=1024)
            for i in range(golden.frames)
        ]
        results[-1].wait()
    assert runner.graphs.uncaptured == 0
    codes = torch.stack([result.codes[1] for result in results])
    assert torch.equal(codes, golden.expected["codes"][0])
    audio = torch.cat([result.audio[1] for result in results if result.audio is not None])
    assert_close(audio[None, None], golden.expected["audio"], "audio")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graphs_off_and_on_say_the_same(dtype: str) -> None:
    async def speak(graphs: bool) -> bytes:
        config = EngineConfig(
            device="cuda", dtype=dtype, cuda_graphs=graphs, max_replies=2,  # type: ignore[arg-type]
            thinker_positions=512, backbone_positions=512,
        )  # fmt: skip
        async with asyncio.timeout(90), Engine(config) as engine:
            session = await engine.open_session(
                voice=Voice.default(), sampling=SamplingParams(seed=3), max_reply_s=FRAMES * 0.08
            )
            events = [event async for event in session.say("Good morning.")]
            return b"".join(e.pcm for e in events if isinstance(e, AudioChunk))

    # no plugin of pytest: such machines have few packages
    spoken = [asyncio.run(speak(graphs)) for graphs in (True, False)]
    a, b = (torch.frombuffer(bytearray(pcm), dtype=torch.int16).int() for pcm in spoken)
    assert len(a) == len(b) > 0 and (a - b).abs().max() <= 8


def test_no_step_makes_the_host_wait() -> None:
    parts = load_parts(EngineConfig(device="cuda"))
    config = EngineConfig(max_replies=2, thinker_positions=512, backbone_positions=512)
    with own_stream(parts.model.device):
        runner = Runner(parts.model, parts.prompt, config)
        runner.capture()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for think in (True, False):
                result = runner.step(2, think=think, thinker_span=1, span=1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        result.wait()
    assert result.codes.shape == (2, 8)


def test_other_threads_may_use_the_device_while_steps_are_captured() -> None:
    parts = load_parts(EngineConfig(device="cuda"))
    config = EngineConfig(max_replies=1, thinker_positions=256, backbone_positions=512)
    done, failures = threading.Event(), []

    def compute() -> None:
        size = 1
        try:
            while not done.is_set():
                size = size % (1 << 22) + 4096  # new sizes take new memory
                torch.ones(size, device="cuda").sum().item()
        except RuntimeError as error:
            failures.append(error)

    other = threading.Thread(target=compute)
    other.start()
    try:
        with own_stream(parts.model.device):
            runner = Runner(parts.model, parts.prompt, config)
            runner.capture()
    finally:
        done.set()
        other.join()
    assert not failures and len(runner.graphs) > 0
