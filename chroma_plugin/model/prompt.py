"""Messages and voices as the model reads them: token ids by the checkpoint's own chat template, and
the layout of a voice prompt.

The template is not guessed: it is rendered once with marker texts and cut into the pieces that a
conversation is put together from. Nothing in a checkpoint is executed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    WhisperFeatureExtractor,
)

from chroma_plugin.errors import CheckpointError

_MARK = "MARKED TEXT"


class PromptFormat(Protocol):
    """How a conversation is spelt in token ids."""

    audio_before: list[int]  # opens a spoken user message
    audio_after: list[int]  # closes it
    reply_open: list[int]  # opens the assistant's message
    reply_close: list[int]  # closes it

    def system(self, text: str) -> list[int]:
        """A system message."""

    def user(self, text: str) -> list[int]:
        """A typed user message."""

    def encode(self, text: str) -> list[int]:
        """Plain text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""


class ChatPrompt:
    """The checkpoint's tokenizer and chat template, by transformers' own classes.

    Args:
        tokenizer: as read from the checkpoint.
        template: its chat template, if the tokenizer has none of its own.
        audio_token: the id that stands for audio in a rendered message.

    Raises:
        CheckpointError: there is no template, or it does not put messages one after another.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str | None, audio_token: int
    ) -> None:
        self._tokenizer, self._template = tokenizer, template
        system = {"role": "system", "content": _MARK}
        spoken = {"role": "user", "content": [{"type": "audio", "audio": "speech.wav"}]}
        typed = {"role": "user", "content": _MARK}
        reply = {"role": "assistant", "content": _MARK}
        base = self._render([system])
        self._system = self._around(base)
        self._user = self._around(self._added(base, [system, typed]))
        ids = self._markup(self._added(base, [system, spoken]))
        if ids.count(audio_token) != 1:
            raise CheckpointError(
                f"The chat template writes {ids.count(audio_token)} audio tokens (id "
                f"{audio_token}) for a spoken message instead of one; it is not Chroma's."
            )
        cut = ids.index(audio_token)
        self.audio_before, self.audio_after = ids[:cut], ids[cut + 1 :]
        asked = self._render([system, typed])
        opened = self._render([system, typed], add_generation_prompt=True)
        self.reply_open = self._markup(_after(asked, opened))
        answered = _after(opened, self._render([system, typed, reply]))
        self.reply_close = self._markup(self._around(answered)[1])

    @classmethod
    def from_checkpoint(cls, folder: Path, audio_token: int) -> ChatPrompt:
        """Reads tokenizer and chat template.

        Raises:
            CheckpointError: a file is missing or cannot be used.
        """
        try:
            # the generic class reads any tokenizer.json without asking the model's type
            whole = (folder / "tokenizer.json").is_file()
            kind = PreTrainedTokenizerFast if whole else AutoTokenizer
            tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises many kinds here
            raise CheckpointError(
                f"{folder}: the tokenizer cannot be read ({error}). The folder needs "
                "tokenizer.json and tokenizer_config.json of the checkpoint."
            ) from error
        return cls(tokenizer, _template_of(folder), audio_token)

    def system(self, text: str) -> list[int]:
        return self._message(self._system, text)

    def user(self, text: str) -> list[int]:
        return self._message(self._user, text)

    def encode(self, text: str) -> list[int]:
        """Plain text: what spells a special token in it is read as letters, so nobody can end a
        message or begin another one by typing."""
        return list(
            self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        )

    def _markup(self, text: str) -> list[int]:
        """What the template wrote: special tokens are what they spell."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _message(self, around: tuple[str, str], text: str) -> list[int]:
        return self._markup(around[0]) + self.encode(text) + self._markup(around[1])

    def decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _render(self, messages: list[dict[str, Any]], **options: Any) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, chat_template=self._template, tokenize=False, **options
                )
            )
        except Exception as error:  # a template may raise anything
            raise CheckpointError(f"The chat template cannot be used ({error}).") from error

    def _added(self, before: str, messages: list[dict[str, Any]]) -> str:
        return _after(before, self._render(messages))

    @staticmethod
    def _around(text: str) -> tuple[str, str]:
        before, mark, after = text.partition(_MARK)
        if not mark:
            raise CheckpointError("The chat template leaves out a message's text.")
        return before, after


def _after(before: str, whole: str) -> str:
    if not whole.startswith(before):
        raise CheckpointError("The chat template changes earlier messages when one is added.")
    return whole[len(before) :]


def _template_of(folder: Path) -> str | None:
    """The template, where it is not in the tokenizer's own files."""
    jinja, old = folder / "chat_template.jinja", folder / "chat_template.json"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    if old.is_file():
        try:
            return str(json.loads(old.read_text(encoding="utf-8"))["chat_template"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{old}: holds no chat template ({error!r}).") from error
    return None


def feature_extractor(folder: Path) -> WhisperFeatureExtractor:
    """The checkpoint's mel features.

    Raises:
        CheckpointError: preprocessor_config.json is missing or of another kind.
    """
    try:
        return WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds here
        raise CheckpointError(
            f"{folder}: preprocessor_config.json cannot be read as Whisper features ({error})."
        ) from error


class TextStream:
    """Text of a growing row of ids, given out only when its characters are whole."""

    def __init__(self, prompt: PromptFormat) -> None:
        self._prompt = prompt
        self._ids: list[int] = []
        self._from = 0  # ids before this are said and no longer needed as context
        self._said = 0

    def push(self, token: int) -> tuple[str, int]:
        """The text that a token completes, and the tokens it stands for; ("", 0) while a
        character is still in pieces, or for a token that says nothing: the next text counts it."""
        self._ids.append(token)
        before = self._prompt.decode(self._ids[self._from : self._said])
        text = self._prompt.decode(self._ids[self._from :])[len(before) :]
        if not text or text.endswith("\ufffd"):
            return "", 0
        tokens = len(self._ids) - self._said
        self._from, self._said = self._said, len(self._ids)
        return text, tokens


@dataclass(frozen=True, slots=True)
class VoicePrompt:
    """What the model makes of a voice: computed once, used by every turn.

    Attributes:
        codes: the clip's codes, int64 `[K, P]`.
        embeds: the backbone's input before every reply, `[positions, hidden]`.
    """

    codes: Tensor
    embeds: Tensor


def lay_out_voice(transcript: Tensor, frames: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """The backbone's input for a voice.

    Args:
        transcript: embeddings of the transcript's tokens, `[T, hidden]`.
        frames: embeddings of the clip's frames, `[P, hidden]`.
        start: embedding of text_start, `[hidden]`.
        end: embedding of text_end, `[hidden]`.

    Returns:
        `[T + P + 3, hidden]`: start, transcript, end, frames and one vector of zeros.
    """
    zero = torch.zeros_like(start)
    return torch.cat([start[None], transcript, end[None], frames, zero[None]])
