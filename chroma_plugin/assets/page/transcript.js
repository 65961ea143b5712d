// What both sides said, as it is shown. Text only ever becomes text.

import { milliseconds } from "./latency.js";

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export class Transcript {
  #lines = new Map(); // by the item's id

  constructor(log) {
    this.log = log;
  }

  clear() {
    this.#lines.clear();
    this.log.replaceChildren();
  }

  // What the user said; null: it is not written down yet.
  user(id, text) {
    const line = this.#add(id, "user", "You");
    if (text === null) line.said.append(element("span", { class: "pending" }, "(spoken)"));
    else line.said.textContent = text;
  }

  userText(id, text) {
    const line = this.#lines.get(id);
    if (line) line.said.textContent = text || "(spoken, not written down)";
    line?.article.classList.toggle("unwritten", !text);
  }

  // A reply; its text comes in pieces, each with its place in the sound.
  reply(id) {
    if (!this.#lines.has(id)) this.#add(id, "bot", "Chroma").pieces = [];
  }

  replyText(id, text, startMs) {
    const line = this.#lines.get(id);
    if (!line) return;
    line.pieces.push({ text, startMs });
    this.#split(line, line.heard);
  }

  // So much of the reply was heard by now.
  played(id, ms) {
    const line = this.#lines.get(id);
    if (!line || line.cut) return; // a late report changes nothing of what was cut
    line.heard = ms;
    this.#split(line, ms);
  }

  finished(id) {
    this.played(id, Infinity);
  }

  // It was talked over: what was not heard goes.
  cut(id, ms) {
    const line = this.#lines.get(id);
    if (!line) return;
    line.pieces = line.pieces.filter(({ startMs }) => startMs < ms);
    this.#split(line, Infinity);
    line.cut = true;
    line.article.classList.add("cut");
    line.coming.replaceChildren(
      "\u00a0\u2014", element("span", { class: "unseen" }, " (interrupted)"),
    );
  }

  timing(id, timing) {
    const line = this.#lines.get(id);
    if (!line || timing.wait === null) return;
    const row = ([name, ms]) => [
      element("dt", {}, name),
      element("dd", {}, milliseconds(ms)),
    ];
    const summary = `${milliseconds(timing.wait)} until it was heard`;
    const gaps = timing.gaps ? [element("dt", {}, "times it ran dry"),
      element("dd", {}, String(timing.gaps))] : [];
    line.times ??= line.article.appendChild(element("details", { class: "times" }));
    line.times.replaceChildren(
      element("summary", {}, summary),
      element("dl", {}, ...timing.parts.flatMap(row), ...timing.rest.flatMap(row), ...gaps),
    );
    this.#scroll();
  }

  #add(id, kind, who) {
    const said = element("span", { class: "said" });
    const coming = element("span", { class: "coming" });
    const words = element("p", {}, element("span", { class: "unseen" }, `${who}: `), said, coming);
    const article = element("div", { class: `line ${kind}`, "data-item": id }, words);
    const line = { article, said, coming, pieces: [], heard: 0 };
    this.#lines.set(id, line);
    this.log.append(article);
    this.#scroll();
    return line;
  }

  #split(line, heard) {
    const said = line.pieces.filter(({ startMs }) => startMs <= heard);
    const coming = line.pieces.slice(said.length);
    const join = (pieces) => pieces.map(({ text }) => text).join("");
    if (line.said.textContent !== join(said)) line.said.textContent = join(said);
    if (line.coming.textContent !== join(coming)) {
      line.coming.textContent = join(coming);
      this.#scroll();
    }
  }

  // To the end, but not for somebody who reads further up.
  #scroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.log;
    if (scrollHeight - scrollTop - clientHeight < 160) this.log.scrollTop = scrollHeight;
  }
}
