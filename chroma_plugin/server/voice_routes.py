"""`/v1/audio/voices` and `/v1/audio/voice_consents`: voices of the folder, and who agreed.

400 is a request that is not as described, 404 an id that is not known, 409 a name that is taken,
422 a name, a clip or a consent that was understood and cannot be used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Query, UploadFile

from chroma_plugin.errors import VoiceError
from chroma_plugin.server import bodies
from chroma_plugin.server.access import Refusal, needs
from chroma_plugin.server.settings import ServerConfig
from chroma_plugin.voice_consent import MAX_STATEMENT, MAX_WHO
from chroma_plugin.voice_store import VoiceStore

Name = Annotated[str, Form(min_length=1, max_length=64, pattern="^[a-z0-9][a-z0-9_-]*$")]
Said = Annotated[str, Form(max_length=4000, description="What is said in the clip.")]
_TRANSCRIPT_OR_REF_TEXT: dict[str, Any] = {
    "requestBody": {
        "content": {
            "multipart/form-data": {
                "schema": {"anyOf": [{"required": [name]} for name in ("transcript", "ref_text")]}
            }
        }
    }
}


def routes(
    config: ServerConfig, store: VoiceStore | None, refused: dict[int | str, dict[str, Any]]
) -> APIRouter:
    """The routes, on a folder of voices; without one there is the packaged voice only."""
    router = APIRouter(tags=["voices"])
    listens, enrols = needs(config, "talk"), needs(config, "voices")
    decoding = asyncio.Semaphore(2)
    here: dict[int | str, dict[str, Any]] = refused | {
        501: {"model": bodies.Error, "description": "This server has no folder of voices."},
    }
    known = here | {404: {"model": bodies.Error, "description": "There is none of that id."}}
    unusable = here | {
        422: {"model": bodies.Error, "description": "It cannot be used; says why."},
        503: {"model": bodies.Error, "description": "Too many uploads at once; try again later."},
    }
    taken: dict[int | str, dict[str, Any]] = {
        409: {"model": bodies.Error, "description": "There is a voice of that name."}
    }

    def folder() -> VoiceStore:
        if store is None:
            raise Refusal(
                501, "no_voice_folder", "Start the server with a folder of voices: --voices FOLDER."
            )
        return store

    @router.get("/v1/audio/voices", dependencies=listens, responses=refused)
    async def voices() -> bodies.Voices:
        """All voices, the packaged one first."""
        records = [] if store is None else await asyncio.to_thread(store.records)
        data = [bodies.VoiceBody.of(record) for record in records]
        return bodies.Voices(voices=["default", *(voice.name for voice in data)], data=data)

    @router.post(
        "/v1/audio/voices",
        dependencies=enrols,
        responses=known | unusable | taken,
        openapi_extra=_TRANSCRIPT_OR_REF_TEXT,
    )
    async def add_voice(
        name: Name,
        consent: Annotated[str, Form(min_length=1, max_length=64)],
        audio_sample: Annotated[UploadFile, File()],
        transcript: Said = "",
        ref_text: Said = "",
    ) -> bodies.VoiceBody:
        """Enrols a voice: a clip of 3 to 30 s, what is said in it (`transcript`, or `ref_text`),
        and the id of a consent."""
        said = transcript or ref_text
        if not said.strip():
            raise Refusal(422, "transcript_required", "The transcript is missing.", "transcript")
        there = folder()
        with _refusing(404, "consent_required", "consent"):
            agreed = await asyncio.to_thread(there.consent, consent)
        if name in await asyncio.to_thread(there.names):
            raise Refusal(409, "voice_exists", f"There is a voice {name!r}: delete it first.")
        async with decoding:
            clip = await audio_sample.read()
            with _refusing(422, "voice_refused"):
                record = await asyncio.to_thread(there.add, name, clip, said, agreed)
        return bodies.VoiceBody.of(record)

    @router.delete("/v1/audio/voices/{voice}", dependencies=enrols, responses=known)
    async def delete_voice(voice: str) -> bodies.Deleted:
        """Deletes a voice, its clip and all that was made of it."""
        with _refusing(404, "voice_not_found", "voice"):
            await asyncio.to_thread(folder().remove, voice)
        return bodies.Deleted(id=voice, object="audio.voice.deleted")

    @router.get("/v1/audio/voice_consents", dependencies=enrols, responses=here)
    async def consents(
        after: Annotated[str, Query(max_length=64, description="The last id that is known.")] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> bodies.Consents:
        """Consents, the oldest first, so many at a time."""
        found = await asyncio.to_thread(folder().consents)
        ids = [consent.id for consent in found]
        rest = found[ids.index(after) + 1 :] if after in ids else found
        return bodies.Consents.of(rest[:limit], has_more=len(rest) > limit)

    @router.get("/v1/audio/voice_consents/{consent}", dependencies=enrols, responses=known)
    async def consent_of(consent: str) -> bodies.ConsentBody:
        """One consent."""
        with _refusing(404, "consent_not_found", "consent"):
            found = await asyncio.to_thread(folder().consent, consent)
        return bodies.ConsentBody.of(found)

    @router.post("/v1/audio/voice_consents", dependencies=enrols, responses=unusable)
    async def add_consent(
        name: Annotated[str, Form(min_length=1, max_length=MAX_WHO)],
        statement: Annotated[str, Form(min_length=1, max_length=MAX_STATEMENT)],
        language: Annotated[str, Form(max_length=35)] = "",
        recording: Annotated[UploadFile, File()] = None,  # type: ignore[assignment]
    ) -> bodies.ConsentBody:
        """Records that somebody agreed that their voice is used: who, to what in their words, and
        perhaps a recording of that, of which a hash is kept."""
        given: UploadFile | None = recording  # not `| None` above: a form has no null
        said = None if given is None else await given.read()
        with _refusing(422, "consent_refused"):
            consent = await asyncio.to_thread(
                lambda: folder().new_consent(name, statement, language=language, recording=said)
            )
        return bodies.ConsentBody.of(consent)

    @router.delete("/v1/audio/voice_consents/{consent}", dependencies=enrols, responses=known)
    async def delete_consent(consent: str) -> bodies.Deleted:
        """Withdraws a consent; the voices that stand on it are deleted."""
        with _refusing(404, "consent_not_found", "consent"):
            await asyncio.to_thread(folder().remove_consent, consent)
        return bodies.Deleted(id=consent, object="audio.voice_consent")

    return router


@contextmanager
def _refusing(status: int, code: str, param: str | None = None) -> Iterator[None]:
    """What the store refuses is told as a refusal, in its words."""
    try:
        yield
    except VoiceError as error:
        raise Refusal(status, code, str(error), param) from error
