"""The page for everybody: names, contrast in both schemes, a phone, the keyboard; in Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest

from chroma_plugin.server.settings import ServerConfig
from tests.browser import Page, chromium
from tests.server.browsing import (
    ToneEngine,
    blameless,
    browsing,
    click,
    listening,
    pictures,
    state,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


CONTRAST = """
(() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => channels(color).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if ((channels(color)[3] ?? 1) === 1) return color;
    }
    return getComputedStyle(document.body).backgroundColor;
  };
  const pale = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!element.checkVisibility() || element.disabled) continue;
    if (!own && !element.matches("input, textarea, select")) continue;
    const [a, b] = [getComputedStyle(element).color, ground(element)].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) pale.push(`${element.tagName} ${element.id} ${ratio.toFixed(2)}`);
  }
  return pale;
})()
"""


async def test_it_can_be_read_and_worked_by_everybody(tmp_path: Path) -> None:
    """Names, contrast in both schemes, a phone's width, the keyboard alone, no motion."""
    chromium()
    engine = ToneEngine((440.0, 10))
    async with (
        listening(engine, ServerConfig(voices=tmp_path / "voices")) as address,
        browsing(address, tmp_path) as page,
    ):
        # by keyboard alone: the first stop is the button that calls
        await _press(page, "Tab")
        assert await page.run("document.activeElement.id") == "call"
        await _press(page, "Enter")
        await state(page, "ready")
        await page.run("document.querySelector('#text').focus()")
        await page.send("Input.insertText", text="Good evening, what can you tell me?")
        await _press(page, "Enter")
        await page.run("ears.until(() => ears.tone(440))")
        await state(page, "ready")
        await page.run("document.querySelector('.times').open = true")
        await page.send(
            "Emulation.setDeviceMetricsOverride",
            width=360, height=740, deviceScaleFactor=2, mobile=True,
        )  # fmt: skip
        await page.screenshot(pictures(tmp_path) / "page-phone-call.png")
        await page.run("document.querySelector('#key-box').open = true")
        await page.run("document.querySelector('#problem').hidden = false")
        await page.run("document.querySelector('#problem').innerText = 'The server said why.'")
        for width, height, where in ((900, 800, "wide"), (360, 740, "phone")):
            for scheme in ("light", "dark"):
                await page.send(
                    "Emulation.setDeviceMetricsOverride",
                    width=width, height=height, deviceScaleFactor=1, mobile=where == "phone",
                )  # fmt: skip
                await page.send(
                    "Emulation.setEmulatedMedia",
                    features=[
                        {"name": "prefers-color-scheme", "value": scheme},
                        {"name": "prefers-reduced-motion", "value": "reduce"},
                    ],
                )
                assert await page.run(CONTRAST) == []
                await page.screenshot(pictures(tmp_path) / f"page-{where}-{scheme}.png")
                assert await page.run("document.documentElement.scrollWidth") <= width
                moving = "document.getAnimations().filter((a) => a.playState === 'running').length"
                assert await page.run(moving) == 0
                await click(page, "#enrol")
                assert await page.run(CONTRAST) == []
                assert await page.run("document.querySelector('#enrolment').scrollWidth") <= width
                await page.screenshot(pictures(tmp_path) / f"page-voice-{where}-{scheme}.png")
                await _press(page, "Escape")
                await page.until("!document.querySelector('#enrolment').open")
        small = (
            "[...document.querySelectorAll('button, select, #text')]"
            ".filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 24)"
        )
        assert await page.run(f"{small}.map((e) => e.id)") == []

        await click(page, "#enrol")
        await page.send("Accessibility.enable")
        tree = (await page.send("Accessibility.getFullAXTree"))["nodes"]
        roles = {"button", "textbox", "combobox", "checkbox", "dialog", "group", "log"}
        named = [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in tree
            if not node.get("ignored") and node["role"]["value"] in roles
        ]
        assert len(named) > 10 and all(name for _, name in named), named
        blameless(page, address)


async def _press(page: Page, key: str) -> None:
    codes = {"Tab": 9, "Enter": 13, "Escape": 27}
    pressed = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
    text = {"text": "\r"} if key == "Enter" else {}
    await page.send("Input.dispatchKeyEvent", type="keyDown", **pressed, **text)
    await page.send("Input.dispatchKeyEvent", type="keyUp", **pressed)
