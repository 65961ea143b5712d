// The page: its elements, and one call at a time.

import { Call } from "./call.js";
import { median, milliseconds } from "./latency.js";
import { Server } from "./server.js";
import { Transcript, element } from "./transcript.js";
import { Enrolment, setLevel } from "./voices.js";

const $ = (id) => document.getElementById(id);
const server = new Server();
const transcript = new Transcript($("log"));
let call = null;
let waits = new Map(); // by reply, in milliseconds
let muted = false;
let state = ["off", "Not connected"];
let lock = null; // keeps the screen on
let connection = "off"; // what was said aloud of it last

const CONNECTION = new Set(["off", "connecting", "lost"]);

// What a call has to show.
const tell = {
  state(name, words) {
    state = [name, words];
    showState();
  },
  problem,
  microphone(there) {
    $("mute").disabled = !there;
  },
  level: (side, level) => setLevel($(`level-${side}`), side === "you" && muted ? 0 : level),
  user: (id, text) => transcript.user(id, text),
  userText: (id, text) => transcript.userText(id, text),
  reply: (id) => transcript.reply(id),
  replyText: (id, text, startMs) => transcript.replyText(id, text, startMs),
  played: (id, ms) => transcript.played(id, ms),
  finished: (id) => transcript.finished(id),
  cut: (id, ms) => transcript.cut(id, ms),
  timing(id, timing) {
    transcript.timing(id, timing);
    if (timing.wait === null) return;
    waits.set(id, timing.wait);
    const all = [...waits.values()];
    const of = all.length > 1 ? `, in the median of ${all.length}` : "";
    $("summary").textContent = `Wait for a reply: ${milliseconds(median(all))}${of}`;
  },
  voice(name) {
    if ([...$("voice").options].some((option) => option.value === name)) $("voice").value = name;
  },
  ended(words, error) {
    call = null;
    lock?.release().catch(() => {});
    lock = null;
    for (const side of ["you", "chroma"]) setLevel($(`level-${side}`), 0);
    state = ["off", "Not connected"];
    showState();
    refused(error, words);
  },
};

function showState() {
  const [name, words] = state;
  const quiet = muted && name === "ready";
  $("state").dataset.state = quiet ? "muted" : name;
  $("state-words").textContent = quiet ? "Muted" : words;
  if (CONNECTION.has(name) || connection !== "ready") sayAloud(name, words);
  const on = call !== null;
  const label = on ? "Hang up" : "Call";
  if ($("call").textContent !== label) $("call").textContent = label;
  $("call").classList.toggle("on", on);
  const talks = on && !["connecting", "lost"].includes(name);
  $("text").disabled = $("send").disabled = !talks;
  if (!on) $("mute").disabled = true;
}

// Screen readers are told of the connection, and not of every turn: somebody speaks meanwhile.
function sayAloud(name, words) {
  if (connection === "off" && name === "off") return;
  connection = CONNECTION.has(name) ? name : "ready";
  $("connection").textContent = connection === "ready" ? "Connected" : words;
}

function problem(words) {
  $("problem").textContent = words;
  $("problem").hidden = !words;
}

// Shows why the server refuses, and asks for a key if that is why.
function refused(error, words = error?.message ?? "") {
  if (error || words) problem(words);
  if (error?.status === 401) {
    $("key-box").open = true;
    $("key").focus();
  }
}

function mute(on) {
  muted = on;
  if (call) call.muted = on;
  $("mute").setAttribute("aria-pressed", String(on));
  showState();
}

async function listVoices(choose = $("voice").value) {
  try {
    const names = await server.voices();
    $("voice").replaceChildren(...names.map((name) => element("option", { value: name }, name)));
    $("voice").value = names.includes(choose) ? choose : names[0];
    return true;
  } catch (error) {
    refused(error);
    return false;
  }
}

$("call").onclick = () => {
  if (call) {
    call.hangUp();
    return;
  }
  problem("");
  transcript.clear();
  waits = new Map();
  $("summary").textContent = "";
  mute(false);
  call = new Call(server, $("voice").value, tell);
  call.run();
  stayAwake();
};

function stayAwake() {
  navigator.wakeLock?.request("screen").then((held) => {
    if (call) lock = held;
    else held.release();
  }, () => {});
}

document.addEventListener("visibilitychange", () => {
  if (!call || document.visibilityState !== "visible") return;
  call.resume();
  stayAwake();
});

$("mute").onclick = () => mute(!muted);

$("voice").onchange = () => {
  problem("");
  call?.speakAs($("voice").value);
};

$("say").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || !call) return;
  problem("");
  call.say(text);
  $("text").value = "";
};

$("key").value = server.key;
$("key-form").onsubmit = async (event) => {
  event.preventDefault();
  server.key = $("key").value;
  problem("");
  if (!(await listVoices())) return;
  $("key-box").open = false;
  $("call").focus();
};

const enrolment = new Enrolment(server, {
  async enrolled(name) {
    await listVoices(name);
    call?.speakAs(name);
  },
  closed() {
    if (call) call.muted = muted;
  },
});

$("enrol").onclick = () => {
  if (call) call.muted = true; // what is read aloud there is no question
  enrolment.open();
};

window.addEventListener("pagehide", () => call?.hangUp());
showState();
$("call").disabled = $("enrol").disabled = false;
listVoices();
