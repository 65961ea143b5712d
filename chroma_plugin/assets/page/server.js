// The server that this page came from: its routes, its key, and its refusals in words.

const BASE = new URL("..", import.meta.url); // also behind a proxy that adds to the path
const STORE = "chroma-api-key";
const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/; // what a browser can send with a WebSocket

// What the server did not do, in words. Its status is that of HTTP; 0: it was not reached.
export class Refused extends Error {
  constructor(status, message, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export class Server {
  #key = "";

  constructor() {
    try {
      this.#key = sessionStorage.getItem(STORE) ?? "";
    } catch { /* a browser that keeps nothing: the key lasts as long as the page */ }
  }

  get key() {
    return this.#key;
  }

  // It is kept until the tab is closed, and nowhere else.
  set key(key) {
    this.#key = key.trim();
    try {
      if (this.#key) sessionStorage.setItem(STORE, this.#key);
      else sessionStorage.removeItem(STORE);
    } catch { /* as above */ }
  }

  // Whether one may talk here; says why not.
  async check() {
    await this.ask("v1/models");
  }

  // loading, ready, full, draining or failed.
  async status() {
    const answer = await fetch(new URL("ready", BASE)).catch(() => null);
    return (await answer?.json().catch(() => null))?.status ?? "";
  }

  async voices() {
    return (await this.ask("v1/audio/voices")).voices;
  }

  // Whether one may enrol voices here; says why not.
  async checkEnrolling() {
    await this.ask("v1/audio/voice_consents");
  }

  // Enrols a voice; the consent goes again if the voice is refused.
  async enrol({ name, who, statement, transcript, clip }) {
    const consent = await this.ask("v1/audio/voice_consents", {
      method: "POST",
      body: form({ name: who, statement }),
    });
    try {
      const body = form({ name, consent: consent.id, transcript, audio_sample: clip });
      return await this.ask("v1/audio/voices", { method: "POST", body });
    } catch (error) {
      await this.ask(`v1/audio/voice_consents/${consent.id}`, { method: "DELETE" }).catch(() => {});
      throw error;
    }
  }

  // A conversation's socket. A page can set no header of it: the key is a subprotocol.
  socket() {
    const url = new URL("v1/realtime", BASE);
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("model", "chroma");
    const protocols = ["realtime"];
    if (this.#key) protocols.push(`openai-insecure-api-key.${this.#key}`);
    return new WebSocket(url, protocols);
  }

  async ask(path, options = {}) {
    if (this.#key && !TOKEN.test(this.#key)) {
      throw new Refused(401, "This key has characters that no browser can send; is it whole?");
    }
    const headers = this.#key ? { authorization: `Bearer ${this.#key}` } : {};
    let answer;
    try {
      answer = await fetch(new URL(path, BASE), { ...options, headers, credentials: "omit" });
    } catch {
      throw new Refused(0, "The server cannot be reached.");
    }
    const body = await answer.json().catch(() => null);
    if (answer.ok && body) return body;
    throw this.#refusal(answer.status, body?.error ?? {});
  }

  #refusal(status, { message, code }) {
    if (status === 401) {
      const words = this.#key
        ? "This API key is wrong, or does not open that."
        : "This server needs an API key.";
      return new Refused(status, words, code);
    }
    return new Refused(status, message ?? `The server answers ${status}.`, code);
  }
}

function form(fields) {
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) data.append(name, value);
  return data;
}
