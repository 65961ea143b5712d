// The dialog in which a voice is enrolled: a clip, its words, and the consent of its owner.

import { Microphone, WIRE_HZ, openAudio, toWav } from "./audio.js";

const MOST_S = 30;
const LEAST_S = 3;
const RECORDED = "recorded.wav";
const TO_READ =
  "The quick brown fox jumps over the lazy dog, and then it sleeps in the warm afternoon sun. " +
  "When it wakes up, the evening is cool, and the whole garden smells of rain.";

export class Enrolment {
  #clip = null; // a file, recorded or uploaded
  #recording = null;
  #unseal = () => {};

  // `enrolled(name)` is called when there is a new voice, `closed()` whenever the dialog is left.
  constructor(server, { enrolled, closed }) {
    this.server = server;
    this.enrolled = enrolled;
    this.dialog = document.getElementById("enrolment");
    this.form = this.dialog.querySelector("form");
    const part = (id) => document.getElementById(`enrol-${id}`);
    this.parts = Object.fromEntries(
      ["record", "time", "level", "file", "preview", "read", "words", "save", "cancel"]
        .map((id) => [id, part(id)]),
    );
    this.messages = { problem: part("problem"), state: part("state") };
    const { record, file, read, cancel } = this.parts;
    record.onclick = () => (this.#recording ? this.#stop() : this.#record());
    file.onchange = () => this.#take(file.files[0] ?? null);
    read.onclick = () => { this.parts.words.value = TO_READ; };
    cancel.onclick = () => this.dialog.close();
    this.form.onsubmit = (event) => {
      event.preventDefault();
      this.#save();
    };
    this.dialog.onclose = () => {
      this.#discard();
      closed();
    };
  }

  async open() {
    this.#discard();
    this.form.reset();
    this.#show("problem", "");
    this.#show("state", "");
    this.parts.save.disabled = false;
    this.dialog.showModal();
    try {
      await this.server.checkEnrolling();
    } catch (error) {
      this.#show("problem", error.message);
      this.parts.save.disabled = true;
    }
  }

  async #record() {
    this.#take(null);
    this.#show("problem", "");
    const recording = (this.#recording = { pieces: [], samples: 0 });
    this.parts.record.textContent = "Stop recording";
    try {
      const context = (recording.context = await openAudio());
      const microphone = await Microphone.open(context, {
        chunk: (pcm) => this.#more(recording, pcm),
        level: (level) => setLevel(this.parts.level, level),
        gone: () => this.#stop(),
      }, { plain: true });
      recording.microphone = microphone;
      if (this.#recording !== recording) close(recording); // it was stopped while it was asked for
    } catch (error) {
      this.#show("problem", error.message);
      this.#stop();
    }
  }

  #more(recording, pcm) {
    if (this.#recording !== recording) return;
    recording.pieces.push(pcm);
    recording.samples += pcm.length;
    const seconds = recording.samples / WIRE_HZ;
    this.parts.time.textContent = `${seconds.toFixed(1)} s`;
    if (seconds >= MOST_S) this.#stop();
  }

  #stop() {
    const recording = this.#recording;
    this.#recording = null;
    this.parts.record.textContent = "Record";
    setLevel(this.parts.level, 0);
    if (!recording) return;
    close(recording);
    if (recording.samples) this.#take(new File([toWav(recording.pieces)], RECORDED));
    if (recording.samples && recording.samples < LEAST_S * WIRE_HZ) {
      this.#show("problem", `That is short: a voice needs ${LEAST_S} s or more.`);
    }
  }

  #take(clip) {
    const { preview, time, file } = this.parts;
    this.#clip = clip;
    this.#unseal();
    this.#unseal = () => {};
    if (!clip || clip.name === RECORDED) file.value = "";
    time.textContent = "";
    preview.hidden = !clip;
    preview.removeAttribute("src");
    if (!clip) return;
    const address = URL.createObjectURL(clip);
    this.#unseal = () => URL.revokeObjectURL(address);
    preview.src = address;
  }

  async #save() {
    const fields = new FormData(this.form);
    const text = (name) => String(fields.get(name) ?? "").trim();
    this.#show("problem", "");
    if (this.#recording) this.#stop();
    if (!this.#clip) {
      this.#show("problem", "There is no clip yet: record one, or choose a file.");
      this.parts.record.focus();
      return;
    }
    const { save } = this.parts;
    save.disabled = true;
    this.#show("state", "The clip is being checked");
    try {
      const voice = await this.server.enrol({
        name: text("name"),
        who: text("who"),
        statement: text("statement"),
        transcript: text("transcript"),
        clip: this.#clip,
      });
      this.enrolled(voice.id);
      this.dialog.close();
    } catch (error) {
      this.#show("problem", error.message);
    }
    this.#show("state", "");
    save.disabled = false;
  }

  #discard() {
    if (this.#recording) this.#stop();
    this.#take(null);
  }

  #show(name, words) {
    this.messages[name].textContent = words;
    this.messages[name].hidden = !words;
  }
}

export function setLevel(bar, level) {
  bar.firstElementChild.style.transform = `scaleX(${level.toFixed(3)})`;
}

function close({ microphone, context }) {
  microphone?.close();
  if (context && context.state !== "closed") context.close();
}
