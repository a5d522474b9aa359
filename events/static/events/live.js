// @ts-check
/**
 * Live lists: every element with `data-live` follows a stream of events and shows what arrives.
 *
 * One file on purpose: static files storages that hash names do not rewrite `import` paths unless asked to, so a second
 * module would be served stale. Nothing here parses HTML or sets a style attribute, so that a page may answer with
 * `script-src 'self'; style-src 'self'`. The browser's own EventSource carries the stream; it tells no status, which
 * is why a refusal can only be described, not named.
 *
 * @module events/live
 */

/**
 * @typedef {"connecting" | "live" | "reconnecting" | "closed" | "offline"} ConnectionState
 * @typedef {{ id: string, channel: string, event: string, at: Date, body: Body }} Message
 * @typedef {{ kind: "text" | "value", text: string, rest: number }
 *   | { kind: "fields", fields: [string, string][], rest: number }} Body
 * @typedef {{ channels?: string[], reason?: string, cursor?: string }} Control
 * @typedef {object} StreamHandlers
 * @property {(state: ConnectionState) => void} state the connection changed
 * @property {(envelope: { channel: string, event: string, data: unknown }, id: string) => void} message an event came
 * @property {(control: Control) => void} reset some events may be missing
 * @property {(reason: string) => void} closed the server asked not to come back
 */

/** What one element may hold, whatever arrives. */
const LIMIT = {
  list: 500, // entries, and messages waiting behind a pause
  text: 4000, // characters of one entry
  fields: 24, // keys of one entry
  field: 240, // characters of one key's value
  points: 90, // values of one chart
  seconds: 90, // seconds of the activity strip
};

/** A gap this long between two ticks means that the machine slept: hidden tabs still tick once a minute. */
const SLEPT = 90_000;

/** Seconds between two spoken summaries while messages come too fast to be read out one by one. */
const SUMMARY = 15;

/** English, and the list of what a template may translate with `data-text-…`. */
const TEXTS = {
  connecting: "Connecting…",
  live: "Live",
  paused: "Paused",
  reconnecting: "Reconnecting since {time}…",
  offline: "Offline since {time}",
  closed: "Closed: {reason}",
  refused: "the server refused this stream",
  refusedHelp:
    "The browser does not say why. You may have been signed out, a channel may have been switched off or not be " +
    "open to you, or the server may be out of reach.",
  stoppedHelp: "The server ended this stream and asked not to be called again.",
  offlineHelp: "This device has no network. The stream goes on where it stopped as soon as there is one.",
  none: "No channel chosen",
  noneHelp: "Choose at least one channel.",
  pause: "Pause",
  resume: "Resume",
  waiting: "{n} waiting",
  waitingCapped: "{n} waiting, the newest {kept} are kept",
  above: "{n} new above",
  summary: "New messages: {n}",
  more: "… and {n} more",
  moreText: "… and {n} more characters",
  chosen: "{n} of {total}",
  seen: "{n}, last {time}",
  range: "min {min} · max {max}",
  chart: "{name}, channel {channel}: now {now}, lowest {min}, highest {max} of the last {n} values",
  value: "value",
  resetTrimmed: "Some messages are missing here: they are older than what the server keeps. Channels: {channels}",
  resetEpoch: "Some messages may be missing here: the server's log was started anew. Channels: {channels}",
  resetUnknown: "Some messages may be missing here: the server does not know where this page left off. Channels: {channels}",
  stopped: "The server ended this stream: {reason}",
  reasonSwitchedOff: "a channel was switched off",
  reasonRevoked: "you may not read it any more",
  reasonDisconnected: "the site has disconnected you",
};

