// Sound on the audio thread: the microphone to PCM16 at 24 kHz, and that back to the loudspeaker.
// The context runs at whatever rate the device has: browsers differ in what else they can do.

const WIRE_HZ = 24000;
const CHUNK = 960; // 40 ms, what goes out at once
const HALF = 16; // taps on either side
const PHASES = 480; // places between two samples: those of the usual rates are among them
const FADE = 0.005; // seconds; a cut without one is a click
const REFILL = 0.1; // seconds in hand before a reply that ran dry goes on
const TELL = 0.04; // seconds between two reports

// A windowed sinc, by pieces: what comes out of many pushes is what one would have given.
class Resampler {
  constructor(from, to) {
    this.step = from / to;
    this.same = from === to;
    const cutoff = Math.min(1, to / from) * 0.94; // of the lower Nyquist frequency
    this.half = Math.ceil(HALF / Math.min(1, to / from));
    const width = 2 * this.half;
    this.taps = [];
    for (let phase = 0; phase <= PHASES; phase++) {
      const taps = new Float32Array(width);
      let sum = 0;
      for (let i = 0; i < width; i++) {
        const x = i - this.half + 1 - phase / PHASES;
        const window = Math.cos((Math.PI * x) / (2 * this.half)) ** 2;
        const angle = Math.PI * cutoff * x;
        taps[i] = (x === 0 ? 1 : Math.sin(angle) / angle) * window;
        sum += taps[i];
      }
      this.taps.push(taps.map((tap) => tap / sum));
    }
    this.reset();
  }

  reset() {
    this.rest = new Float32Array(this.half - 1); // as if silence had come before
    this.at = 0; // of the next sample, in `rest`, from its first whole window on
  }

  push(samples) {
    if (this.same) return samples;
    const heard = new Float32Array(this.rest.length + samples.length);
    heard.set(this.rest);
    heard.set(samples, this.rest.length);
    const width = 2 * this.half;
    const count = Math.max(0, Math.ceil((heard.length - width + 1 - this.at) / this.step));
    const made = new Float32Array(count);
    for (let n = 0; n < count; n++) {
      const place = this.at + n * this.step;
      const whole = Math.floor(place);
      const taps = this.taps[Math.round((place - whole) * PHASES)];
      let sum = 0;
      for (let i = 0; i < width; i++) sum += taps[i] * heard[whole + i];
      made[n] = sum;
    }
    const next = this.at + count * this.step;
    const used = Math.min(Math.floor(next), heard.length);
    this.rest = heard.slice(used);
    this.at = next - used;
    return made;
  }

  // What is left when no more comes.
  flush() {
    const made = this.push(new Float32Array(this.half));
    this.reset();
    return made;
  }
}

function loudness(samples) {
  let power = 0;
  for (const sample of samples) power += sample * sample;
  return samples.length ? Math.sqrt(power / samples.length) : 0;
}

// In: any channels, mixed. Out, by its port: {pcm: Int16Array, level}.
class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate, WIRE_HZ);
    this.chunk = new Float32Array(CHUNK);
    this.filled = 0;
  }

  process([channels]) {
    const block = new Float32Array(128);
    for (const channel of channels) {
      for (let i = 0; i < block.length; i++) block[i] += channel[i] / channels.length;
    }
    for (const sample of this.resampler.push(block)) {
      this.chunk[this.filled++] = sample;
      if (this.filled === CHUNK) this.send();
    }
    return true;
  }

  send() {
    const pcm = Int16Array.from(this.chunk, (x) => Math.max(-1, Math.min(1, x)) * 32767);
    this.port.postMessage({ pcm, level: loudness(this.chunk) }, [pcm.buffer]);
    this.filled = 0;
  }
}

// Plays replies one after the other. To its port:
//   {item, pcm}   more of a reply, 24 kHz      {end: item}   no more of it comes
//   {clear: n}    stop now                     {close: true}
// From it:
//   {started: item, time}        its first sample, in the context's time
//   {item, played, level}        seconds of it that were played, every 40 ms
//   {finished: item, played, gaps}   all of it was; how often it ran dry
//   {cleared: n, item, played}   what was stopped, after how much of it; item null: nothing
class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(WIRE_HZ, sampleRate);
    this.forget();
    this.told = 0;
    this.port.onmessage = ({ data }) => this.take(data);
  }

  forget() {
    this.item = null;
    this.queue = [];
    this.waiting = this.played = this.gaps = 0; // samples of the queue, samples played
    this.ended = this.begun = this.starved = false;
    this.fading = null;
    this.resampler.reset();
  }

  take(data) {
    if (data.close) {
      this.closed = true;
    } else if ("clear" in data) {
      if (this.begun) this.fading ??= { token: data.clear, left: Math.round(FADE * sampleRate) };
      else this.stop(data.clear);
    } else if ("end" in data) {
      if (data.end !== this.item || this.ended) return;
      this.add(this.resampler.flush());
      this.ended = true;
    } else {
      if (this.fading && data.item === this.item) return;
      if (this.fading) this.stop(this.fading.token); // the device slept: what is new comes first
      if (data.item !== this.item) {
        this.forget();
        this.item = data.item;
      }
      this.add(this.resampler.push(Float32Array.from(data.pcm, (x) => x / 32768)));
    }
  }

  add(samples) {
    this.queue.push(samples);
    this.waiting += samples.length;
  }

  stop(token) {
    const { item, played } = this;
    this.forget();
    this.port.postMessage({ cleared: token, item, played: played / sampleRate });
  }

  process(_, [[...channels]]) {
    const block = channels[0];
    if (this.starved && (this.ended || this.waiting >= REFILL * sampleRate)) this.starved = false;
    if (this.item !== null && !this.starved) this.fill(block);
    for (const channel of channels.slice(1)) channel.set(block);
    this.told += block.length;
    if (this.told >= TELL * sampleRate && this.item !== null) {
      this.told = 0;
      const played = this.played / sampleRate;
      this.port.postMessage({ item: this.item, played, level: loudness(block) });
    }
    return !this.closed;
  }

  fill(block) {
    if (!this.begun && this.waiting) {
      this.begun = true;
      this.port.postMessage({ started: this.item, time: currentTime });
    }
    let at = 0;
    while (at < block.length && this.queue.length) {
      const [first] = this.queue;
      const piece = first.subarray(0, block.length - at);
      block.set(piece, at);
      at += piece.length;
      if (piece.length === first.length) this.queue.shift();
      else this.queue[0] = first.subarray(piece.length);
    }
    this.waiting -= at;
    this.played += at;
    if (this.fading) this.fade(block, at);
    else if (at < block.length && this.begun) this.dry(block, at);
  }

  fade(block, at) {
    const whole = FADE * sampleRate;
    for (let i = 0; i < at; i++) block[i] *= Math.max(0, this.fading.left - i) / whole;
    this.fading.left -= block.length;
    if (this.fading.left <= 0 || at < block.length) this.stop(this.fading.token);
  }

  dry(block, at) {
    if (this.ended) {
      const { item, played, gaps } = this;
      this.forget();
      this.port.postMessage({ finished: item, played: played / sampleRate, gaps });
    } else {
      for (let i = 0; i < at; i++) block[i] *= 1 - i / at;
      this.starved = true;
      this.gaps++;
    }
  }
}

registerProcessor("capture", Capture);
registerProcessor("playback", Playback);
