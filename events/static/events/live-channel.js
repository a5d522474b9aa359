// @ts-check
/**
 * `<live-channel channels="news alerts">`: a list that shows events as they come. Types: live-channel.d.ts.
 *
 * Attributes
 *   channels          names with spaces between them; a change opens a new stream, which goes on from the cursor
 *   limit             rows that are kept, and events that a pause holds back: 100 unless given, 500 at most
 *   src               the stream's URL: /events/stream/ unless given
 *   cursor            where the page was rendered: what was published after it comes
 *   replay            what channels give to a new stream comes, too
 *   share             tabs of one visitor share a connection
 *   persist           the cursor outlives a reload; its value is the name to keep it under
 *   pause-when-hidden no connection while the page is hidden
 *   credentials       as `fetch` has it
 *   palette           names in the order in which they get the eight colours, if not that of `channels`
 *   data-text-…       what it says, in another language: the keys of TEXTS with hyphens, `data-text-reset-epoch`
 * It sets `data-state` (connecting, live, reconnecting, offline, paused, closed), and `data-paused` after "Pause".
 *
 * Children: rows, newest first. Those that the server rendered, with `data-event-id`, are its first. A `<template>`
 * says how a row looks: elements in it with `data-field="time"`, `channel`, `event`, `data`, `id` or a path such as
 * `data.title` get the text. Slots: `heading` above the bar, `before` between bar and list, `empty` for no rows.
 *
 * Parts: bar with state, mark and status; figures with figure, number (also rate, count), unit and waiting; controls
 * with button (also pause, clear, retry); notice and notice-text; jump, list, empty; summary, which is only read out.
 *
 * Events, which bubble out of every shadow: `live-event` for each event of the stream, `live-status`, `live-reset`, and
 * `live-clear` when the list was emptied.
 *
 * Nothing here parses HTML or sets a style attribute, so a page may answer with `script-src 'self'; style-src 'self'`.
 *
 * @module events/live-channel
 * @import { EventStream, StreamEvent, StreamReset, StreamStatus } from "./live-events.js"
 * @typedef {"connecting" | "live" | "reconnecting" | "offline" | "paused" | "closed"} State
 * @typedef {{ kind: "text" | "value", text: string, rest: number }
 *   | { kind: "fields", fields: [string, string][], rest: number }} Body
 * @typedef {{ id: string, channel: string, event: string, at: Date, body: Body | null, values: string[] }} Message
 * @typedef {{ content: DocumentFragment, fields: string[] }} Pattern what a `<template>` asks for
 */

import { openStream, StreamError } from "./live-events.js";

/** What one element may hold, whatever arrives. */
const LIMIT = {
  list: 500, // rows, and events that wait behind a pause
  text: 4000, // characters of one row, and of one field of a template
  fields: 24, // keys of one row
  field: 240, // characters of one key's value
};

/** Rows of one frame: more would hold the page up. */
const BATCH = 30;
/** Milliseconds between frames that paint: for a reader, and for what is left of a burst. */
const PAUSE = 100;
const PAUSE_IN_A_BURST = 32;
/** Milliseconds after a burst until the rows that were out of view come back into the document. */
const CALM = 300;

/** Seconds between two spoken summaries while events come too fast to be read out one by one. */
const SUMMARY = 15;

/** Milliseconds without a connection after which it is said what is wrong: most are back before that. */
const TROUBLE = 5000;

/** Seconds that the rate is counted over. */
const SECONDS = 5;

/** English, and the list of what a template may translate with `data-text-…`. */
const TEXTS = {
  connecting: "Connecting…",
  live: "Live",
  paused: "Paused",
  reconnecting: "Reconnecting since {time}…",
  offline: "Offline since {time}",
  closed: "Closed: {reason}",
  signedOut: "you are not signed in",
  signedOutHelp: "Sign in, then try again.",
  forbidden: "you may not read it",
  forbiddenHelp: "A channel does not exist or is not open to you, or you have been signed out.",
  gone: "there is no such stream",
  goneHelp: "The server knows no stream at this address ({error}).",
  refused: "the server refused this stream",
  refusedHelp: "The server’s answer: {error}",
  ended: "the server has ended it",
  stoppedHelp: "The server ended this stream and asked not to be called again.",
  offlineHelp: "This device has no network. The stream goes on where it stopped as soon as there is one.",
  awayHelp: "The server cannot be reached at the moment. It is tried again by itself.",
  troubleHelp: "There is no connection at the moment ({error}). It is tried again by itself.",
  none: "No channel chosen",
  noneHelp: "Choose at least one channel.",
  perSecond: "per second",
  received: "received",
  pause: "Pause",
  resume: "Resume",
  clear: "Clear",
  retry: "Try again",
  list: "Messages, newest first",
  empty: "Waiting for the first message…",
  waiting: "{n} waiting",
  waitingCapped: "{n} waiting, the newest {kept} are kept",
  above: "{n} new above",
  summary: "New messages: {n}",
  more: "… and {n} more",
  moreText: "… and {n} more characters",
  resetTrimmed: "Some messages are missing here: they are older than what the server keeps. Channels: {channels}",
  resetEpoch: "Some messages may be missing here: the server’s log was started anew. Channels: {channels}",
  resetUnknown:
    "Some messages may be missing here: the server does not know where this page left off. Channels: {channels}",
  stopped: "The server ended this stream: {reason}",
  reasonSwitchedOff: "a channel was switched off",
  reasonRevoked: "you may not read it any more",
  reasonDisconnected: "the site has disconnected you",
};

