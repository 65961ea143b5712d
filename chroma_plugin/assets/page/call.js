// One call: a socket, what its events mean, and what is done about them. Knows no element of the
// page; `tell` is told what there is to show (see page.js).

import { Microphone, Player, WIRE_HZ, fromBase64, openAudio, toBase64 } from "./audio.js";
import { StreamClock, Timing } from "./latency.js";
import { EVENTS, SETTINGS, SILENCE_MS } from "./protocol.js";
import { Refused } from "./server.js";

const UNSENT_BYTES = 512 * 1024; // of sound that does not get away: the connection is dead
const PAUSES_MS = [300, 1000, 2000, 4000, 8000]; // before another try
const POLICY = 1008; // hung up for what was done: no reason to come back
const IDLE = "session_idle"; // nobody said anything: nor is it for that
const SAID_ANYWAY = new Set(["response_cancel_not_active"]);

export class Call {
  #socket = null;
  #open = false; // greeted: what is said is sent
  #over = false;
  #greeted = false; // once at least
  #failure = null; // what the server said last before it hung up
  #items = new Map(); // what was said, in order: told again on another connection
  #replies = new Map(); // by the response's id
  #reply = null; // the newest one
  #timing = null; // of the question that has no reply yet
  #clock = new StreamClock();
  #wake = () => {};
  #drop = () => {};

  constructor(server, voice, tell) {
    this.server = server;
    this.voice = voice;
    this.tell = tell;
  }

