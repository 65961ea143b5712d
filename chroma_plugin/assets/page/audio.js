// The microphone and the loudspeaker of a page. Knows no server.

export const WIRE_HZ = 24000;
const ASLEEP_MS = 500; // a device that stands still tells nothing

// An audio context with the worklet in it; to be called while a button is pressed.
export async function openAudio() {
  if (!window.isSecureContext) {
    throw new Error(
      "A browser gives microphone and sound to pages from https, or from this machine, only."
    );
  }
  const context = new AudioContext({ latencyHint: "interactive" });
  try {
    await context.audioWorklet.addModule(new URL("worklet.js", import.meta.url));
    await context.resume();
  } catch (error) {
    context.close();
    throw new Error(`This browser gives no sound: ${error.message}`);
  }
  return context;
}

// Hears: `on.chunk(Int16Array)` every 40 ms at 24 kHz, `on.level(0 to 1)`, `on.gone()`.
export class Microphone {
  static async open(context, on, { plain = false } = {}) {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({
        audio: {
          channelCount: 1,
          echoCancellation: !plain, // otherwise it hears itself, and interrupts itself
          noiseSuppression: !plain,
          autoGainControl: true,
        },
      });
    } catch (error) {
      throw new Error(REASONS[error.name] ?? `The microphone cannot be used: ${error.message}`);
    }
    return new Microphone(context, stream, on);
  }

  constructor(context, stream, on) {
    this.stream = stream;
    this.source = context.createMediaStreamSource(stream);
    this.node = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
    this.node.port.onmessage = ({ data }) => {
      on.chunk(data.pcm);
      on.level(meter(data.level));
    };
    this.source.connect(this.node);
    stream.getTracks().forEach((track) => track.addEventListener("ended", () => on.gone?.()));
  }

  // Muted it goes on, with silence: whoever listens for the end of a turn still hears it.
  set muted(muted) {
    this.stream.getTracks().forEach((track) => { track.enabled = !muted; });
  }

  close() {
    this.node.port.onmessage = null;
    this.source.disconnect();
    this.stream.getTracks().forEach((track) => track.stop());
  }
}

const REASONS = {
  NotAllowedError: "The microphone was not allowed. Allow it in the address bar, or type.",
  NotFoundError: "There is no microphone. You can type.",
  NotReadableError: "The microphone is taken by something else. You can type.",
};

// Speaks: see the worklet for what it is told and tells; times here are in milliseconds.
export class Player {
  constructor(context, on) {
    this.context = context;
    this.node = new AudioWorkletNode(context, "playback", {
      numberOfInputs: 0,
      outputChannelCount: [1],
    });
    this.node.connect(context.destination);
    this.clears = new Map();
    this.item = null; // of the reply that is in the queue
    this.last = { item: null, heard: 0 }; // what was told of it last
    this.node.port.onmessage = ({ data }) => {
      if ("cleared" in data) {
        const { item, played } = data;
        const heard = Math.max(0, Math.round(1000 * played - this.delay));
        this.clears.get(data.cleared)?.({ item, heard });
        this.clears.delete(data.cleared);
        on.level(0);
      } else if ("started" in data) {
        const since = 1000 * (context.currentTime - data.time);
        on.started(data.started, performance.now() - since + this.delay);
      } else if ("finished" in data) {
        if (this.item === data.finished) this.item = null;
        on.level(0);
        on.finished(data.finished, data.gaps);
      } else {
        const heard = Math.max(0, Math.round(1000 * data.played - this.delay));
        this.last = { item: data.item, heard };
        on.level(meter(data.level));
        on.played(data.item, heard);
      }
    };
  }

  // From the worklet to the ear, in milliseconds, as far as the browser knows.
  get delay() {
    return 1000 * (this.context.outputLatency || this.context.baseLatency || 0);
  }

  push(item, pcm) {
    this.item = item;
    this.node.port.postMessage({ item, pcm }, [pcm.buffer]);
  }

  end(item) {
    this.node.port.postMessage({ end: item });
  }

  // Stops at once; gives the item that was cut and how many milliseconds of it were heard.
  clear() {
    const token = Math.random();
    this.item = null;
    const done = new Promise((resolve) => this.clears.set(token, resolve));
    const sleeping = new Promise((resolve) => {
      setTimeout(() => { if (this.clears.delete(token)) resolve(this.last); }, ASLEEP_MS);
    });
    this.node.port.postMessage({ clear: token });
    return Promise.race([done, sleeping]);
  }

  close() {
    this.node.port.onmessage = null;
    this.node.port.postMessage({ close: true });
    this.node.disconnect();
  }
}

// 0 at -50 dBFS, 1 at 0 dBFS.
function meter(level) {
  return Math.max(0, Math.min(1, 1 + Math.log10(level + 1e-9) / 2.5));
}

export function toBase64(pcm) {
  const bytes = new Uint8Array(pcm.buffer, pcm.byteOffset, pcm.byteLength);
  return btoa(String.fromCharCode(...bytes));
}

export function fromBase64(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Int16Array(bytes.buffer, 0, bytes.length >> 1);
}

// Pieces of PCM16 at 24 kHz as a WAV file.
export function toWav(pieces) {
  const size = pieces.reduce((sum, piece) => sum + piece.byteLength, 0);
  const header = new DataView(new ArrayBuffer(44));
  const words = { 0: "RIFF", 8: "WAVE", 12: "fmt ", 36: "data" };
  for (const [at, word] of Object.entries(words)) {
    [...word].forEach((letter, i) => header.setUint8(Number(at) + i, letter.charCodeAt(0)));
  }
  header.setUint32(4, 36 + size, true);
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true); // PCM
  header.setUint16(22, 1, true); // mono
  header.setUint32(24, WIRE_HZ, true);
  header.setUint32(28, 2 * WIRE_HZ, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  header.setUint32(40, size, true);
  return new Blob([header, ...pieces], { type: "audio/wav" });
}