const lang = document.documentElement.lang || undefined;
const clock = new Intl.DateTimeFormat(lang, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const whole = new Intl.NumberFormat(lang, { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat(lang, { minimumFractionDigits: 1, maximumFractionDigits: 1 });

const digits = [0, 1, 2, 4].map((most) => new Intl.NumberFormat(lang, { maximumFractionDigits: most }));

/** @param {number} value */
const figure = (value) => {
  const size = Math.abs(value);
  return digits[size >= 1000 ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : 3].format(value);
};

/** @param {string} text @param {Record<string, string>} values */
const fill = (text, values) => text.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);

/** Writes only what changed: an equal write would still make assistive technology look again.
 * @param {Element | null} element @param {string} text */
const say = (element, text) => {
  if (element && element.textContent !== text) element.textContent = text;
};

/** @param {string} tag @param {string} className @param {string} [text] */
const make = (tag, className, text) => {
  const element = document.createElement(tag);
  element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};

/** @param {string} tag @param {Record<string, string>} [attributes] */
const draw = (tag, attributes = {}) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};

/** What of an event's data is kept for showing, cut to the limits when it arrives, so that big data do not pile up.
 * @param {unknown} data @returns {Body} */
export const summarize = (data) => {
  /** @param {string} text @param {"text" | "value"} kind @returns {Body} */
  const cut = (text, kind) => ({ kind, text: text.slice(0, LIMIT.text), rest: Math.max(0, text.length - LIMIT.text) });
  if (typeof data === "string") return cut(data, "text");
  if (data === null || typeof data !== "object" || Array.isArray(data)) return cut(JSON.stringify(data) ?? "", "value");
  const entries = Object.entries(data);
  if (!entries.length) return cut("{}", "value");
  return {
    kind: "fields",
    fields: entries.slice(0, LIMIT.fields).map(([key, value]) => {
      const text = typeof value === "string" ? value : JSON.stringify(value);
      return [key.slice(0, LIMIT.field), text.length > LIMIT.field ? `${text.slice(0, LIMIT.field)}…` : text];
    }),
    rest: Math.max(0, entries.length - LIMIT.fields),
  };
};

/** The numbers in an event's data, by key; a bare number has the key "".
 * @param {unknown} data @returns {[string, number][]} */
export const numbers = (data) => {
  if (typeof data === "number") return [["", data]];
  if (data === null || typeof data !== "object" || Array.isArray(data)) return [];
  return /** @type {[string, number][]} */ (
    Object.entries(data).filter(([, value]) => typeof value === "number" && Number.isFinite(value))
  );
};

/** One EventSource at a time, and the cursor that makes the next one go on where the last one stopped. */
class Stream {
  /** @type {EventSource | null} */
  #source = null;
  #seen = false;

  /** @param {string} url @param {string} cursor @param {StreamHandlers} on */
  constructor(url, cursor, on) {
    this.url = url;
    this.cursor = cursor;
    this.on = on;
  }

  get isOpen() {
    return this.#source !== null;
  }

  /** @param {string[]} channels */
  open(channels) {
    this.close();
    const url = new URL(this.url, document.baseURI);
    for (const channel of channels) url.searchParams.append("channel", channel);
    url.searchParams.set("envelope", "1");
    if (this.cursor) url.searchParams.set("last_event_id", this.cursor);
    // Before the first event the cursor is the page's: what the channels replay to a new stream comes too.
    if (!this.#seen) url.searchParams.set("replay", "1");
    const source = new EventSource(url);
    this.#source = source;
    this.on.state("connecting");

    /** @param {string} name @param {(event: MessageEvent) => void} handle */
    const listen = (name, handle) =>
      source.addEventListener(name, (event) => {
        if (this.#source === source) handle(/** @type {MessageEvent} */ (event));
      });
    listen("open", () => this.on.state("live"));
    listen("error", () => {
      if (source.readyState !== EventSource.CLOSED) return this.on.state("reconnecting");
      this.#source = null;
      this.on.state("closed");
    });
    listen("message", (event) => {
      if (event.lastEventId) {
        this.cursor = event.lastEventId;
        this.#seen = true;
      }
      this.on.message(parse(event.data), event.lastEventId);
    });
    listen("stream-reset", (event) => {
      const control = parseControl(event.data);
      if (control.cursor) this.cursor = control.cursor;
      this.on.reset(control);
    });
    listen("stream-closed", (event) => {
      this.close();
      this.on.closed(String(parseControl(event.data).reason ?? ""));
    });
  }

  close() {
    this.#source?.close();
    this.#source = null;
  }
}

/** @param {string} text @returns {{ channel: string, event: string, data: unknown }} */
const parse = (text) => {
  try {
    const { channel, event, data } = JSON.parse(text);
    return { channel: String(channel ?? ""), event: String(event ?? "message"), data };
  } catch {
    // Not an envelope: a proxy or another server answered. Showing it beats dropping it.
    return { channel: "", event: "message", data: text };
  }
};

/** @param {string} text @returns {Control} */
const parseControl = (text) => {
  try {
    return Object(JSON.parse(text));
  } catch {
    return {};
  }
};

/** Messages per second, for the last minute and a half: the rate, and the strip that draws it. */
class Activity {
  counts = new Uint32Array(LIMIT.seconds);
  down = new Uint8Array(LIMIT.seconds);
  #second = Math.floor(performance.now() / 1000);
  #since = performance.now();

  /** Moves on to the present second, clearing those between. @param {boolean} [down] */
  advance(down = false) {
    const now = Math.floor(performance.now() / 1000);
    for (let i = Math.max(this.#second + 1, now - LIMIT.seconds + 1); i <= now; i++) {
      this.counts[i % LIMIT.seconds] = 0;
      this.down[i % LIMIT.seconds] = 0;
    }
    this.#second = now;
    if (down) this.down[now % LIMIT.seconds] = 1;
  }

  add() {
    this.advance();
    this.counts[this.#second % LIMIT.seconds]++;
  }

  /** Over the last 5 whole seconds and the one that has begun; shorter just after the start. */
  get rate() {
    this.advance();
    const now = performance.now();
    let sum = 0;
    for (let i = 0; i <= 5; i++) sum += this.counts[(this.#second - i + LIMIT.seconds) % LIMIT.seconds];
    return sum / Math.max(1, Math.min(5 + (now / 1000 - this.#second), (now - this.#since) / 1000));
  }

  /** @param {SVGElement} up @param {SVGElement} gap both are paths in a box of LIMIT.seconds by 100 */
  paint(up, gap) {
    // A square root, so that one message a second can still be seen beside a burst of a thousand.
    const top = Math.sqrt(Math.max(4, ...this.counts));
    let bars = "";
    let gaps = "";
    for (let x = 0; x < LIMIT.seconds; x++) {
      const slot = (this.#second + 1 + x) % LIMIT.seconds;
      const height = (Math.sqrt(this.counts[slot]) / top) * 92;
      if (height) bars += `M${x + 0.15} 100v${-(height + 8).toFixed(1)}h.7V100z`;
      else if (this.down[slot]) gaps += `M${x} 100v-14h1v14z`;
    }
    up.setAttribute("d", bars);
    gap.setAttribute("d", gaps);
  }
}

/** A small line chart for every numeric key of every channel, up to a number of charts. */
class Charts {
  /** @type {Map<string, { channel: string, name: string, points: number[], dirty: boolean, view: Record<string, Element> }>} */
  #series = new Map();

  /** @param {HTMLElement} box @param {number} most @param {typeof TEXTS} texts @param {(channel: string) => string} hue */
  constructor(box, most, texts, hue) {
    this.box = box;
    this.most = most;
    this.texts = texts;
    this.hue = hue;
  }

  /** @param {string} channel @param {unknown} data */
  add(channel, data) {
    for (const [key, value] of numbers(data)) {
      const id = `${channel}\n${key}`;
      let series = this.#series.get(id);
      if (!series) {
        if (this.#series.size >= this.most) continue;
        series = { channel, name: key.slice(0, 60) || this.texts.value, points: [], dirty: true, view: {} };
        this.#series.set(id, series);
      }
      series.points.push(value);
      if (series.points.length > LIMIT.points) series.points.shift();
      series.dirty = true;
    }
  }

  /** @param {(channel: string) => boolean} [keep] */
  clear(keep = () => false) {
    for (const [id, { channel, view }] of this.#series) {
      if (keep(channel)) continue;
      view.root?.remove();
      this.#series.delete(id);
    }
    this.box.hidden = !this.#series.size;
  }

  paint() {
    for (const series of this.#series.values()) {
      if (!series.dirty) continue;
      series.dirty = false;
      if (!series.view.root) this.#build(series);
      const { points, view } = series;
      const min = Math.min(...points);
      const max = Math.max(...points);
      // A constant is drawn through the middle, not along the edge that a height of zero would give.
      const y = (/** @type {number} */ value) => (max === min ? 20 : 36 - ((value - min) / (max - min)) * 32).toFixed(2);
      // As wide as the chart from the start, and denser with every value.
      const step = 200 / (Math.max(points.length, 8) - 1);
      const x = (/** @type {number} */ index) => (200 - (points.length - 1 - index) * step).toFixed(2);
      const line = points.map((value, index) => `${index ? "L" : "M"}${x(index)} ${y(value)}`).join("");
      const last = points.length - 1;
      view.line.setAttribute("d", line);
      view.area.setAttribute("d", `${line}V40H${x(0)}z`);
      view.dot.setAttribute("d", `M${x(last)} ${y(points[last])}h0`);
      const words = { min: figure(min), max: figure(max), now: figure(points[last]), n: whole.format(points.length) };
      say(view.now, words.now);
      say(view.range, fill(this.texts.range, words));
      view.svg.setAttribute("aria-label", fill(this.texts.chart, { ...words, name: series.name, channel: series.channel }));
    }
    this.box.hidden = !this.#series.size;
  }

  /** @param {{ channel: string, name: string, view: Record<string, Element> }} series */
  #build(series) {
    const root = make("div", "events-chart");
    root.dataset.hue = this.hue(series.channel);
    root.dataset.channel = series.channel;
    const label = make("div", "events-chart-label");
    label.append(make("span", "events-chart-name", series.name), make("span", "events-chart-channel", series.channel));
    const svg = draw("svg", { class: "events-chart-plot", viewBox: "0 0 200 40", preserveAspectRatio: "none", role: "img" });
    const area = draw("path", { class: "events-chart-area" });
    const line = draw("path", { class: "events-chart-line" });
    const dot = draw("path", { class: "events-chart-dot" });
    svg.append(area, line, dot);
    const now = make("span", "events-chart-now");
    const range = make("span", "events-chart-range");
    root.append(label, now, svg, range);
    this.box.append(root);
    series.view = { root, svg, area, line, dot, now, range };
  }
}

/** One element with `data-live`: its stream, its list and its controls. */
class LiveList {
  /** @type {Message[]} */
  #pending = [];
  #overflow = 0;
  #total = 0;
  #paused = false;
  #unseen = 0;
  #unspoken = 0;
  #spokenAt = 0;
  #painted = 0;
  #frame = 0;
  #timer = 0;
  #reopening = 0;
  #ticked = Date.now();
  /** @type {ConnectionState} */
  #state = "connecting";
  /** Why the stream is closed: "" while it is not. @type {"" | "refused" | "stopped" | "none"} */
  #why = "";
  #reason = "";
  /** @type {Date | null} */
  #lostAt = null;
  /** @type {Map<string, { total: number, at: Date | null, view: Element | null }>} */
  #channels = new Map();
  #activity = new Activity();
  #abort = new AbortController();

  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    /** @type {typeof TEXTS} */
    this.texts = { ...TEXTS };
    for (const name of /** @type {(keyof typeof TEXTS)[]} */ (Object.keys(TEXTS))) {
      this.texts[name] = root.dataset[`text${name[0].toUpperCase()}${name.slice(1)}`] ?? TEXTS[name];
    }
    const { dataset } = root;
    this.limit = Math.max(1, Math.min(Number(dataset.limit) || LIMIT.list, LIMIT.list));
    this.most = Number(dataset.maxChannels) || Infinity;
    /** @type {string[]} */
    this.all = JSON.parse(dataset.channels || "[]");

    this.list = /** @type {HTMLElement} */ (this.#find("list"));
    this.status = this.#find("status");
    this.pauseButton = this.#find("pause");
    this.scrolls = getComputedStyle(this.list).overflowY === "auto";
    const charts = this.#find("charts");
    this.charts =
      charts && new Charts(charts, Number(dataset.charts ?? 8), this.texts, (channel) => this.#hue(channel));
    this.all.forEach((name) => this.#channels.set(name, { total: 0, at: null, view: null }));
    for (const view of root.querySelectorAll("[data-seen]")) {
      const channel = this.#channels.get(/** @type {HTMLElement} */ (view).dataset.seen ?? "");
      if (channel) channel.view = view;
    }
    const strip = this.#find("strip");
    if (strip) {
      const svg = draw("svg", { viewBox: `0 0 ${LIMIT.seconds} 100`, preserveAspectRatio: "none", class: "events-strip-plot" });
      this.strip = { up: draw("path", { class: "events-strip-up" }), gap: draw("path", { class: "events-strip-gap" }) };
      svg.append(this.strip.gap, this.strip.up);
      strip.append(svg);
    }

    this.stream = new Stream(dataset.streamUrl ?? "", dataset.cursor ?? "", {
      state: (state) => this.#connection(state),
      message: (envelope, id) => this.#receive(envelope, id),
      reset: (control) => this.#reset(control),
      closed: (reason) => this.#stopped(reason),
    });
    // On a narrow screen the channels come before the messages: folded away, the messages are what is seen first.
    const side = this.#find("side");
    if (side instanceof HTMLDetailsElement && matchMedia("(max-width: 61.99rem)").matches) side.open = false;
    this.#listen();
    this.open();
  }

  /** @param {string} role @returns {HTMLElement | null} */
  #find(role) {
    return this.root.querySelector(`[data-role="${role}"]`);
  }

  /** The colour of a channel, by its place in the list: a help for the eye beside the name, never instead of it.
   * @param {string} channel */
  #hue(channel) {
    const index = this.all.indexOf(channel);
    return String((index < 0 ? this.all.length : index) % 8);
  }

  get #boxes() {
    return /** @type {HTMLInputElement[]} */ ([...this.root.querySelectorAll('[data-role="channels"] input[type="checkbox"]')]);
  }

  /** The channels to follow: what is checked, or all of them where there is nothing to check. */
  get chosen() {
    const boxes = this.#boxes;
    return boxes.length ? boxes.filter((box) => box.checked).map((box) => box.value) : this.all;
  }

  // Life

  open() {
    clearTimeout(this.#reopening);
    if (!this.#timer) this.#timer = window.setInterval(() => this.#tick(), 500);
    this.#ticked = Date.now();
    this.#limitChoice();
    const chosen = this.chosen;
    this.#why = chosen.length ? "" : "none";
    if (chosen.length) {
      this.stream.open(chosen);
    } else {
      this.stream.close();
      this.#connection("closed");
    }
  }

  /** Stops the stream and keeps what is shown. `open()` goes on from where it stopped. */
  close() {
    this.stream.close();
    clearInterval(this.#timer);
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#reopening);
    this.#timer = this.#frame = 0;
  }

  /** For good: the element has left the page. */
  destroy() {
    this.close();
    this.#abort.abort();
  }

  #listen() {
    const { signal } = this.#abort;
    /** @param {EventTarget | null} target @param {string} type @param {(event: any) => void} handle */
    const on = (target, type, handle) => target?.addEventListener(type, handle, { signal });
    on(this.pauseButton, "click", () => this.#pause(!this.#paused));
    on(this.#find("clear"), "click", () => this.#clear());
    on(this.#find("retry"), "click", () => {
      this.open();
      this.pauseButton?.focus();
    });
    on(this.#find("jump"), "click", () => this.#jump());
    on(this.#find("channels"), "change", () => this.#choiceChanged());
    on(this.#find("all"), "click", () => this.#choose(true));
    on(this.#find("none"), "click", () => this.#choose(false));
    on(this.scrolls ? this.list : document, "scroll", () => this.#look());
    // A page in the back-forward cache must hold no connection; when it comes back it goes on from its cursor.
    on(window, "pagehide", () => this.close());
    on(window, "pageshow", (event) => {
      if (event.persisted && this.#why !== "stopped") this.open();
    });
    on(window, "online", () => {
      if (this.#why === "refused" || this.#state === "reconnecting") this.open();
      else this.#show();
    });
    on(window, "offline", () => this.#show());
  }

  // The connection

  /** @param {ConnectionState} state */
  #connection(state) {
    if (state === "closed" && !this.#why) this.#why = "refused";
    if (state !== "closed") this.#why = "";
    if (state === "live" || state === "closed") this.#lostAt = null;
    if (state === "reconnecting") this.#lostAt ??= new Date();
    // Opening again while it was lost is still the same loss to who is looking at it.
    this.#state = state === "connecting" && this.#lostAt ? "reconnecting" : state;
    this.#show();
  }

  /** @param {Control} control */
  #reset(control) {
    const text =
      { trimmed: this.texts.resetTrimmed, epoch: this.texts.resetEpoch }[String(control.reason)] ?? this.texts.resetUnknown;
    const channels = Array.isArray(control.channels) && control.channels.length ? control.channels : this.chosen;
    this.#note(fill(text, { channels: channels.join(", ") }));
  }

  /** @param {string} reason */
  #stopped(reason) {
    const known = {
      "switched-off": this.texts.reasonSwitchedOff,
      revoked: this.texts.reasonRevoked,
      disconnected: this.texts.reasonDisconnected,
    };
    this.#why = "stopped";
    // A reason of a later server's is shown as it is: better a bare word than none.
    this.#reason = known[/** @type {keyof typeof known} */ (reason)] ?? reason;
    this.#note(fill(this.texts.stopped, { reason: this.#reason }));
    this.#connection("closed");
  }

  /** Says the state in words, and in `data-state` for whoever styles or tests it. */
  #show() {
    const { texts } = this;
    // A browser can be wrong about the network (a server on this machine needs none), so an open stream is believed first.
    const offline = this.#state === "reconnecting" && !navigator.onLine;
    const state = offline ? "offline" : this.#state === "live" && this.#paused ? "paused" : this.#state;
    const time = this.#lostAt ? clock.format(this.#lostAt) : "";
    const reason = this.#why === "stopped" ? this.#reason : texts.refused;
    this.root.dataset.state = state;
    this.root.toggleAttribute("data-paused", this.#paused);
    say(this.status, this.#why === "none" ? texts.none : fill(texts[state], { time, reason }));

    const notice = this.#find("notice");
    const help = { refused: texts.refusedHelp, stopped: texts.stoppedHelp, none: texts.noneHelp, "": "" }[this.#why];
    if (notice) {
      notice.hidden = !(help || offline);
      say(this.#find("notice-text"), offline ? texts.offlineHelp : help);
    }
    const retry = this.#find("retry");
    if (retry) retry.hidden = this.#why !== "refused" && this.#why !== "stopped";
  }

  // The choice of channels

  #choiceChanged() {
    this.#limitChoice();
    const chosen = new Set(this.chosen);
    this.charts?.clear((channel) => chosen.has(channel));
    // Several boxes are often changed in one go: one new stream for all of them.
    clearTimeout(this.#reopening);
    this.#reopening = window.setTimeout(() => this.open(), 200);
  }

  /** @param {boolean} checked */
  #choose(checked) {
    this.#boxes.forEach((box, index) => {
      box.checked = checked && index < this.most;
    });
    this.#choiceChanged();
  }

  #limitChoice() {
    const boxes = this.#boxes;
    const count = boxes.filter((box) => box.checked).length;
    for (const box of boxes) box.disabled = !box.checked && count >= this.most;
    const full = this.#find("full");
    if (full) full.hidden = !(boxes.length > this.most && count >= this.most);
    say(this.#find("chosen"), fill(this.texts.chosen, { n: whole.format(count), total: whole.format(boxes.length) }));
  }

  // What arrives

  /** @param {{ channel: string, event: string, data: unknown }} envelope @param {string} id */
  #receive({ channel, event, data }, id) {
    const at = new Date();
    this.#activity.add();
    this.#total++;
    this.#unspoken++;
    const seen = this.#channels.get(channel);
    if (seen) {
      seen.total++;
      seen.at = at;
    }
    this.charts?.add(channel, data);
    this.#pending.push({ id, channel, event, at, body: summarize(data) });
    // Cut in steps: shifting an array of 500 for every message of a burst would cost more than showing it.
    if (this.#pending.length >= this.limit * 2) this.#overflow += this.#pending.splice(0, this.#pending.length - this.limit).length;
    this.#schedule();
  }

  #schedule() {
    if (!this.#paused && !this.#frame) this.#frame = requestAnimationFrame((now) => this.#paint(now));
  }

  /** @param {number} now */
  #paint(now) {
    this.#frame = 0;
    // Ten times a second is more than can be read, and in a flood four times is; the time between belongs to the page.
    const pause = this.#pending.length > 100 ? 250 : 100;
    if (now - this.#painted < pause && this.#pending.length > 1) return this.#schedule();
    this.#painted = now;
    const messages = this.#pending.splice(0).slice(-this.limit);
    this.#overflow = 0;
    if (!messages.length) return;
    const fresh = messages.length <= 3;
    const rows = document.createDocumentFragment();
    for (let i = messages.length - 1; i >= 0; i--) rows.append(this.#row(messages[i], fresh));
    this.#insert(rows, messages.length);
    this.#numbers();
  }

  /** Newest first. Who looks at the newest sees them come in; who has scrolled down to read is left in peace.
   * @param {DocumentFragment} rows @param {number} count */
  #insert(rows, count) {
    const atNewest = this.#atNewest();
    this.list.toggleAttribute("data-held", !atNewest);
    const excess = this.list.childElementCount + rows.childNodes.length - this.limit;
    for (let i = 0; i < excess && this.list.lastElementChild; i++) this.list.lastElementChild.remove();
    this.list.prepend(rows);
    const empty = this.#find("empty");
    if (empty) empty.hidden = true;
    this.#unseen = atNewest ? 0 : this.#unseen + count;
    this.#look();
  }

  #atNewest() {
    if (this.scrolls) return this.list.scrollTop < 8;
    const bar = this.#find("bar");
    return this.list.getBoundingClientRect().top >= (bar?.getBoundingClientRect().bottom ?? 0) - 8;
  }

  #look() {
    const jump = this.#find("jump");
    if (!jump || (!this.#unseen && jump.hidden)) return;
    if (this.#atNewest()) this.#unseen = 0;
    jump.hidden = !this.#unseen;
    say(jump, fill(this.texts.above, { n: whole.format(this.#unseen) }));
  }

  #jump() {
    const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
    if (this.scrolls) this.list.scrollTo({ top: 0, behavior });
    else this.list.scrollIntoView({ block: "start", behavior });
    this.list.focus({ preventScroll: true });
  }

  /** @param {Message} message @param {boolean} fresh */
  #row({ id, channel, event, at, body }, fresh) {
    const row = make("div", "events-entry");
    row.dataset.eventId = id;
    row.dataset.hue = this.#hue(channel);
    if (fresh) row.dataset.fresh = "";
    const head = make("div", "events-meta");
    const time = make("time", "events-time", clock.format(at));
    time.setAttribute("datetime", at.toISOString());
    time.title = id;
    head.append(time, make("span", "events-channel", channel));
    const data = make("div", "events-data");
    if (event !== "message") data.append(make("span", "events-type", event), " ");
    if (body.kind === "fields") {
      for (const [key, value] of body.fields) {
        const field = make("span", "events-field");
        field.append(make("span", "events-key", `${key}: `), make("span", "events-value", value));
        data.append(field, " ");
      }
      if (body.rest) data.append(make("span", "events-rest", fill(this.texts.more, { n: whole.format(body.rest) })));
    } else {
      data.append(make("span", body.kind === "text" ? "events-text" : "events-value", body.text));
      if (body.rest) data.append(" ", make("span", "events-rest", fill(this.texts.moreText, { n: whole.format(body.rest) })));
    }
    row.append(head, data);
    return row;
  }

  /** A line of the page's own in the list, where it happened. @param {string} text */
  #note(text) {
    if (!this.#paused && this.#pending.length) this.#paint(Infinity);
    const note = make("div", "events-note");
    const at = new Date();
    const time = make("time", "events-time", clock.format(at));
    time.setAttribute("datetime", at.toISOString());
    note.append(time, make("span", "events-note-text", text));
    const rows = document.createDocumentFragment();
    rows.append(note);
    this.#insert(rows, 0);
  }

  // Controls and figures

  /** @param {boolean} paused */
  #pause(paused) {
    this.#paused = paused;
    say(this.pauseButton, paused ? this.texts.resume : this.texts.pause);
    if (!paused && this.#pending.length) this.#paint(Infinity);
    this.#show();
    this.#numbers();
  }

  #clear() {
    this.#pending = [];
    this.#overflow = this.#total = this.#unseen = this.#unspoken = 0;
    this.list.replaceChildren();
    this.charts?.clear();
    for (const channel of this.#channels.values()) channel.total = 0;
    const empty = this.#find("empty");
    if (empty) empty.hidden = false;
    this.#numbers();
    this.#look();
  }

  #numbers() {
    say(this.#find("count"), whole.format(this.#total));
    const waiting = this.#paused ? this.#pending.length + this.#overflow : 0;
    const capped = waiting > this.limit;
    const view = this.#find("waiting");
    if (!view) return;
    view.hidden = !waiting;
    say(view, fill(capped ? this.texts.waitingCapped : this.texts.waiting, { n: whole.format(waiting), kept: whole.format(this.limit) }));
  }

  #tick() {
    const now = Date.now();
    const slept = now - this.#ticked > SLEPT;
    this.#ticked = now;
    // After a sleep a connection can look open for minutes though nobody is at its other end.
    if (slept && this.stream.isOpen) this.open();
    this.#activity.advance(this.#state !== "live");
    const { rate } = this.#activity;
    say(this.#find("rate"), rate >= 99.95 ? whole.format(rate) : tenth.format(rate));
    this.#numbers();
    if (this.strip) this.#activity.paint(this.strip.up, this.strip.gap);
    if (!this.#paused) this.charts?.paint();
    for (const { total, at, view } of this.#channels.values()) {
      if (view && at) say(view, fill(this.texts.seen, { n: whole.format(total), time: clock.format(at) }));
    }
    this.#speak(rate);
  }

  /** Slow messages are read out as the list's own additions; fast ones as a count, now and then.
   * @param {number} rate */
  #speak(rate) {
    const fast = this.list.getAttribute("aria-live") === "off";
    if (rate > 0.5 !== fast && (rate > 0.5 || rate < 0.2)) {
      this.list.setAttribute("aria-live", rate > 0.5 ? "off" : "polite");
      this.#unspoken = 0;
      this.#spokenAt = performance.now();
    }
    if (!fast || this.#paused || !this.#unspoken || performance.now() - this.#spokenAt < SUMMARY * 1000) return;
    this.#spokenAt = performance.now();
    say(this.#find("summary"), fill(this.texts.summary, { n: whole.format(this.#unspoken) }));
    this.#unspoken = 0;
  }
}

/** @type {Map<HTMLElement, LiveList>} */
const mounted = new Map();

/** Follows a stream for one element; what `data-live` does by itself.
 * @param {HTMLElement} root @returns {LiveList} */
export const mount = (root) => {
  let view = mounted.get(root);
  if (!view) {
    view = new LiveList(root);
    mounted.set(root, view);
  }
  return view;
};

/** Closes the stream of an element; what removing it does by itself. @param {HTMLElement} root */
export const unmount = (root) => {
  mounted.get(root)?.destroy();
  mounted.delete(root);
};

/** @param {Element} element */
const mountAll = (element) => {
  if (element.matches("[data-live]")) mount(/** @type {HTMLElement} */ (element));
  for (const root of element.querySelectorAll("[data-live]")) mount(/** @type {HTMLElement} */ (root));
};

mountAll(document.documentElement);

// Elements that come and go later (htmx, Turbo, a script of the site's own) start and end by themselves.
new MutationObserver((records) => {
  for (const root of mounted.keys()) if (!root.isConnected) unmount(root);
  for (const { target, addedNodes } of records) {
    if (!addedNodes.length || (target instanceof Element && target.closest("[data-live]"))) continue;
    for (const node of addedNodes) if (node instanceof Element && node.isConnected) mountAll(node);
  }
}).observe(document.documentElement, { childList: true, subtree: true });
