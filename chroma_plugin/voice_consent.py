"""The record of a consent, without which nobody's voice is used."""

from __future__ import annotations

from dataclasses import dataclass

from chroma_plugin.errors import VoiceError

MAX_STATEMENT = 4_000
"""Characters of what somebody agreed to."""
MAX_WHO = 200


@dataclass(frozen=True, slots=True)
class Consent:
    """That a voice's owner agreed to its use.

    Attributes:
        who: whose voice it is.
        statement: what they agreed to, in their words.
        when: seconds since 1970, when it was recorded here.
        id: the name of the record.
        language: of the statement, as a BCP 47 tag, or "".
        recording_sha256: of the recording in which it was said, or "".
    """

    who: str
    statement: str
    when: float
    id: str
    language: str = ""
    recording_sha256: str = ""


def check_consent(consent: Consent) -> None:
    """Refuses a record that is none.

    Raises:
        VoiceError: it does not say who agreed, or to what.
    """
    if not consent.who.strip() or not consent.statement.strip():
        raise VoiceError(
            "A voice needs the consent of its owner: who agreed, and to what, in their words."
        )
    if len(consent.who) > MAX_WHO or len(consent.statement) > MAX_STATEMENT:
        raise VoiceError(f"A consent's statement has at most {MAX_STATEMENT} characters.")