  // Goes on until it is hung up; to be called while a button is pressed.
  async run() {
    try {
      this.tell.state("connecting", "Connecting");
      this.context = await openAudio();
      await this.server.check();
      await this.#loaded();
      this.player = new Player(this.context, {
        level: (level) => this.tell.level("chroma", level),
        started: (item, at) => this.#begun(item, at),
        played: (item, ms) => this.tell.played(item, ms),
        finished: (item, gaps) => this.#finished(item, gaps),
      });
      if (!this.#over) await this.#listen();
      await this.#stay();
    } catch (error) {
      this.hangUp(error.message, error);
    }
    if (this.#over) this.#release(); // also what came after it was hung up
  }

  hangUp(words = "", error = null) {
    if (this.#over) return;
    this.#over = true;
    this.#open = false;
    this.#socket?.close(1000);
    this.#wake();
    this.#release();
    this.tell.ended(words, error);
  }

  set muted(muted) {
    if (this.microphone) this.microphone.muted = muted;
  }

  // The page is seen again; some devices stop the sound of one that is not.
  resume() {
    this.context?.resume();
  }

  // A message that was typed: stops what is being said, and is answered.
  async say(text) {
    if (!this.#open) return;
    const timing = (this.#timing = new Timing());
    timing.mark("typed");
    const waiting = this.#reply && !this.#reply.done && !this.#reply.item ? this.#reply : null;
    await this.#interrupt();
    if (waiting) this.#send("response.cancel", { response_id: waiting.id });
    const id = `item_${crypto.randomUUID().replaceAll("-", "").slice(0, 20)}`;
    this.#items.set(id, { role: "user", text });
    this.tell.user(id, text);
    this.#tellItem(id);
    this.#send("response.create");
    this.tell.state("thinking", "Thinking");
  }

  // From the next reply on.
  speakAs(voice) {
    this.voice = voice;
    if (this.#open) this.#tellVoice();
  }

  // -- the connection ------------------------------------------------------------------------

  async #listen() {
    try {
      this.microphone = await Microphone.open(this.context, {
        chunk: (pcm) => this.#heard(pcm),
        level: (level) => this.tell.level("you", level),
        gone: () => this.tell.problem("The microphone is gone. You can type."),
      });
      this.tell.microphone(true);
    } catch (error) {
      this.tell.microphone(false);
      this.tell.problem(error.message);
    }
  }

  // Connects, and again when the connection is lost.
  async #stay() {
    for (let tries = 0; !this.#over; tries++) {
      const { code, failure } = await this.#converse();
      if (this.#over) return;
      const refused = failure?.status === 401 || failure?.status === 403;
      const final = refused || code === POLICY || failure?.code === IDLE;
      const lost = this.#greeted ? "The connection was lost." : "The server did not take the call.";
      const words = failure?.message ?? lost;
      if (final || !this.#greeted) throw failure ?? new Error(words);
      if (this.#open) tries = 0;
      this.#open = false;
      this.tell.state("lost", `${words} Trying again`);
      await this.#pause(PAUSES_MS[Math.min(tries, PAUSES_MS.length - 1)]);
    }
  }

  // Waits while the server loads its model.
  async #loaded() {
    while (!this.#over && (await this.server.status()) === "loading") {
      this.tell.state(this.#greeted ? "lost" : "connecting", "The server loads its model");
      await this.#pause(1000);
    }
  }

  async #pause(ms) {
    await new Promise((resolve) => {
      this.#wake = resolve;
      setTimeout(resolve, ms);
      window.addEventListener("online", resolve, { once: true });
    });
  }

  // One connection, until its end: why it ended.
  async #converse() {
    this.#failure = null;
    try {
      if (this.#greeted) {
        await this.server.check(); // a socket tells a page nothing of a refusal
        await this.#loaded();
      }
    } catch (failure) {
      return { code: 0, failure };
    }
    if (this.#over) return { code: 0, failure: null };
    return new Promise((resolve) => {
      const socket = (this.#socket = this.server.socket());
      const end = (code) => {
        if (this.#socket !== socket) return;
        this.#socket = null;
        this.#lose();
        resolve({ code, failure: this.#failure });
      };
      this.#drop = () => { end(0); socket.close(); };
      socket.onclose = ({ code }) => end(code);
      socket.onmessage = ({ data }) => {
        if (this.#socket !== socket || this.#over) return;
        const event = JSON.parse(data);
        if (event.type !== "error") this.#failure = null;
        EVENTS[event.type]?.(this, event);
      };
    });
  }

  // What was being said when the connection went: the rest of it does not come.
  #lose() {
    const reply = this.#reply;
    if (reply && !reply.done) {
      reply.done = true;
      if (reply.item && this.player?.item === reply.item) this.player.end(reply.item);
      else if (reply.item) this.#cut(reply, 0);
    }
    this.#timing = null;
  }

  #release() {
    this.microphone?.close();
    this.player?.close();
    if (this.context && this.context.state !== "closed") this.context.close();
    this.microphone = this.player = this.context = null;
  }

  #send(type, fields = {}) {
    if (this.#socket?.readyState === WebSocket.OPEN) {
      this.#socket.send(JSON.stringify({ type, ...fields }));
    }
  }

  #heard(pcm) {
    if (!this.#open) return;
    if (this.#socket.bufferedAmount > UNSENT_BYTES) {
      this.#drop();
      return;
    }
    this.#send("input_audio_buffer.append", { audio: toBase64(pcm) });
    this.#clock.sent((1000 * pcm.length) / WIRE_HZ);
  }

  // -- what the server tells -----------------------------------------------------------------

  greeted() {
    this.#greeted = this.#open = true;
    this.#clock = new StreamClock();
    this.#replies.clear();
    this.#send("session.update", { session: SETTINGS });
    this.#tellVoice();
    for (const id of this.#items.keys()) this.#tellItem(id);
    this.#rest();
  }

  speechStarted() {
    this.tell.state("hearing", "Hearing you");
    this.#interrupt();
  }

  speechStopped(endMs) {
    const timing = (this.#timing = new Timing());
    timing.mark("spoken", this.#clock.timeOf(endMs - SILENCE_MS));
    timing.mark("found");
    this.tell.state("thinking", "Thinking");
  }

  itemAdded(item) {
    if (item.role !== "user" || this.#items.has(item.id)) return;
    this.#items.set(item.id, { role: "user", text: null });
    this.tell.user(item.id, null);
  }

  written(itemId, text) {
    const item = this.#items.get(itemId);
    if (!item) return;
    item.text = text || null;
    this.tell.userText(itemId, text);
  }

  replyCreated(response) {
    const timing = this.#timing ?? new Timing();
    this.#timing = null;
    timing.mark("created");
    this.#reply = { id: response.id, item: null, timing, pieces: [], done: false, over: false };
    this.#replies.set(response.id, this.#reply);
  }

  replyBegan(responseId, itemId) {
    const reply = this.#replies.get(responseId);
    if (!reply) return;
    reply.item = itemId;
    this.#items.set(itemId, { role: "assistant", text: "" });
    this.tell.reply(itemId);
    if (reply.over) this.#cut(reply, 0); // it was talked over before it had begun
  }

  replyText(responseId, text, startMs) {
    const reply = this.#replies.get(responseId);
    if (!reply || reply.over) return;
    reply.timing.mark("text");
    reply.pieces.push({ text, startMs });
    this.#items.get(reply.item).text += text;
    this.tell.replyText(reply.item, text, startMs);
  }

  replyAudio(responseId, delta) {
    const reply = this.#replies.get(responseId);
    if (!reply || reply.over || !this.player) return;
    reply.timing.mark("audio");
    const pcm = fromBase64(delta);
    reply.timing.audioMs += (1000 * pcm.length) / WIRE_HZ;
    this.player.push(reply.item, pcm);
  }

  replySounded(responseId) {
    const reply = this.#replies.get(responseId);
    if (reply && this.player?.item === reply.item) this.player.end(reply.item);
  }

  replyDone(response, latency) {
    const reply = this.#replies.get(response.id);
    if (!reply) return;
    reply.done = true;
    reply.timing.mark("done");
    reply.timing.server = latency ?? {};
    if (reply.item) this.tell.timing(reply.item, reply.timing);
    const sounds = this.player?.item === reply.item; // its end is told when it was heard
    if (!sounds && !reply.over && reply === this.#reply) this.#rest();
    const why = response.status_details;
    if (response.status === "failed") this.tell.problem(why?.error?.message ?? "The reply failed.");
    if (response.status === "incomplete") this.tell.problem("The reply was cut at its limit.");
  }

  failed({ code, message, event_id }) {
    if (SAID_ANYWAY.has(code)) return;
    if (event_id === "voice") this.voice = this.accepted;
    this.#failure = new Refused(503, message, code);
    this.tell.problem(message);
    this.tell.voice(this.voice);
    if (this.#timing) this.#rest(); // there will be no reply to that
    this.#timing = null;
  }

  configured(session) {
    this.accepted = session.audio?.output?.voice ?? "default";
    this.tell.voice(this.voice);
  }

  // -- what is heard -------------------------------------------------------------------------

  #begun(itemId, at) {
    const reply = this.#of(itemId);
    if (!reply) return;
    reply.timing.mark("heard", at);
    this.tell.timing(itemId, reply.timing);
    this.tell.state("speaking", "Speaking");
  }

  #finished(itemId, gaps) {
    const reply = this.#of(itemId);
    if (reply) {
      reply.over = reply.finished = true;
      reply.timing.gaps = gaps;
      this.tell.timing(itemId, reply.timing);
    }
    this.tell.finished(itemId);
    this.#rest();
  }

  // Stops what is being said, and tells the server how much of it was heard.
  async #interrupt() {
    const reply = this.#reply;
    if (!reply || reply.over) return;
    reply.over = true; // what still comes of it is not played
    if (!reply.item) return;
    const { item, heard } = await this.player.clear();
    if (!reply.finished) this.#cut(reply, item === reply.item ? heard : 0);
  }

  #cut(reply, heard) {
    reply.over = true;
    const place = { item_id: reply.item, content_index: 0, audio_end_ms: heard };
    this.#send("conversation.item.truncate", place);
    const kept = reply.pieces.filter(({ startMs }) => startMs < heard);
    this.#items.get(reply.item).text = kept.map(({ text }) => text).join("");
    this.tell.cut(reply.item, heard);
  }

  #rest() {
    if (this.#open) this.tell.state("ready", this.microphone ? "Listening" : "Ready");
  }

  #of(itemId) {
    return [...this.#replies.values()].find((reply) => reply.item === itemId);
  }

  // -- what the server is told ---------------------------------------------------------------

  #tellVoice() {
    const session = { type: "realtime", audio: { output: { voice: this.voice } } };
    this.#send("session.update", { event_id: "voice", session });
  }

  #tellItem(id) {
    const { role, text } = this.#items.get(id);
    if (!text) return;
    const kind = role === "user" ? "input_text" : "output_text";
    const item = { id, type: "message", role, content: [{ type: kind, text }] };
    this.#send("conversation.item.create", { item });
  }
}
