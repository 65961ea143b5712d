// The protocol, as far as a call needs it: what it asks of its session, what it is told.

import { WIRE_HZ } from "./audio.js";

export const SILENCE_MS = 500; // so long a pause ends a turn

export const SETTINGS = {
  type: "realtime",
  output_modalities: ["audio"],
  audio: {
    input: {
      format: { type: "audio/pcm", rate: WIRE_HZ },
      transcription: { model: "chroma" },
      turn_detection: {
        type: "server_vad",
        silence_duration_ms: SILENCE_MS,
        create_response: true,
        interrupt_response: true,
      },
    },
    output: { format: { type: "audio/pcm", rate: WIRE_HZ } },
  },
};

const SCRIPT = "conversation.item.input_audio_transcription";

// Every server event that means something here, and what the call makes of it.
export const EVENTS = {
  "session.created": (call) => call.greeted(),
  "session.updated": (call, { session }) => call.configured(session),
  error: (call, { error }) => call.failed(error),
  "input_audio_buffer.speech_started": (call) => call.speechStarted(),
  "input_audio_buffer.speech_stopped": (call, event) => call.speechStopped(event.audio_end_ms),
  "conversation.item.added": (call, { item }) => call.itemAdded(item),
  [`${SCRIPT}.completed`]: (call, event) => call.written(event.item_id, event.transcript),
  [`${SCRIPT}.failed`]: (call, event) => call.written(event.item_id, ""),
  "response.created": (call, { response }) => call.replyCreated(response),
  "response.output_item.added": (call, event) => call.replyBegan(event.response_id, event.item.id),
  "response.output_audio_transcript.delta": (call, event) =>
    call.replyText(event.response_id, event.delta, event.chroma?.start_ms ?? 0),
  "response.output_audio.delta": (call, event) => call.replyAudio(event.response_id, event.delta),
  "response.output_audio.done": (call, event) => call.replySounded(event.response_id),
  "response.done": (call, { response, chroma }) =>
    call.replyDone(response, response.chroma?.latency_ms ?? chroma?.latency_ms),
};