// The colours are those of live.css where a page has it: rules of a page win over :host.
const STYLE = `
:host {
  --_panel: var(--events-panel, Canvas);
  --_ink: var(--events-ink, CanvasText);
  --_soft: var(--events-soft, color-mix(in srgb, CanvasText 72%, Canvas));
  --_line: var(--events-line, color-mix(in srgb, CanvasText 18%, Canvas));
  --_edge: var(--events-edge, color-mix(in srgb, CanvasText 55%, Canvas));
  --_accent: var(--events-accent, light-dark(#0b6b45, #5fdca2));
  --_warn: var(--events-warn, light-dark(#8a5200, #f2b95c));
  --_warn-ground: var(--events-warn-ground, light-dark(#fdf3e0, #2a2112));
  --_bad: var(--events-bad, light-dark(#b3261e, #ff9b92));
  --_bad-ground: var(--events-bad-ground, light-dark(#fcecea, #2e1715));
  --_sans: var(--events-font, system-ui, sans-serif);
  --_corner: var(--events-corner, 6px);
  box-sizing: border-box;
  display: block;
  padding: 0 1em;
  border: 1px solid var(--_line);
  border-radius: calc(var(--_corner) * 1.5);
  background: var(--_panel);
  color: var(--_ink);
  font-family: var(--_sans);
  font-size: var(--events-size, 1em);
  font-style: normal;
  font-weight: 400;
  font-variant-numeric: tabular-nums;
  letter-spacing: normal;
  line-height: 1.5;
  text-align: start;
  text-transform: none;
  word-spacing: normal;
  container-type: inline-size;
}
:host([hidden]), [hidden] { display: none !important; }
* { box-sizing: border-box; }
p { margin: 0; }
:focus-visible { outline: 2px solid var(--_accent); outline-offset: 2px; border-radius: 3px; }

[part="bar"] {
  display: flex;
  flex-wrap: wrap;
  align-items: center;
  gap: .35em 1.1em;
  padding: .75em 0;
  border-bottom: 1px solid var(--_line);
}
[part="state"] { display: flex; flex: 1 1 7em; align-items: baseline; gap: .55em; min-width: 0; }
[part="status"] { font-weight: 650; letter-spacing: -.01em; line-height: 1.25; overflow-wrap: anywhere; }

/* The shape says it as well as the colour; the words say it best. */
[part="mark"] { flex: none; width: .75em; height: .75em; border: 2px solid var(--_soft); border-radius: 50%; }
:host([data-state="live"]) [part="mark"] { border-color: var(--_accent); background: var(--_accent); }
:host([data-state$="connecting"]) [part="mark"] {
  border-inline-end-color: transparent;
  animation: turn 1.2s linear infinite;
}
:host([data-state="reconnecting"]) [part="mark"] { border-color: var(--_warn); border-inline-end-color: transparent; }
:host([data-state="paused"]) [part="mark"] {
  width: .65em;
  border: solid var(--_ink);
  border-width: 0 .22em;
  border-radius: 0;
}
/* Where no channel is chosen, nothing is wrong. */
:host([data-state="closed"][channels]:not([channels=""])) [part="mark"] {
  border-color: var(--_bad);
  border-radius: 1px;
  background: var(--_bad);
}
:host([data-state="offline"]) [part="mark"] {
  border-color: var(--_warn);
  border-radius: 1px;
  transform: rotate(45deg);
}
:host(:is([data-state="reconnecting"], [data-state="offline"])) [part="status"] { color: var(--_warn); }
:host([data-state="closed"][channels]:not([channels=""])) [part="status"] { color: var(--_bad); }
@keyframes turn { to { transform: rotate(1turn); } }

[part="figures"] { display: flex; flex-wrap: wrap; gap: 0 .9em; align-items: baseline; }
[part="figure"] { white-space: nowrap; }
[part~="number"] { font-size: .9375em; font-weight: 650; letter-spacing: -.01em; }
[part="unit"] { color: var(--_soft); font-size: .8125em; }
[part="waiting"] { font-size: .875em; font-weight: 650; }
[part="controls"] { display: flex; flex-wrap: wrap; align-items: center; gap: .5em; }

[part~="button"] {
  display: inline-flex;
  align-items: center;
  justify-content: center;
  min-height: 2.25em;
  margin: 0;
  padding: 0 .8em;
  border: 1px solid var(--_edge);
  border-radius: var(--_corner);
  background: transparent;
  color: var(--_ink);
  font: 550 .875em/1.2 var(--_sans);
  cursor: pointer;
}
[part~="button"]:hover { border-color: var(--_ink); background: color-mix(in srgb, var(--_ink) 7%, transparent); }
[part~="button"]:focus-visible { border-radius: var(--_corner); }
[part~="pause"] { min-width: 5.5em; }

[part="notice"] {
  display: flex;
  flex-wrap: wrap;
  align-items: center;
  gap: .75em 1.25em;
  margin: 1em 0;
  padding: .85em 1em;
  border-radius: var(--_corner);
  background: var(--_warn-ground);
}
:host([data-state="closed"][channels]:not([channels=""])) [part="notice"] { background: var(--_bad-ground); }
[part="notice-text"] { flex: 1 1 16em; font-size: .9375em; text-wrap: pretty; overflow-wrap: anywhere; }

[part="list"] {
  max-height: var(--events-height, 24em);
  /* The last row's line is the frame's: a rule for the last child would be looked at again for every new row. */
  margin: 0 -1em -1px;
  padding: 0 1em;
  overflow-y: auto;
  overscroll-behavior: contain;
  scroll-margin-top: 7em;
}
[part="list"]:focus-visible { outline-offset: -2px; }
[part="empty"] { padding: 1.5em 0; color: var(--_soft); }
::slotted([data-event-id]) { content-visibility: auto; contain-intrinsic-size: auto 2.75em; }
::slotted(:is([data-event-id], .events-note)) {
  padding: .6em 0;
  border-bottom: 1px solid var(--_line);
  overflow-wrap: anywhere;
}

[part="jump"] {
  position: relative;
  z-index: 2;
  display: block;
  width: max-content;
  min-height: 2.4em;
  margin: .5em auto -2.9em;
  padding: 0 1.1em;
  border: 0;
  border-radius: 2em;
  background: var(--_ink);
  color: var(--_panel);
  font: 550 .875em/1 var(--_sans);
  cursor: pointer;
}
[part="jump"]::before { content: "↑ " / ""; }
[part="jump"]:focus-visible { border-radius: 2em; }

[part="summary"] {
  position: absolute;
  width: 1px;
  height: 1px;
  margin: -1px;
  overflow: hidden;
  clip-path: inset(50%);
  white-space: nowrap;
}

@container (max-width: 35.99em) {
  [part="state"] { flex-basis: auto; }
  [part="figures"] { order: 3; flex-basis: 100%; }
}
@media (prefers-reduced-motion: reduce) { [part="mark"] { animation: none !important; } }
@media (forced-colors: active) {
  [part="mark"] { forced-color-adjust: none; }
  [part="notice"] { border: 1px solid CanvasText; }
}
`;

