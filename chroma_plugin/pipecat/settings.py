"""What can be set of `ChromaRealtimeLLMService`, at the start and live."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from loguru import logger
from pipecat.services.settings import LLMSettings
from pipecat.utils.types import NOT_GIVEN, NotGiven

from chroma_plugin.config import SamplingParams
from chroma_plugin.errors import ConfigError
from chroma_plugin.voice import Voice

_SAMPLING = tuple(each.name for each in fields(SamplingParams))
LIVE = frozenset({"system_instruction", "voice", "greeting", *_SAMPLING})
"""What `LLMUpdateSettingsFrame` can change."""
AT_START = LIVE | {"model", "max_reply_s"}
"""What the constructor takes."""


@dataclass
class ChromaRealtimeLLMSettings(LLMSettings):
    """Settings of `ChromaRealtimeLLMService`.

    Of `LLMSettings`, `system_instruction` (also called `instructions`), `temperature`, `top_k`,
    `top_p` and `seed` count, and `model` as the name in metrics; the others are refused.

    Parameters:
        repetition_penalty: see `SamplingParams`.
        voice: whose voice replies are spoken in; None, at the start, is the engine's own.
        greeting: spoken word for word when the first client connects; None says nothing.
        max_reply_s: the cap on the length of a reply; None leaves the engine's. Not changed live.
    """

    repetition_penalty: float | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    voice: Voice | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    greeting: str | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)
    max_reply_s: float | NotGiven | None = field(default_factory=lambda: NOT_GIVEN)

    _aliases: ClassVar[dict[str, str]] = {"instructions": "system_instruction"}


def complete(
    settings: ChromaRealtimeLLMSettings | None, voice: Voice | None
) -> ChromaRealtimeLLMSettings:
    """The settings of a new service: those given over the defaults.

    Raises:
        ConfigError: a setting is unknown, not supported or out of range.
    """
    stored = ChromaRealtimeLLMSettings(
        model="chroma",
        system_instruction=None,
        **{name: getattr(SamplingParams(), name) for name in _SAMPLING},
        max_tokens=None,
        frequency_penalty=None,
        presence_penalty=None,
        filter_incomplete_user_turns=False,
        user_turn_completion_config=None,
        use_provider_thinking_default=False,
        voice=voice,
        greeting=None,
        max_reply_s=None,
    )
    if settings is not None:
        if refused := sorted(settings.given_fields().keys() - AT_START):
            raise ConfigError(
                f"Settings not supported by Chroma: {', '.join(refused)}. Those that are: "
                f"{', '.join(sorted(AT_START))}."
            )
        stored.apply_update(settings)
    sampling(stored)
    return stored


def checked(
    stored: ChromaRealtimeLLMSettings, delta: LLMSettings, owner: str
) -> ChromaRealtimeLLMSettings | None:
    """What of an update is to be applied; the rest is refused with a warning that names it.

    Args:
        stored: the settings now.
        delta: the update.
        owner: whose they are, for the warning.

    Returns:
        The update; None if a value in it is wrong, which leaves all as it is.
    """
    given = delta.given_fields()
    if refused := sorted(given.keys() - LIVE):
        logger.warning(
            f"{owner}: settings that cannot be changed: {', '.join(refused)}; "
            f"those that can: {', '.join(sorted(LIVE))}"
        )
    wanted = ChromaRealtimeLLMSettings(**{name: given[name] for name in given.keys() & LIVE})
    try:
        sampling(stored, wanted)
    except ConfigError as error:
        logger.warning(f"{owner}: settings not changed: {error}")
        return None
    return wanted


def sampling(*settings: ChromaRealtimeLLMSettings) -> SamplingParams:
    """How codes are drawn by these settings, of which later ones count more.

    Raises:
        ConfigError: one of them is out of range, or voice or greeting of the wrong kind.
    """
    values: dict[str, Any] = {}
    for each in settings:
        values |= each.given_fields()
    if not isinstance(values.get("voice"), Voice | None):
        raise ConfigError(f"voice is {values['voice']!r}; use Voice.from_file(...).")
    if not isinstance(values.get("greeting"), str | None):
        raise ConfigError(f"greeting is {values['greeting']!r}; it must be text, or None.")
    return SamplingParams(**{k: values[k] for k in _SAMPLING if values.get(k) is not None})
