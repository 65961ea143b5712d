// How long a reply took, part by part: what the page saw, beside what the server says.

export class Timing {
  constructor() {
    this.marks = {};
    this.server = {};
    this.audioMs = 0;
    this.gaps = 0;
  }

  // When something happened first, in the page's time.
  mark(name, at = performance.now()) {
    this.marks[name] ??= at;
  }

  // The wait from the end of the question, or from its sending, to the first sound; null: not yet.
  get wait() {
    return this.#between(this.#asked, "heard");
  }

  // The wait in its parts, in the order in which they pass: [[name, ms], ...].
  get parts() {
    const found = "found" in this.marks ? "found" : "typed";
    return known([
      ["the turn's end is found", this.#between("spoken", "found")],
      ["the reply's first sound arrives", this.#between(found, "audio")],
      ["it reaches the loudspeaker", this.#between("audio", "heard")],
    ]);
  }

  // What else is known of it.
  get rest() {
    const found = "found" in this.marks ? "found" : "typed";
    return known([
      ["first word", this.#between(found, "text")],
      ["whole reply made", this.#between("created", "done")],
      ["its length", this.audioMs || null],
      ...Object.entries(this.server)
        .filter(([name, ms]) => name !== "audio" && typeof ms === "number")
        .map(([name, ms]) => [`server: ${name.replaceAll("_", " ")}`, ms]),
    ]);
  }

  get #asked() {
    return "spoken" in this.marks ? "spoken" : "typed";
  }

  #between(from, to) {
    const { [from]: begun, [to]: ended } = this.marks;
    return begun === undefined || ended === undefined ? null : Math.max(0, ended - begun);
  }
}

function known(pairs) {
  return pairs.filter(([, ms]) => ms !== null);
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

export function milliseconds(ms) {
  return ms < 10_000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

// When the server's time of a stream was, in the page's time: by the pieces that were sent last.
export class StreamClock {
  constructor() {
    this.sentMs = 0;
    this.leads = [];
  }

  sent(ms, at = performance.now()) {
    this.sentMs += ms;
    this.leads.push(at - this.sentMs);
    if (this.leads.length > 100) this.leads.shift();
  }

  timeOf(ms) {
    return Math.min(...this.leads) + ms;
  }
}