/** @type {CSSStyleSheet | undefined} */
let sheet;

/** One for all elements; made like this it needs no permission from `style-src`. */
const styleSheet = () => {
  if (!sheet) {
    sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
  }
  return sheet;
};

/** The page's language, undefined where `Intl` would refuse it. Many a page has gettext's name, `en_US`. */
const language = () => {
  try {
    return Intl.getCanonicalLocales(document.documentElement.lang.replaceAll("_", "-"))[0];
  } catch {
    return undefined;
  }
};

const makeFormats = () => {
  const lang = language();
  return {
    clock: new Intl.DateTimeFormat(lang, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" }),
    day: new Intl.DateTimeFormat(lang, { day: "numeric", month: "short" }),
    whole: new Intl.NumberFormat(lang, { maximumFractionDigits: 0 }),
    tenth: new Intl.NumberFormat(lang, { minimumFractionDigits: 1, maximumFractionDigits: 1 }),
  };
};

/** @type {ReturnType<typeof makeFormats> | undefined} */
let formats;
/** Made when first needed: a server that renders components may import this module, too. */
const format = () => (formats ??= makeFormats());

/** @param {number} value */
const whole = (value) => format().whole.format(value);

/** The time of day, with the day unless it is today. @param {Date} at */
const time = (at) => {
  const { clock, day } = format();
  const isToday = at.toDateString() === new Date().toDateString();
  return isToday ? clock.format(at) : `${day.format(at)} ${clock.format(at)}`;
};

/** @param {string} text @param {Record<string, string>} values */
const fill = (text, values) => text.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);

/** Writes only what changed: an equal write would still make assistive technology look again.
 * @param {Element} element @param {string} text */
const say = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

/** @param {string} tag @param {string} className @param {string} [text] */
const make = (tag, className, text) => {
  const element = document.createElement(tag);
  element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};

