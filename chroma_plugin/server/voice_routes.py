"""`/v1/audio/voices` and `/v1/audio/voice_consents`: voices of the folder, and who agreed."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, UploadFile

from chroma_plugin.errors import VoiceError
from chroma_plugin.server import bodies
from chroma_plugin.server.access import Needs, Refusal
from chroma_plugin.server.settings import ServerConfig
from chroma_plugin.voice_consent import MAX_STATEMENT, MAX_WHO
from chroma_plugin.voice_store import VoiceStore

Name = Annotated[str, Form(min_length=1, max_length=64, pattern="^[a-z0-9][a-z0-9_-]*$")]


def routes(
    config: ServerConfig, store: VoiceStore | None, refused: dict[int | str, dict[str, Any]]
) -> APIRouter:
    """The routes, on a folder of voices; without one there is the packaged voice only."""
    router = APIRouter(tags=["voices"])
    listens = [Depends(Needs(config, "talk"))]
    enrols = [Depends(Needs(config, "voices"))]
    decoding = asyncio.Semaphore(2)
    wrong: dict[int | str, dict[str, Any]] = refused | {
        400: {"model": bodies.Error, "description": "It cannot be used; says why."},
        404: {"model": bodies.Error, "description": "There is none of that id."},
        501: {"model": bodies.Error, "description": "This server has no folder of voices."},
    }

    def folder() -> VoiceStore:
        if store is None:
            raise Refusal(501, "no_voice_folder", "Start the server with a folder of voices.")
        return store

    @router.get("/v1/audio/voices", dependencies=listens, responses=refused)
    async def voices() -> bodies.Voices:
        """All voices, the packaged one first."""
        records = [] if store is None else await asyncio.to_thread(store.records)
        data = [bodies.VoiceBody.of(record) for record in records]
        return bodies.Voices(voices=["default", *(voice.name for voice in data)], data=data)

    @router.post("/v1/audio/voices", dependencies=enrols, responses=wrong)
    async def add_voice(
        name: Name,
        consent: Annotated[str, Form(min_length=1, max_length=64)],
        audio_sample: Annotated[UploadFile, File()],
        transcript: Annotated[str | None, Form(max_length=4000)] = None,
        ref_text: Annotated[str | None, Form(max_length=4000)] = None,
    ) -> bodies.VoiceBody:
        """Enrols a voice: a clip of 3 to 30 s, what is said in it (`transcript`, or `ref_text`),
        and the id of a consent."""
        said = transcript or ref_text
        if not said:
            raise Refusal(400, "missing_required_parameter", "transcript is missing.", "transcript")
        known = folder()
        try:
            agreed = await asyncio.to_thread(known.consent, consent)
        except VoiceError as error:
            raise Refusal(400, "consent_required", str(error), "consent") from error
        async with decoding:
            clip = await audio_sample.read()
            try:
                record = await asyncio.to_thread(known.add, name, clip, said, agreed)
            except VoiceError as error:
                raise Refusal(400, "voice_refused", str(error)) from error
        return bodies.VoiceBody.of(record)

    @router.delete("/v1/audio/voices/{voice}", dependencies=enrols, responses=wrong)
    async def delete_voice(voice: str) -> bodies.Deleted:
        """Deletes a voice, its clip and all that was made of it."""
        try:
            await asyncio.to_thread(folder().remove, voice)
        except VoiceError as error:
            raise Refusal(404, "voice_not_found", str(error), "voice") from error
        return bodies.Deleted(id=voice, object="audio.voice.deleted")

    @router.get("/v1/audio/voice_consents", dependencies=enrols, responses=wrong)
    async def consents() -> bodies.Consents:
        """All consents, the oldest first."""
        found = await asyncio.to_thread(folder().consents)
        return bodies.Consents(data=[bodies.ConsentBody.of(consent) for consent in found])

    @router.post("/v1/audio/voice_consents", dependencies=enrols, responses=wrong)
    async def add_consent(
        name: Annotated[str, Form(min_length=1, max_length=MAX_WHO)],
        statement: Annotated[str, Form(min_length=1, max_length=MAX_STATEMENT)],
        language: Annotated[str, Form(max_length=35)] = "",
        recording: Annotated[UploadFile | None, File()] = None,
    ) -> bodies.ConsentBody:
        """Records that somebody agreed that their voice is used: who, to what in their words, and
        perhaps a recording of that, of which a hash is kept."""
        said = None if recording is None else await recording.read()
        try:
            consent = await asyncio.to_thread(
                lambda: folder().new_consent(name, statement, language=language, recording=said)
            )
        except VoiceError as error:
            raise Refusal(400, "consent_refused", str(error)) from error
        return bodies.ConsentBody.of(consent)

    @router.delete("/v1/audio/voice_consents/{consent}", dependencies=enrols, responses=wrong)
    async def delete_consent(consent: str) -> bodies.Deleted:
        """Withdraws a consent; the voices that stand on it are deleted."""
        try:
            await asyncio.to_thread(folder().remove_consent, consent)
        except VoiceError as error:
            raise Refusal(404, "consent_not_found", str(error), "consent") from error
        return bodies.Deleted(id=consent, object="audio.voice_consent.deleted")

    return router
