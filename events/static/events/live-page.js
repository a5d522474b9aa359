// @ts-check
/**
 * What the live pages have around their `<live-channel>`: a choice of channels, a strip, charts, counts by channel.
 *
 * It knows the element by its attributes and events alone. To import its module would load it twice where static files
 * have hashes in their names.
 *
 * @import { LiveChannel } from "./live-channel.js"
 */

/** What the page may hold, whatever arrives. */
const LIMIT = {
  charts: 8,
  points: 90, // values of one chart
  seconds: 90, // seconds of the activity strip
  name: 60, // characters of a chart's name
};

/** English, and the list of what a template may translate with `data-text-…`. */
const TEXTS = {
  chosen: "{n} of {total}",
  seen: "{n} received, last at {time}",
  range: "min {min} · max {max}",
  chart: "{name}, channel {channel}: now {now}, lowest {min}, highest {max} of the last {n} values",
  value: "value",
};

/** The page's language, undefined where `Intl` would refuse it. Many a page has gettext's name, `en_US`. */
const language = () => {
  try {
    return Intl.getCanonicalLocales(document.documentElement.lang.replaceAll("_", "-"))[0];
  } catch {
    return undefined;
  }
};

const lang = language();
const parts = /** @type {const} */ ({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
const clock = new Intl.DateTimeFormat(lang, { ...parts, hourCycle: "h23" });
const digits = [0, 1, 2, 4].map((most) => new Intl.NumberFormat(lang, { maximumFractionDigits: most }));

/** @param {number} value */
const whole = (value) => digits[0].format(value);

/** @param {number} value */
const figure = (value) => {
  const size = Math.abs(value);
  return digits[size >= 1000 ? 0 : size >= 100 ? 1 : size >= 1 ? 2 : 3].format(value);
};

/** @param {string} text @param {Record<string, string>} values */
const fill = (text, values) => text.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);

/** Writes only what changed: an equal write would still make assistive technology look again.
 * @param {Element | null | undefined} element @param {string} text */
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

/** The numbers in an event's data, by key; a bare number has the key "".
 * @param {unknown} data @returns {[string, number][]} */
const numbers = (data) => {
  if (typeof data === "number") return [["", data]];
  if (data === null || typeof data !== "object" || Array.isArray(data)) return [];
  return /** @type {[string, number][]} */ (
    Object.entries(data).filter(([, value]) => typeof value === "number" && Number.isFinite(value))
  );
};

/** Events of each second, for the last minute and a half, and the seconds without a connection. */
class Strip {
  #counts = new Uint32Array(LIMIT.seconds);
  #down = new Uint8Array(LIMIT.seconds);
  #second = Math.floor(performance.now() / 1000);
  #up = draw("path", { class: "events-strip-up" });
  #gap = draw("path", { class: "events-strip-gap" });

  /** @param {Element} box */
  constructor(box) {
    const viewBox = `0 0 ${LIMIT.seconds} 100`;
    const svg = draw("svg", { viewBox, preserveAspectRatio: "none", class: "events-strip-plot" });
    svg.append(this.#gap, this.#up);
    box.append(svg);
  }

  /** Moves on to the present second, clearing those between. */
  #advance() {
    const now = Math.floor(performance.now() / 1000);
    for (let i = Math.max(this.#second + 1, now - LIMIT.seconds + 1); i <= now; i++) {
      this.#counts[i % LIMIT.seconds] = this.#down[i % LIMIT.seconds] = 0;
    }
    this.#second = now;
  }

  add() {
    this.#advance();
    this.#counts[this.#second % LIMIT.seconds]++;
  }

  /** @param {boolean} isLost whether there is no connection any more */
  paint(isLost) {
    this.#advance();
    if (isLost) this.#down[this.#second % LIMIT.seconds] = 1;
    // A square root, so that one event a second can still be seen beside a burst of a thousand.
    const top = Math.sqrt(Math.max(4, ...this.#counts));
    let bars = "";
    let gaps = "";
    for (let x = 0; x < LIMIT.seconds; x++) {
      const slot = (this.#second + 1 + x) % LIMIT.seconds;
      const height = (Math.sqrt(this.#counts[slot]) / top) * 92;
      if (height) bars += `M${x + 0.15} 100v${-(height + 8).toFixed(1)}h.7V100z`;
      else if (this.#down[slot]) gaps += `M${x} 100v-14h1v14z`;
    }
    this.#up.setAttribute("d", bars);
    this.#gap.setAttribute("d", gaps);
  }
}

/**
 * A small line chart for every numeric key of every channel, up to a number of charts.
 *
 * @typedef {Record<"root" | "svg" | "area" | "line" | "dot" | "now" | "range", Element>} View
 * @typedef {{ channel: string, name: string, points: number[], isDirty: boolean, view: View | null }} Series
 */
class Charts {
  /** @type {Map<string, Series>} */
  #series = new Map();

  /** @param {HTMLElement} box @param {typeof TEXTS} texts @param {(channel: string) => string} hue */
  constructor(box, texts, hue) {
    this.box = box;
    this.texts = texts;
    this.hue = hue;
  }

  /** @param {string} channel @param {unknown} data */
  add(channel, data) {
    for (const [key, value] of numbers(data)) {
      const id = `${channel}\n${key}`;
      let series = this.#series.get(id);
      if (!series) {
        if (this.#series.size >= LIMIT.charts) continue;
        const name = key.slice(0, LIMIT.name) || this.texts.value;
        series = { channel, name, points: [], isDirty: true, view: null };
        this.#series.set(id, series);
      }
      series.points.push(value);
      if (series.points.length > LIMIT.points) series.points.shift();
      series.isDirty = true;
    }
  }

  /** @param {(channel: string) => boolean} [keep] */
  clear(keep = () => false) {
    for (const [id, { channel, view }] of this.#series) {
      if (keep(channel)) continue;
      view?.root.remove();
      this.#series.delete(id);
    }
    this.box.hidden = !this.#series.size;
  }

  paint() {
    for (const series of this.#series.values()) {
      if (!series.isDirty) continue;
      series.isDirty = false;
      const view = (series.view ??= this.#build(series));
      const { points } = series;
      const min = Math.min(...points);
      const max = Math.max(...points);
      // A constant is drawn through the middle, not along the edge that a height of zero would give.
      /** @param {number} value */
      const y = (value) => (max === min ? 20 : 36 - ((value - min) / (max - min)) * 32).toFixed(2);
      // As wide as the chart from the start, and denser with every value.
      const step = 200 / (Math.max(points.length, 8) - 1);
      /** @param {number} index */
      const x = (index) => (200 - (points.length - 1 - index) * step).toFixed(2);
      const line = points.map((value, index) => `${index ? "L" : "M"}${x(index)} ${y(value)}`).join("");
      const last = points.length - 1;
      view.line.setAttribute("d", line);
      view.area.setAttribute("d", `${line}V40H${x(0)}z`);
      view.dot.setAttribute("d", `M${x(last)} ${y(points[last])}h0`);
      const words = { min: figure(min), max: figure(max), now: figure(points[last]), n: whole(points.length) };
      say(view.now, words.now);
      say(view.range, fill(this.texts.range, words));
      const { name, channel } = series;
      view.svg.setAttribute("aria-label", fill(this.texts.chart, { ...words, name, channel }));
    }
    this.box.hidden = !this.#series.size;
  }

  /** @param {Series} series @returns {View} */
  #build({ channel, name }) {
    const root = make("div", "events-chart");
    root.dataset.hue = this.hue(channel);
    root.dataset.channel = channel;
    const label = make("div", "events-chart-label");
    label.append(make("span", "events-chart-name", name), make("span", "events-chart-channel", channel));
    const frame = { viewBox: "0 0 200 40", preserveAspectRatio: "none" };
    const svg = draw("svg", { class: "events-chart-plot", role: "img", ...frame });
    const area = draw("path", { class: "events-chart-area" });
    const line = draw("path", { class: "events-chart-line" });
    const dot = draw("path", { class: "events-chart-dot" });
    svg.append(area, line, dot);
    const now = make("span", "events-chart-now");
    const range = make("span", "events-chart-range");
    root.append(label, now, svg, range);
    this.box.append(root);
    return { root, svg, area, line, dot, now, range };
  }
}

/** @param {HTMLElement} root @param {LiveChannel} element */
const surround = (root, element) => {
  const texts = { ...TEXTS };
  for (const name of /** @type {(keyof typeof TEXTS)[]} */ (Object.keys(TEXTS))) {
    texts[name] = root.dataset[`text${name[0].toUpperCase()}${name.slice(1)}`] ?? TEXTS[name];
  }
  const most = Number(root.dataset.maxChannels) || Infinity;
  const all = (element.getAttribute("palette") ?? "").split(" ");
  /** @param {string} role @returns {HTMLElement | null} */
  const find = (role) => root.querySelector(`[data-role="${role}"]`);
  const checkboxes = root.querySelectorAll('[data-role="channels"] [type="checkbox"]');
  const boxes = /** @type {HTMLInputElement[]} */ ([...checkboxes]);
  const stripBox = find("strip");
  const strip = stripBox && new Strip(stripBox);
  const chartBox = find("charts");
  const charts = chartBox && new Charts(chartBox, texts, (channel) => String(Math.max(0, all.indexOf(channel)) % 8));
  /** @type {Map<string, { total: number, at: Date | null, view: Element }>} */
  const channels = new Map();
  for (const view of /** @type {NodeListOf<HTMLElement>} */ (root.querySelectorAll("[data-seen]"))) {
    channels.set(view.dataset.seen ?? "", { total: 0, at: null, view });
  }
  let isLost = false;
  let following = 0;

  // The choice of channels

  /** @returns {string[]} */
  const chosen = () => boxes.filter((box) => box.checked).map((box) => box.value);

  const limitChoice = () => {
    const count = chosen().length;
    for (const box of boxes) box.disabled = !box.checked && count >= most;
    const full = find("full");
    if (full) full.hidden = !(boxes.length > most && count >= most);
    say(find("chosen"), fill(texts.chosen, { n: whole(count), total: whole(boxes.length) }));
  };

  const follow = () => {
    const names = chosen().join(" ");
    if (names !== element.getAttribute("channels")) element.setAttribute("channels", names);
  };

  const changed = () => {
    limitChoice();
    const kept = new Set(chosen());
    charts?.clear((channel) => kept.has(channel));
    // Several boxes are often changed in one go: one new stream for all of them.
    clearTimeout(following);
    following = window.setTimeout(follow, 200);
  };

  /** @param {boolean} isChecked */
  const choose = (isChecked) => {
    boxes.forEach((box, index) => {
      box.checked = isChecked && index < most;
    });
    changed();
  };

  find("channels")?.addEventListener("change", changed);
  find("all")?.addEventListener("click", () => choose(true));
  find("none")?.addEventListener("click", () => choose(false));
  if (boxes.length) {
    limitChoice();
    // A browser may remember the boxes of the last visit.
    follow();
  }
  // On a narrow screen the channels come before the messages: folded away, the messages are what is seen first.
  const side = find("side");
  if (side instanceof HTMLDetailsElement && matchMedia("(max-width: 61.99rem)").matches) side.open = false;

  // What arrives

  element.addEventListener("live-event", ({ detail: { channel, data } }) => {
    strip?.add();
    charts?.add(channel, data);
    const seen = channels.get(channel);
    if (!seen) return;
    seen.total++;
    seen.at = new Date();
  });
  element.addEventListener("live-status", ({ detail }) => {
    isLost = detail.status === "reconnecting" || detail.status === "closed";
  });
  element.addEventListener("live-clear", () => {
    charts?.clear();
    for (const channel of channels.values()) channel.total = 0;
  });

  window.setInterval(() => {
    strip?.paint(isLost);
    if (!element.hasAttribute("data-paused")) charts?.paint();
    for (const { total, at, view } of channels.values()) {
      if (at) say(view, fill(texts.seen, { n: whole(total), time: clock.format(at) }));
    }
  }, 500);
};

for (const root of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".events-live--page"))) {
  const element = root.querySelector("live-channel");
  if (element) surround(root, element);
}