/** @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag @param {string} names @param {Record<string, string>} [attributes]
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[Tag]} */
const part = (tag, names, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  if (names) element.setAttribute("part", names);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

/** @param {string | null} text */
const words = (text) => [...new Set(text?.split(/\s+/).filter(Boolean))];

/** @param {unknown} value */
const compact = (value) => (typeof value === "string" ? value : (JSON.stringify(value) ?? ""));

/** What of an event's data is kept for showing, cut to the limits when it arrives, so that big data do not pile up.
 * @param {unknown} data @returns {Body} */
const summarize = (data) => {
  /** @param {string} text @param {"text" | "value"} kind @returns {Body} */
  const cut = (text, kind) => ({ kind, text: text.slice(0, LIMIT.text), rest: Math.max(0, text.length - LIMIT.text) });
  if (typeof data === "string") return cut(data, "text");
  if (data === null || typeof data !== "object" || Array.isArray(data)) return cut(compact(data), "value");
  const entries = Object.entries(data);
  if (!entries.length) return cut("{}", "value");
  return {
    kind: "fields",
    fields: entries.slice(0, LIMIT.fields).map(([key, value]) => {
      const text = compact(value);
      return [key.slice(0, LIMIT.field), text.length > LIMIT.field ? `${text.slice(0, LIMIT.field)}…` : text];
    }),
    rest: Math.max(0, entries.length - LIMIT.fields),
  };
};

/** What a template's field shows; "" where the event has nothing of that name.
 * @param {StreamEvent} event @param {string} field */
const valueOf = (event, field) => {
  /** @type {any} */
  let value = event;
  for (const key of field.split(".")) {
    if (value === null || typeof value !== "object" || !Object.hasOwn(value, key)) return "";
    value = value[key];
  }
  return compact(value).slice(0, LIMIT.text);
};

/** @param {Date} at */
const clockOf = (at) => {
  const clock = make("time", "events-time", time(at));
  clock.setAttribute("datetime", at.toISOString());
  return clock;
};

/** Whether an event with cursor `a` comes before one with cursor `b`: known of one log only.
 * @param {string} a @param {string} b */
const isBefore = (a, b) => {
  const [ofA, ofB] = [a.lastIndexOf("-"), b.lastIndexOf("-")];
  return ofA > 0 && a.slice(0, ofA) === b.slice(0, ofB) && Number(a.slice(ofA + 1)) < Number(b.slice(ofB + 1));
};

/** Events per second, over a few whole seconds and the one that has begun; over less just after the start. */
class Rate {
  #counts = new Uint32Array(SECONDS + 1);
  #second = Math.floor(performance.now() / 1000);
  #since = performance.now();

  add() {
    this.#advance();
    this.#counts[this.#second % this.#counts.length]++;
  }

  get value() {
    this.#advance();
    const now = performance.now();
    const sum = this.#counts.reduce((all, count) => all + count, 0);
    return sum / Math.max(1, Math.min(SECONDS + (now / 1000 - this.#second), (now - this.#since) / 1000));
  }

  #advance() {
    const now = Math.floor(performance.now() / 1000);
    for (let i = Math.max(this.#second + 1, now - SECONDS); i <= now; i++) this.#counts[i % this.#counts.length] = 0;
    this.#second = now;
  }
}

// Where there is no page (a server that renders components), the module can be imported and does nothing.
const Base = globalThis.HTMLElement ?? /** @type {typeof HTMLElement} */ (/** @type {unknown} */ (class {}));

export class LiveChannel extends Base {
  static observedAttributes = ["channels", "limit", "src"];

  // The stream
  /** @type {EventStream | null} */
  #stream = null;
  /** @type {StreamStatus} */
  #status = "connecting";
  /** @type {StreamError | null} */
  #error = null;
  #reason = "";
  /** Where the next stream goes on: of the last stream, or of what it brought. Null before the first, for which the
   * attributes say it. @type {Pick<EventStream, "cursor" | "replays"> | null} */
  #from = null;
  /** @type {Date | null} */
  #lostAt = null;

  // The list
  /** Those in the document, newest first. @type {Element[]} */
  #rows = [];
  /** The older ones that a burst keeps out of the document, newest first. @type {(Element | Message)[]} */
  #below = [];
  /** @type {Set<string>} */
  #ids = new Set();
  /** @type {Message[]} */
  #pending = [];
  /** @type {Pattern | null} */
  #pattern = null;
  #limit = 100;
  #overflow = 0;
  #isPaused = false;
  #unseen = 0;
  #painted = 0;
  #burstAt = 0;
  #frame = 0;

  // Figures
  #total = 0;
  #unspoken = 0;
  #spokenAt = 0;
  #rate = new Rate();

  // Life
  #isRunning = false;
  #isSettling = false;
  #isStale = false;
  #timer = 0;
  #abort = new AbortController();
  #texts = TEXTS;

  #mark = part("span", "mark", { "aria-hidden": "true" });
  #state = part("span", "status", { role: "status" });
  #speed = part("span", "number rate", {}, "0.0");
  #perSecond = part("span", "unit");
  #count = part("span", "number count", {}, "0");
  #received = part("span", "unit");
  #waiting = part("span", "waiting", { hidden: "" });
  #pauseButton = part("button", "button pause", { type: "button" });
  #clearButton = part("button", "button clear", { type: "button" });
  #noticeText = part("p", "notice-text");
  #retryButton = part("button", "button retry", { type: "button", hidden: "" });
  #notice = part("div", "notice", { hidden: "" }, this.#noticeText, this.#retryButton);
  #bar = part(
    "div",
    "bar",
    {},
    part("p", "state", {}, this.#mark, this.#state),
    part(
      "p",
      "figures",
      {},
      part("span", "figure", {}, this.#speed, " ", this.#perSecond),
      part("span", "figure", {}, this.#count, " ", this.#received),
      this.#waiting,
    ),
    part("p", "controls", {}, this.#pauseButton, this.#clearButton),
  );
  #jump = part("button", "jump", { type: "button", hidden: "" });
  #list = part("div", "list", { role: "log", "aria-live": "polite", tabindex: "0" }, part("slot", ""));
  #emptySlot = part("slot", "", { name: "empty" });
  #empty = part("div", "empty", {}, this.#emptySlot);
  #summary = part("p", "summary", { role: "status" });

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open" });
    root.adoptedStyleSheets = [styleSheet()];
    root.append(
      part("slot", "", { name: "heading" }),
      this.#bar,
      this.#notice,
      part("slot", "", { name: "before" }),
      this.#jump,
      this.#list,
      this.#empty,
      this.#summary,
    );
    this.#pauseButton.addEventListener("click", () => (this.paused = !this.paused));
    this.#clearButton.addEventListener("click", () => this.clear());
    this.#retryButton.addEventListener("click", () => {
      this.#open();
      this.#pauseButton.focus();
    });
    this.#jump.addEventListener("click", () => this.#goUp());
    this.#list.addEventListener("scroll", () => this.#look());
  }

  // For scripts

  /** The channels that it follows: the attribute as an array. */
  get channels() {
    return words(this.getAttribute("channels"));
  }

  set channels(names) {
    if (!Array.isArray(names)) throw new TypeError(`<live-channel>: channels is an array of names, not ${names}`);
    this.setAttribute("channels", names.join(" "));
  }

  /** The stream that it shows, null while there is none. */
  get stream() {
    return this.#stream;
  }

  /** Whether the list stands still, and what comes waits. */
  get paused() {
    return this.#isPaused;
  }

  set paused(isPaused) {
    this.#isPaused = Boolean(isPaused);
    this.toggleAttribute("data-paused", this.#isPaused);
    if (!this.#isPaused) this.#schedule();
    this.#show();
    this.#figures();
  }

  /** Takes away all rows, what waits, and the counts. */
  clear() {
    for (const row of this.#rows) row.remove();
    this.#rows = [];
    this.#below = [];
    this.#pending = [];
    this.#ids.clear();
    this.#overflow = this.#total = this.#unseen = this.#unspoken = 0;
    this.#cap();
    this.#figures();
    this.#look();
    this.#dispatch("live-clear", null);
  }

  // Life

  connectedCallback() {
    // What a script has set before there was a class for it.
    for (const name of /** @type {const} */ (["channels", "paused"])) {
      if (!Object.hasOwn(this, name)) continue;
      const value = this[name];
      delete (/** @type {any} */ (this)[name]);
      /** @type {any} */ (this)[name] = value;
    }
    this.#settle();
  }

  disconnectedCallback() {
    this.#settle();
  }

  /** @param {string} name @param {string | null} before @param {string | null} now */
  attributeChangedCallback(name, before, now) {
    if (name === "limit") {
      this.#limit = Math.max(1, Math.min(Math.floor(Number(now)) || 100, LIMIT.list));
      this.#recount();
      this.#cap();
    } else if (before !== now) {
      this.#isStale = true;
      this.#settle();
    }
  }

  /** Once, after all that happens now: an element that is moved keeps its stream. */
  #settle() {
    if (this.#isSettling) return;
    this.#isSettling = true;
    queueMicrotask(() => {
      this.#isSettling = false;
      if (!this.isConnected) return this.#stop();
      if (!this.#isRunning) this.#start();
      else if (this.#isStale) this.#open();
    });
  }

  #start() {
    this.#isRunning = true;
    this.#translate();
    this.#adopt();
    this.#abort = new AbortController();
    const { signal } = this.#abort;
    // One that was made while its page was still being read.
    if (document.readyState === "loading") {
      document.addEventListener("DOMContentLoaded", () => this.#adopt(), { signal });
    }
    document.addEventListener("scroll", () => this.#look(), { signal, capture: true, passive: true });
    for (const type of ["online", "offline"]) window.addEventListener(type, () => this.#show(), { signal });
    this.#timer = window.setInterval(() => this.#tick(), 500);
    this.#open();
    this.#schedule();
  }

  #stop() {
    this.#isRunning = false;
    this.#abort.abort();
    this.#close();
    this.#status = "connecting";
    this.#lostAt = null;
    clearInterval(this.#timer);
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
  }

  #translate() {
    this.#texts = { ...TEXTS };
    for (const name of /** @type {(keyof typeof TEXTS)[]} */ (Object.keys(TEXTS))) {
      this.#texts[name] = this.dataset[`text${name[0].toUpperCase()}${name.slice(1)}`] ?? TEXTS[name];
    }
    const texts = this.#texts;
    say(this.#perSecond, texts.perSecond);
    say(this.#received, texts.received);
    say(this.#clearButton, texts.clear);
    say(this.#retryButton, texts.retry);
    say(this.#emptySlot, texts.empty);
    this.#list.setAttribute("aria-label", texts.list);
  }

  /** Takes the rows that the server rendered for its own, and reads how a row is to look. */
  #adopt() {
    const template = [...this.children].find((child) => child instanceof HTMLTemplateElement && !child.slot);
    this.#pattern = template instanceof HTMLTemplateElement ? patternOf(template) : null;
    this.#rows = [...this.children].filter(
      (child) => child instanceof HTMLElement && (child.dataset.eventId || this.#rows.includes(child)),
    );
    for (const row of /** @type {HTMLElement[]} */ (this.#rows)) {
      const { eventId } = row.dataset;
      if (!eventId || this.#ids.has(eventId)) continue;
      this.#ids.add(eventId);
      const channel = row.querySelector(".events-channel")?.textContent;
      if (channel && !row.dataset.hue) row.dataset.hue = this.#hue(channel);
      // The server does not know the visitor's clock.
      const view = row.querySelector("time.events-time");
      const at = new Date(view?.getAttribute("datetime") ?? "");
      if (view && Number.isFinite(at.getTime())) say(view, time(at));
    }
    this.#cap();
  }

  // The connection

  #open() {
    this.#close();
    const channels = this.channels;
    if (!channels.length) return this.#changed("closed", null);
    const src = this.getAttribute("src") || "/events/stream/";
    const persist = this.getAttribute("persist");
    const credentials = this.getAttribute("credentials");
    /** @type {EventStream} */
    let stream;
    try {
      stream = openStream(src, {
        channels,
        lastEventId: this.#from ? this.#from.cursor : (this.getAttribute("cursor") ?? ""),
        replay: this.#from ? this.#from.replays : this.hasAttribute("replay"),
        persist: persist === "" ? true : (persist ?? false),
        share: this.hasAttribute("share") ? "tabs" : null,
        pauseWhenHidden: this.hasAttribute("pause-when-hidden"),
        ...(credentials && { credentials: /** @type {RequestCredentials} */ (credentials) }),
      });
    } catch (error) {
      console.error(`<live-channel src="${src}">:`, error);
      return this.#changed("closed", new StreamError(/** @type {Error} */ (error).message));
    }
    this.#stream = this.#from = stream;
    /** @type {typeof stream.addEventListener} */
    const on = (/** @type {string} */ type, /** @type {any} */ handle) =>
      stream.addEventListener(type, (event) => {
        if (this.#stream === stream) handle(event);
      });
    on("message", ({ detail }) => this.#receive(detail));
    on("stream-reset", ({ detail }) => this.#reset(detail));
    on("stream-closed", ({ detail }) => this.#stopped(detail.reason));
    on("status", ({ detail: { status, error } }) => {
      if (status !== "closed") return this.#changed(status, error);
      // The reason, where there is one, comes with the next event of the stream.
      queueMicrotask(() => {
        if (this.#stream === stream) this.#changed(status, error);
      });
    });
    this.#changed("connecting", null);
  }

  #close() {
    const stream = this.#stream;
    this.#stream = null;
    this.#isStale = false;
    this.#reason = "";
    stream?.close();
  }

  /** @param {StreamStatus} status @param {StreamError | null} error */
  #changed(status, error) {
    if (status === "open" || status === "closed") this.#lostAt = null;
    if (status === "reconnecting") this.#lostAt ??= new Date();
    this.#status = status;
    this.#error = error;
    this.#show();
    this.#dispatch("live-status", { status, error, reason: this.#reason });
  }

  /** @param {StreamReset} reset */
  #reset(reset) {
    // Where that leaves it, the stream knows when this was handled.
    this.#from = this.#stream;
    const { resetTrimmed, resetEpoch, resetUnknown } = this.#texts;
    const text = { trimmed: resetTrimmed, epoch: resetEpoch }[String(reset.reason)] ?? resetUnknown;
    const channels = Array.isArray(reset.channels) && reset.channels.length ? reset.channels : this.channels;
    this.#note(fill(text, { channels: channels.join(", ") }));
    this.#dispatch("live-reset", reset);
  }

  /** @param {string} reason */
  #stopped(reason) {
    this.#reason = reason;
    this.#note(fill(this.#texts.stopped, { reason: this.#reasonText }));
  }

  /** A reason of a later server's is shown as it is: better a bare word than none. */
  get #reasonText() {
    const { reasonSwitchedOff, reasonRevoked, reasonDisconnected } = this.#texts;
    const known = { "switched-off": reasonSwitchedOff, revoked: reasonRevoked, disconnected: reasonDisconnected };
    return known[/** @type {keyof typeof known} */ (this.#reason)] ?? this.#reason;
  }

  /** Why there is no stream, in a few words, and what that means. @returns {[string, string]} */
  get #why() {
    const texts = this.#texts;
    const { status, message: error } = this.#error ?? { status: 0, message: "" };
    // What was asked for cannot be: no server has said anything.
    if (!this.#stream) return [error, ""];
    if (this.#reason) return [this.#reasonText, texts.stoppedHelp];
    if (!this.#error) return [texts.ended, texts.stoppedHelp];
    if (status === 401) return [texts.signedOut, texts.signedOutHelp];
    if (status === 403) return [texts.forbidden, texts.forbiddenHelp];
    if (status === 404 || status === 410) return [texts.gone, fill(texts.goneHelp, { error })];
    return [texts.refused, fill(texts.refusedHelp, { error })];
  }

  /** Says the state in words, and in `data-state` for whoever styles or tests it. */
  #show() {
    if (!this.#isRunning) return;
    const texts = this.#texts;
    const isLost = this.#status === "reconnecting" || (this.#status === "connecting" && this.#stream !== null);
    // A browser can be wrong about the network (a server on this machine needs none), so an open stream is believed.
    const isOffline = isLost && navigator.onLine === false;
    if (isOffline) this.#lostAt ??= new Date();
    /** @type {State} */
    let state = this.#status === "open" ? "live" : this.#status;
    if (isOffline) state = "offline";
    // Opening again while it was lost is still the same loss to who is looking at it.
    else if (isLost && this.#lostAt) state = "reconnecting";
    else if (state === "live" && this.#isPaused) state = "paused";
    if (this.dataset.state !== state) this.dataset.state = state;

    const isNone = state === "closed" && !this.#stream && !this.#error;
    const [reason, why] = state === "closed" ? this.#why : ["", ""];
    const lostAt = this.#lostAt;
    const error = this.#error?.message ?? "";
    say(this.#state, isNone ? texts.none : fill(texts[state], { time: lostAt ? time(lostAt) : "", reason }));
    const isTrouble = state === "reconnecting" && !!error && !!lostAt && Date.now() - lostAt.getTime() >= TROUBLE;
    // What a browser says of a server that is away says nothing to readers; it is in the title.
    const help = this.#error?.status ? texts.troubleHelp : texts.awayHelp;
    const trouble = isTrouble ? fill(help, { error }) : "";
    const notice = isNone ? texts.noneHelp : isOffline ? texts.offlineHelp : why || trouble;
    if (state === "reconnecting" && error) this.#state.title = error;
    else this.#state.removeAttribute("title");
    this.#notice.hidden = !notice;
    say(this.#noticeText, notice);
    this.#retryButton.hidden = isNone || !(state === "closed" || isTrouble);
    say(this.#pauseButton, this.#isPaused ? texts.resume : texts.pause);
  }

  // What arrives

  /** @param {StreamEvent} event */
  #receive(event) {
    const { id, channel, event: type, data } = event;
    // Not when it was handled: a loop over the stream may still be at it when the next one is opened.
    if (id) this.#from = { cursor: id, replays: false };
    this.#rate.add();
    this.#total++;
    if (!id || !this.#ids.has(id)) {
      if (id) this.#ids.add(id);
      this.#unspoken++;
      const fields = this.#pattern?.fields;
      const body = fields ? null : summarize(data);
      const values = fields ? fields.map((field) => valueOf(event, field)) : [];
      this.#pending.push({ id, channel, event: type, at: new Date(), body, values });
      // Cut in steps: shifting an array of 500 for every event of a burst would cost more than showing it.
      if (this.#pending.length >= this.#limit * 2) this.#trim();
      this.#schedule();
    }
    this.#dispatch("live-event", event);
  }

  /** Lets go of what would not be shown. */
  #trim() {
    const excess = this.#pending.splice(0, Math.max(0, this.#pending.length - this.#limit));
    for (const { id } of excess) this.#ids.delete(id);
    this.#overflow += excess.length;
  }

  #schedule() {
    const isWaiting = this.#below.length > 0 || (this.#pending.length > 0 && !this.#isPaused);
    if (isWaiting && this.#isRunning && !this.#frame) this.#frame = requestAnimationFrame((now) => this.#paint(now));
  }

  /** @param {number} now */
  #paint(now) {
    this.#frame = 0;
    this.#recount();
    const pending = this.#isPaused ? 0 : this.#pending.length;
    // Ten times a second is more than can be read; the time between belongs to the page.
    if (pending === 1 || (pending && now - this.#painted >= PAUSE)) {
      this.#painted = now;
      this.#trim();
      this.#overflow = 0;
      if (this.#pending.length > BATCH && this.#isAtNewest()) {
        this.#burstAt = now;
        this.#add(this.#pending.splice(0), this.#room());
      } else {
        // The oldest first, so that a burst comes in over some frames and each stays short.
        this.#add(this.#pending.splice(0, BATCH));
        if (this.#pending.length) this.#painted -= PAUSE - PAUSE_IN_A_BURST;
      }
    }
    if (this.#below.length && (now - this.#burstAt >= CALM || !this.#isAtNewest())) this.#fill(BATCH);
    this.#schedule();
  }

  /** A script of the page's own may have taken rows away. */
  #recount() {
    this.#rows = this.#rows.filter((row) => row.parentNode === this);
  }

  /** How many rows fill the view: a burst needs no others, and they would be most of what it costs. */
  #room() {
    const isFull = this.#scrolls && this.#list.scrollHeight > this.#list.clientHeight;
    const bottom = Math.min(isFull ? this.#list.getBoundingClientRect().bottom : Infinity, window.innerHeight);
    let room = BATCH;
    while (room < this.#rows.length && this.#rows[room].getBoundingClientRect().top < bottom) room++;
    const last = this.#rows[room - 1];
    const isTooFew = this.#below.length > 0 && last?.getBoundingClientRect().bottom < bottom;
    return isTooFew ? room * 2 : room;
  }

  /** @param {Message[]} messages in their order @param {number} [room] rows that there may be in the document */
  #add(messages, room = this.#limit) {
    const newest = this.#rows.find((row) => row instanceof HTMLElement && row.dataset.eventId);
    const top = newest instanceof HTMLElement ? (newest.dataset.eventId ?? "") : "";
    const isFresh = messages.length <= 3;
    /** @type {Message[]} */
    const fresh = [];
    for (const message of messages) {
      // What a channel replays can be older than what the server rendered.
      if (top && isBefore(message.id, top)) this.#insertBelow(this.#row(message));
      else fresh.unshift(message);
    }
    if (fresh.length) {
      const rows = fresh.slice(0, room).map((message) => this.#row(message));
      if (isFresh) for (const row of rows) row.dataset.fresh = "";
      this.#insert(rows, fresh.length, room, fresh.slice(room));
    } else this.#cap();
    this.#figures();
  }

  /** @param {HTMLElement} row of an event that is not the newest */
  #insertBelow(row) {
    this.#fill(this.#below.length);
    const id = row.dataset.eventId ?? "";
    const index = this.#rows.findIndex((other) => {
      const of = other instanceof HTMLElement ? other.dataset.eventId : "";
      return !!of && !isBefore(id, of);
    });
    if (index < 0) this.#append([row]);
    else {
      this.#rows[index].before(row);
      this.#rows.splice(index, 0, row);
    }
  }

  /** @param {Element[]} rows older than all others */
  #append(rows) {
    const last = this.#rows.at(-1);
    if (last) last.after(...rows);
    else this.prepend(...rows);
    this.#rows.push(...rows);
  }

  /** Brings rows into the document that a burst has kept out of it. @param {number} count */
  #fill(count) {
    this.#append(this.#below.splice(0, count).map((each) => (each instanceof Element ? each : this.#row(each))));
  }

  /** Newest first. Who looks at the newest sees them come in; who has scrolled down to read is left in peace.
   * @param {HTMLElement[]} rows @param {number} count of those to be told of
   * @param {number} [room] rows that there may be in the document
   * @param {Message[]} [rest] what comes after `rows` and has no room */
  #insert(rows, count, room = this.#limit, rest = []) {
    const isAtNewest = this.#isAtNewest();
    this.#rows.unshift(...rows);
    const out = this.#rows.splice(room);
    for (const row of out) row.remove();
    this.#below.unshift(...rest, ...out);
    this.#cap();
    const fragment = document.createDocumentFragment();
    fragment.append(...this.#rows.slice(0, rows.length));
    this.prepend(fragment);
    this.#unseen = isAtNewest ? 0 : this.#unseen + count;
    this.#look();
  }

  /** No more rows than the limit, and ids of those that are gone for a while only. */
  #cap() {
    for (const row of this.#rows.splice(this.#limit)) row.remove();
    this.#below.splice(this.#limit - this.#rows.length);
    if (this.#ids.size > LIMIT.list * 4) {
      this.#ids = new Set(this.#pending.map(({ id }) => id));
      for (const each of [...this.#rows, ...this.#below]) {
        if (!(each instanceof Element)) this.#ids.add(each.id);
        else if (each instanceof HTMLElement) this.#ids.add(each.dataset.eventId ?? "");
      }
    }
    this.#empty.hidden = this.#rows.length > 0;
  }

  get #scrolls() {
    return getComputedStyle(this.#list).overflowY === "auto";
  }

  #isAtNewest() {
    if (this.#scrolls) return this.#list.scrollTop < 8;
    return this.#list.getBoundingClientRect().top >= this.#bar.getBoundingClientRect().bottom - 8;
  }

  #look() {
    if (!this.#unseen && this.#jump.hidden) return;
    if (this.#isAtNewest()) this.#unseen = 0;
    this.#jump.hidden = !this.#unseen;
    say(this.#jump, fill(this.#texts.above, { n: whole(this.#unseen) }));
  }

  #goUp() {
    const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
    if (this.#scrolls) this.#list.scrollTo({ top: 0, behavior });
    else this.#list.scrollIntoView({ block: "start", behavior });
    this.#list.focus({ preventScroll: true });
  }

  /** The colour of a channel, by its place in the list: a help for the eye beside the name, never instead of it.
   * @param {string} channel */
  #hue(channel) {
    const names = words(this.getAttribute("palette") ?? this.getAttribute("channels"));
    const index = names.indexOf(channel);
    return String((index < 0 ? names.length : index) % 8);
  }

  /** @param {Message} message */
  #row(message) {
    const { id, channel, body } = message;
    const row = body ? this.#plainRow(message, body) : this.#patternRow(message);
    row.dataset.eventId = id;
    row.dataset.hue = this.#hue(channel);
    return row;
  }

  /** The same as _entry.html makes. @param {Message} message @param {Body} body */
  #plainRow({ id, channel, event, at }, body) {
    const row = make("div", "events-entry");
    const head = make("div", "events-meta");
    const clock = clockOf(at);
    clock.title = id;
    head.append(clock, " ", make("span", "events-channel", channel));
    const data = make("div", "events-data");
    if (event !== "message") data.append(make("span", "events-type", event), " ");
    const { more, moreText } = this.#texts;
    if (body.kind === "fields") {
      for (const [key, value] of body.fields) {
        const field = make("span", "events-field");
        field.append(make("span", "events-key", `${key}: `), make("span", "events-value", value));
        data.append(field, " ");
      }
      if (body.rest) data.append(make("span", "events-rest", fill(more, { n: whole(body.rest) })));
    } else {
      data.append(make("span", body.kind === "text" ? "events-text" : "events-value", body.text));
      if (body.rest) data.append(" ", make("span", "events-rest", fill(moreText, { n: whole(body.rest) })));
    }
    row.append(head, " ", data);
    return row;
  }

  /** @param {Message} message */
  #patternRow({ at, values }) {
    const { content, fields } = /** @type {Pattern} */ (this.#pattern);
    const copy = document.importNode(content, true);
    for (const view of /** @type {Iterable<HTMLElement>} */ (copy.querySelectorAll("[data-field]"))) {
      const field = view.dataset.field ?? "";
      const text = values[fields.indexOf(field)] ?? "";
      view.textContent = field === "time" ? time(at) : text;
      if (view.localName === "time") view.setAttribute("datetime", field === "time" ? at.toISOString() : text);
    }
    const only = copy.children.length === 1 ? copy.firstElementChild : null;
    if (only instanceof HTMLElement) return only;
    const row = document.createElement("div");
    row.append(copy);
    return row;
  }

  /** A line of the element's own in the list, where it happened. @param {string} text */
  #note(text) {
    this.#recount();
    if (!this.#isPaused && this.#pending.length) {
      this.#trim();
      this.#add(this.#pending.splice(0));
    }
    const note = make("div", "events-note");
    note.append(clockOf(new Date()), " ", make("span", "events-note-text", text));
    this.#insert([note], 0);
  }

  // Figures

  #figures() {
    say(this.#count, whole(this.#total));
    const waiting = this.#isPaused ? this.#pending.length + this.#overflow : 0;
    const { waiting: some, waitingCapped } = this.#texts;
    this.#waiting.hidden = !waiting;
    const values = { n: whole(waiting), kept: whole(this.#limit) };
    say(this.#waiting, fill(waiting > this.#limit ? waitingCapped : some, values));
  }

  #tick() {
    const rate = this.#rate.value;
    say(this.#speed, rate >= 99.95 ? whole(rate) : format().tenth.format(rate));
    this.#figures();
    if (this.#lostAt) this.#show();
    this.#speak(rate);
  }

  /** Slow events are read out as the list's own additions; fast ones as a count, now and then.
   * @param {number} rate */
  #speak(rate) {
    const isFast = this.#list.getAttribute("aria-live") === "off";
    if (rate > 0.5 !== isFast && (rate > 0.5 || rate < 0.2)) {
      this.#list.setAttribute("aria-live", rate > 0.5 ? "off" : "polite");
      this.#unspoken = 0;
      this.#spokenAt = performance.now();
    }
    if (!isFast || this.#isPaused || !this.#unspoken || performance.now() - this.#spokenAt < SUMMARY * 1000) return;
    this.#spokenAt = performance.now();
    say(this.#summary, fill(this.#texts.summary, { n: whole(this.#unspoken) }));
    this.#unspoken = 0;
  }

  /** @param {string} type @param {unknown} detail */
  #dispatch(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail, bubbles: true, composed: true }));
  }
}

/** @param {HTMLTemplateElement} template @returns {Pattern} */
const patternOf = ({ content }) => {
  const views = /** @type {HTMLElement[]} */ ([...content.querySelectorAll("[data-field]")]);
  const fields = [...new Set(views.map((view) => view.dataset.field ?? ""))];
  for (const field of fields) {
    if (!/^(time|channel|event|id|data(\..+)?)$/.test(field)) {
      console.warn(
        `<live-channel>: data-field="${field}" is nothing that an event has: time, channel, event, id, data, data.…`,
      );
    }
  }
  return { content, fields };
};

// Once: static files can be served under two names, hashed and not.
if (globalThis.customElements && !customElements.get("live-channel")) {
  customElements.define("live-channel", LiveChannel);
}
