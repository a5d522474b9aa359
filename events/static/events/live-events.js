// @ts-check
/**
 * Streams of events that lose nothing. What each option, status and event means: live-events.d.ts.
 *
 * A stream is a cursor here as it is on the server: it reads on when what it read has been handled, so there is no
 * queue to grow or to lose, and whatever breaks, the next request goes on from the cursor.
 *
 * @import * as Types from "./live-events.js"
 * @import { EventStreamEventMap, ParsedEvent, StreamEvent, StreamOptions } from "./live-events.js"
 * @import { StreamReset, StreamStatus } from "./live-events.js"
 * @typedef {Parameters<typeof Types.openStream>[0]} Source
 * @typedef {{ reason?: string }} End for good, with the reason of a `stream-closed` or ""; without one, nothing is left
 * @typedef {object} Hooks
 * @property {(event: StreamEvent, before: string, size: number) => void | Promise<unknown>} take
 * @property {(reset: StreamReset, isPast: boolean) => void | Promise<unknown>} reset nothing before its cursor is to come
 * @property {(status: "open" | "reconnecting", error: StreamError | null) => void} status
 * @property {(headers: Headers) => boolean} [opened] false: this is not what is wanted
 * @property {(at: string) => void} [begun] without a cursor: the server's, or ""
 * @property {() => void} [heard] the connection lives
 * @property {Record<string, string>} [params] of the URL
 * @typedef {{ event: StreamEvent | null, done: (isHandled: boolean) => void, wake: () => void }} Reader
 * @typedef {object} Membership of tabs that share
 * @property {() => void} ask how things are
 * @property {() => Promise<void>} catchUp what there is until now
 * @typedef {object} Note what tabs tell each other
 * @property {1} [hello] somebody asks how things are
 * @property {StreamEvent} [event] with `prev`, the cursor before it, and the characters of its data
 * @property {string} [prev]
 * @property {number} [size]
 * @property {string} [at] up to where the others should be; `isNew`: whatever they have, of another log it was
 * @property {boolean} [isNew]
 * @property {StreamStatus} [status] with `error`
 * @property {{ message: string, status: number } | null} [error]
 * @property {End} [end]
 */

/** What URLs are relative to; a worker has no document, and Node neither. */
const BASE = globalThis.document?.baseURI ?? globalThis.location?.href;
/** Characters of one event. */
const MAX_EVENT = 16 * 2 ** 20;
/** Events that wait for the handlers of one tab while another reads on, and characters of their data. */
const MAX_WAITING = 1000;
const MAX_WAITING_SIZE = 4 * 2 ** 20;
/** Milliseconds without a byte: three keep-alives, as far as the server says, but time enough for a slow network. */
const STALL = 45_000;
const LEAST_STALL = 10_000;
/** Milliseconds: a timer that is set for longer fires at once. */
const MAX_DELAY = 2 ** 31 - 1;

export class StreamError extends Error {
  /** @param {string} message */
  constructor(message, status = 0, retryAfter = 0) {
    super(message);
    this.name = "StreamError";
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** @param {string | URL} url */
const urlOf = (url) => {
  try {
    return new URL(url, BASE);
  } catch {
    throw new TypeError(`openStream: url is the URL of a stream, not ${url}`);
  }
};

/** @param {any} error */
const asStreamError = (error) =>
  error instanceof StreamError ? error : new StreamError(String(error?.message ?? error));

/** What of an error survives the way to another tab. @param {StreamError | null} error */
const plain = (error) => error && { message: error.message, status: error.status };

/** @type {typeof Types.createParser} */
export const createParser = (onEvent, onRetry) => {
  const decoder = new TextDecoder();
  let [line, type, data, lastEventId] = ["", "", "", ""];
  let [hasData, hasId, afterCr] = [false, false, false];

  /** @param {string} text */
  const limit = (text) => {
    if (text.length + data.length > MAX_EVENT) {
      throw new StreamError(`an event has more than ${MAX_EVENT} characters`, 200);
    }
  };

  /** @param {string} text */
  const parse = (text) => {
    limit(text);
    if (!text) {
      if (hasData) onEvent({ type: type || "message", data, lastEventId, hasId });
      type = data = "";
      hasData = hasId = false;
      return;
    }
    const colon = text.indexOf(":");
    const name = colon < 0 ? text : text.slice(0, colon);
    const value = colon < 0 ? "" : text.slice(colon + (text[colon + 1] === " " ? 2 : 1));
    if (name === "data") {
      data = hasData ? `${data}\n${value}` : value;
      hasData = true;
    } else if (name === "event") type = value;
    else if (name === "id" && !value.includes("\0")) {
      lastEventId = value;
      hasId = true;
    } else if (name === "retry" && /^[0-9]+$/.test(value)) onRetry?.(+value);
  };

  return (chunk) => {
    const text = decoder.decode(chunk, { stream: true });
    if (!text) return;
    // A line ends with its CR, at once; whether an LF belongs to it, only the next chunk says.
    let start = afterCr && text[0] === "\n" ? 1 : 0;
    let [cr, lf] = [text.indexOf("\r", start), text.indexOf("\n", start)];
    for (;;) {
      if (cr >= 0 && cr < start) cr = text.indexOf("\r", start);
      if (lf >= 0 && lf < start) lf = text.indexOf("\n", start);
      const end = cr >= 0 && (lf < 0 || cr < lf) ? cr : lf;
      if (end < 0) break;
      parse(line + text.slice(start, end));
      line = "";
      start = end + (end === cr && lf === end + 1 ? 2 : 1);
    }
    afterCr = text.endsWith("\r");
    line += text.slice(start);
    limit(line);
  };
};

/** @param {number} milliseconds @param {AbortSignal} signal that ends it at once */
const rest = (milliseconds, signal) =>
  new Promise((rested) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      rested(0);
    };
    const timer = setTimeout(end, signal.aborted ? 0 : Math.min(milliseconds, MAX_DELAY));
    signal.addEventListener("abort", end);
  });

/** What a function of the page's own gives, unless it takes too long. @template T
 * @param {Promise<T>} promise @param {AbortSignal} signal @returns {Promise<T>} */
const unlessAborted = (promise, signal) =>
  new Promise((resolve, reject) => {
    promise.then(resolve, reject);
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });

/** Whether who has `cursor` has what is at `id`: they are of one log. @param {string} cursor @param {string} id */
const covers = (cursor, id) => {
  const [, epoch, position] = /^(\w{1,32})-(\d+)$/.exec(cursor) ?? [];
  const [, ofEpoch, wanted] = /^(\w{1,32})-(\d+)$/.exec(id) ?? [];
  return !!epoch && epoch === ofEpoch && +position >= +wanted;
};

/** @param {string} text @returns {any} an object, whatever the text is */
const parseObject = (text) => {
  try {
    return Object(JSON.parse(text));
  } catch {
    return {};
  }
};

/** The first 300 characters that come, within a second: the status is what counts. @param {Response} response */
const sentenceOf = async (response) => {
  const reader = response.body?.getReader();
  const leave = () => reader?.cancel().catch(() => {});
  const timer = setTimeout(leave, 1000);
  const decoder = new TextDecoder();
  let text = "";
  try {
    for (let part; text.length < 300 && (part = await reader?.read()) && !part.done; ) {
      text += decoder.decode(part.value, { stream: true });
    }
  } catch {
    // It broke off, or the stream was closed.
  }
  clearTimeout(timer);
  leave();
  return text.trim().slice(0, 300);
};

/** What the answer is if it is no stream. @param {Response} response @returns {Promise<StreamError | null>} */
const refusalOf = async (response) => {
  const type = (response.headers.get("Content-Type") ?? "").split(";")[0].trim().toLowerCase();
  if (response.status === 200 && type === "text/event-stream") return null;
  const after = response.headers.get("Retry-After") ?? "";
  const wait = /^\d+$/.test(after) ? +after * 1000 : Date.parse(after) - Date.now();
  const said = type === "text/plain" ? await sentenceOf(response) : "";
  const what = response.status === 200 ? `the answer is ${type}, not text/event-stream` : `status ${response.status}`;
  return new StreamError(said ? `${what}: ${said}` : what, response.status, wait > 0 ? wait : 0);
};

/** Whether another try may help. 501: the site runs under WSGI. @param {StreamError} error */
const passes = ({ status }) => !status || [408, 425, 429].includes(status) || (status >= 500 && status !== 501);

/** Asks again and again for what follows its cursor. */
class Connection {
  /** @type {AbortController | null} */
  #attempt = null;
  #heard = 0;
  #isHurried = false;
  #tries = 0;
  #retry = 0;
  #hasten = () => {};
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #watchdog;
  /** The last reset of channels that were trimmed: it comes again with every connection until the cursor moves on. */
  #told = "";

  /** @param {Requests} requests @param {string} at where to go on @param {boolean} isFresh nothing came yet
   * @param {boolean} [replays] what channels give to a new stream has not come either */
  constructor(requests, at, isFresh, replays = false) {
    this.requests = requests;
    this.at = at;
    this.isFresh = isFresh;
    this.seen = isFresh ? "" : at;
    this.replays = replays;
  }

  /** Until `signal`, or the end. @param {Hooks} hooks @param {AbortSignal} signal @returns {Promise<End>} */
  async run(hooks, signal) {
    while (!signal.aborted) {
      const attempt = (this.#attempt = new AbortController());
      const stop = () => {
        clearTimeout(this.#watchdog);
        attempt.abort();
      };
      signal.addEventListener("abort", stop);
      let error = null;
      this.#isHurried = false;
      this.#heard = Date.now();
      this.#watch();
      try {
        const end = await this.#read(hooks, attempt.signal);
        if (end) return end;
      } catch (reason) {
        error = asStreamError(reason);
      } finally {
        stop();
        signal.removeEventListener("abort", stop);
      }
      if (signal.aborted) break;
      if (error && !passes(error)) throw error;
      hooks.status("reconnecting", error);
      if (!this.#isHurried) await this.#rest(error, signal);
    }
    return {};
  }

  #watch() {
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => this.#watch(), Math.min(this.check(), this.requests.stallMs, MAX_DELAY));
  }

  /** A dead connection can look open, after a sleep above all. Returns the milliseconds that are left to it. */
  check() {
    const { stallMs } = this.requests;
    // Not performance.now(), which stands still while a computer sleeps. A clock that was set back counts from there.
    const now = Date.now();
    if (this.#heard > now && this.#heard < Infinity) this.#heard = now;
    const left = this.#heard + stallMs - now;
    if (left <= 0) this.#attempt?.abort(new StreamError(`not a byte for ${stallMs / 1000} s`));
    return left;
  }

  /** There is reason to think that it works now. What the server asked to wait is waited. @param {number} since */
  hurry(since) {
    this.#hasten();
    if (this.#heard < since) {
      this.#isHurried = true;
      this.#attempt?.abort(new StreamError("the network was away"));
    }
  }

  /** @param {StreamError | null} error @param {AbortSignal} signal */
  async #rest(error, signal) {
    // A listener may have closed the stream just now.
    if (signal.aborted) return;
    const jitter = this.requests.jitter(this.#tries++);
    const asked = Math.max(this.#retry, error?.retryAfter ?? 0);
    // All who were sent away together were told the same Retry-After, but each its own `retry`.
    const wait = error?.retryAfter ? asked + jitter : Math.max(asked, jitter);
    const least = Date.now() + asked;
    await new Promise((rested) => {
      let timer = setTimeout(rested, Math.min(wait, MAX_DELAY));
      this.#hasten = () => {
        clearTimeout(timer);
        timer = setTimeout(rested, signal.aborted ? 0 : Math.min(least - Date.now(), MAX_DELAY));
      };
      signal.addEventListener("abort", this.#hasten);
    });
    signal.removeEventListener("abort", this.#hasten);
  }

  /** @param {Hooks} hooks @param {AbortSignal} signal @returns {Promise<End | undefined>} */
  async #read(hooks, signal) {
    const first = this.isFresh && this.at ? { last_event_id: this.at, ...(this.replays && { replay: "1" }) } : {};
    const params = { envelope: "1", ...first, ...hooks.params };
    const response = await this.requests.open(params, this.isFresh ? "" : this.at, signal);
    if (response.status === 204) return { reason: "" };
    const refusal = await refusalOf(response);
    if (refusal) throw refusal;
    if (hooks.opened?.(response.headers) === false) return {};
    this.requests.learn(response.headers);
    this.#watch();
    if (!this.at) {
      // Begun without a cursor, it has one before the first event, which a broken connection may keep from it.
      this.at = response.headers.get("Events-Cursor") ?? "";
      this.replays = true;
      hooks.begun?.(this.at);
    }
    hooks.status("open", null);
    /** @type {ParsedEvent[]} */
    const parsed = [];
    const parse = createParser((event) => parsed.push(event), (retry) => (this.#retry = Math.min(retry, MAX_DELAY)));
    const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      // However long it takes to handle: it is not the connection that is slow.
      this.#heard = Infinity;
      parse(value);
      for (const event of parsed.splice(0)) {
        const next = this.#take(event, hooks);
        if (next instanceof Promise) await next;
        else if (next) return next;
        if (signal.aborted) return;
      }
      this.#heard = Date.now();
      hooks.heard?.();
    }
  }

  /** @param {ParsedEvent} event @param {Hooks} hooks @returns {void | End | Promise<unknown>} */
  #take({ type, data, lastEventId, hasId }, hooks) {
    const object = parseObject(data);
    // Control events are what has no cursor of its own.
    if (!hasId && type === "stream-closed") return { reason: String(object.reason) };
    if (!hasId && type === "stream-reset") {
      this.isFresh = false;
      // Channels that were not trimmed go on from the old cursor.
      const isPast = object.reason !== "trimmed" || this.requests.areAll(object.channels);
      if (isPast) [this.at, this.seen] = [String(object.cursor), ""];
      else if (this.#told === data) return;
      this.#told = data;
      return hooks.reset(object, isPast);
    }
    this.isFresh = false;
    if (!hasId && type === "stream-end") {
      this.at = String(object.cursor);
      // Where the page's own URL asked for that, there is no more to come.
      return hooks.params?.follow ? {} : { reason: "" };
    }
    if (hasId && covers(this.seen, lastEventId)) return;
    const before = this.at;
    if (hasId) this.at = this.seen = lastEventId;
    this.#tries = 0;
    const isEnvelope = "channel" in object && "data" in object;
    const { channel, event, data: content } = isEnvelope ? object : { channel: "", event: type, data };
    return hooks.take({ id: hasId ? lastEventId : "", channel, event, data: content }, before, data.length);
  }
}

/** What has come before it can be used: no more than a page can hold. */
class Bounded {
  /** @type {Note[]} */
  #notes = [];
  #size = 0;

  /** Returns whether there was room. @param {Note} note */
  add(note) {
    if (this.#notes.length >= MAX_WAITING || this.#size >= MAX_WAITING_SIZE) return false;
    this.#notes.push(note);
    this.#size += note.size ?? 0;
    return true;
  }

  next() {
    const note = this.#notes.shift();
    this.#size -= note?.size ?? 0;
    return note;
  }
}

/** What a stream asks for, and how long it waits. */
class Requests {
  /** @type {URL | undefined} the last one, as the page gave it */
  #asked;

  /** @param {Source} url @param {StreamOptions} options */
  constructor(url, options) {
    const { stallMs = STALL, backoff: { base = 1000, cap = 30_000 } = {}, channels = [], share } = options;
    const { headers, credentials = "same-origin" } = options;
    for (const [name, value] of Object.entries({ stallMs, base, cap })) {
      if (typeof value !== "number" || !(value > 0)) throw new TypeError(`openStream: ${name} is milliseconds, more than 0, not ${value}`);
    }
    if (!Array.isArray(channels)) throw new TypeError(`openStream: channels is an array of names, not ${channels}`);
    if (share && share !== "tabs") throw new TypeError(`openStream: share is "tabs" or nothing, not ${share}`);
    if (!["omit", "same-origin", "include"].includes(credentials)) {
      throw new TypeError(`openStream: credentials is "omit", "same-origin" or "include", not ${credentials}`);
    }
    if (typeof headers !== "function") new Headers(headers);
    if (typeof url !== "function") urlOf(url);
    this.url = url;
    this.options = options;
    this.channels = channels;
    this.stallMs = stallMs;
    this.base = base;
    this.cap = cap;
  }

  /** Milliseconds, at random, before another try. @param {number} tries that there were */
  jitter(tries) {
    return Math.random() * Math.min(this.cap, this.base * 2 ** tries);
  }

  async resolve() {
    const given = await (typeof this.url === "function" ? this.url() : this.url);
    const url = urlOf(given);
    for (const channel of this.channels) url.searchParams.append("channel", channel);
    this.#asked = new URL(url);
    return url;
  }

  /** What is followed, the same in all tabs: of the URL that was asked for last, or is asked for now. */
  get name() {
    const { origin, pathname, searchParams, search } = /** @type {URL} */ (this.#asked);
    const channels = [...new Set(searchParams.getAll("channel"))].sort();
    return `live-events 1 ${origin}${pathname} ${channels.length ? channels : search}`;
  }

  /** Whether these are all channels, and nothing of them that is kept will come. @param {unknown} channels */
  areAll(channels) {
    const { searchParams } = /** @type {URL} */ (this.#asked);
    const followed = searchParams.getAll("channel");
    return !!followed.length && !searchParams.has("from") && followed.every((name) => [channels].flat().includes(name));
  }

  /** What the server says of itself. @param {Headers} headers */
  learn(headers) {
    const keepalive = Number(headers.get("Events-Keepalive"));
    if (this.options.stallMs === undefined && keepalive > 0) this.stallMs = Math.max(3000 * keepalive, LEAST_STALL);
  }

  /** @param {Record<string, string>} params @param {string} lastEventId @param {AbortSignal} signal */
  async open(params, lastEventId, signal) {
    const { headers: given, credentials = "same-origin" } = this.options;
    const url = await unlessAborted(this.resolve(), signal);
    const own = typeof given === "function" ? unlessAborted(Promise.resolve(given()), signal) : given;
    const headers = new Headers(await own);
    headers.set("Accept", "text/event-stream");
    // Of a page's cursor there is none: it would be a header that other origins have to be asked for first.
    if (lastEventId) headers.set("Last-Event-ID", String.fromCharCode(...new TextEncoder().encode(lastEventId)));
    for (const [name, value] of Object.entries(params)) url.searchParams.set(name, value);
    return fetch(url, { headers, credentials, signal, cache: "no-store" });
  }
}

export class EventStream extends EventTarget {
  /** @type {StreamStatus} */
  status = "connecting";
  cursor = "";
  replays = false;
  /** @type {StreamError | null} */
  error = null;

  #requests;
  /** Under which the cursor is kept. */
  #key = "";
  /** Up to where this tab has everything, handled or about to be; whether it is where the page began. */
  #at = "";
  #isFresh = true;
  #gone = new AbortController();
  /** From one pause to the next. */
  #session = new AbortController();
  #pauses = new Set();
  #goOn = () => {};
  #offlineSince = 0;
  /** @type {Set<Connection>} */
  #connections = new Set();
  /** @type {Set<Reader>} */
  #readers = new Set();
  #attend = () => {};
  /** @type {Promise<void> | null} until somebody listens */
  #audience;
  #isAlone = !globalThis.navigator?.locks || !globalThis.BroadcastChannel;
  /** What another tab's connection brought, to be handled here. */
  #waiting = new Bounded();
  /** @type {Promise<void> | null} */
  #emptying = null;
  /** @type {Promise<void> | null} the last one */
  #filling = null;
  #fruitless = 0;
  /** @type {Bounded | null} what comes while a gap is being filled */
  #late = null;

  /** @param {Source} url @param {StreamOptions} options */
  constructor(url, options) {
    super();
    this.#requests = new Requests(url, options);
    this.cursor = this.#at = options.lastEventId ?? "";
    this.replays = !!options.replay || !this.cursor;
    this.#audience = new Promise((attend) => {
      this.#attend = () => {
        this.#audience = null;
        attend();
      };
    });
    const { signal } = options;
    signal?.addEventListener("abort", () => this.close(), { signal: this.#gone.signal });
    if (signal?.aborted) this.close();
    // What is closed at once, as React's StrictMode does it, has asked for nothing.
    queueMicrotask(() => this.#run());
  }

  close() {
    this.#end();
  }

  /** @param {any} args */
  addEventListener(...args) {
    super.addEventListener(.../** @type {Parameters<EventTarget["addEventListener"]>} */ (args));
    if (args[0] === "message") this.#attend();
  }

  /** @returns {AsyncIterableIterator<StreamEvent>} */
  [Symbol.asyncIterator]() {
    /** @type {Reader} */
    const reader = { event: null, done() {}, wake() {} };
    let isOver = false;
    /** @type {Promise<any>} */
    let last = Promise.resolve();
    const leave = () => {
      isOver = true;
      this.#readers.delete(reader);
      this.close();
      reader.done(false);
      reader.wake();
    };
    /** @returns {Promise<IteratorResult<StreamEvent>>} */
    const step = async () => {
      if (!isOver) this.#readers.add(reader);
      this.#attend();
      // Whoever asks for the next has handled the one before.
      reader.done(true);
      while (!reader.event && !isOver && this.status !== "closed") {
        await new Promise((wake) => (reader.wake = () => wake(0)));
      }
      const { event } = reader;
      reader.event = null;
      if (event && !isOver) return { done: false, value: event };
      const error = isOver ? null : this.error;
      leave();
      if (error) throw error;
      return { done: true, value: undefined };
    };
    // Not a generator: its `return` would wait for an event that is waited for.
    return {
      next: () => (last = last.then(step, step)),
      return: async (value) => {
        leave();
        return { done: true, value };
      },
      [Symbol.asyncIterator]() {
        return this;
      },
    };
  }

  // Life

  async #run() {
    if (this.status === "closed") return;
    this.#listen();
    try {
      const { persist, share } = this.#requests.options;
      if (persist) {
        this.#key = persist === true ? await this.#name() : persist;
        // What no server has sent is as good as nothing.
        const [, kept, replays] = /^([^\0-\x1f\x7f]{1,1000})(\n?)$/.exec(this.#stored() ?? "") ?? [];
        if (kept) {
          this.cursor = this.#at = kept;
          this.replays = this.#isFresh = !!replays;
        }
      }
      while (!this.#gone.signal.aborted) {
        this.#session = new AbortController();
        const { signal } = this.#session;
        if (this.#pauses.size) {
          this.#say("paused", null);
          await new Promise((goOn) => (this.#goOn = () => goOn(0)));
          continue;
        }
        // What the last session began to hand on comes first.
        await this.#filling;
        await this.#emptying;
        if (share && !this.#isAlone) await this.#share(signal);
        else await this.#follow(signal);
      }
    } catch (error) {
      this.#end(asStreamError(error));
    }
  }

  /** That of what is followed. Asked for again where a function does not give the URL now. */
  async #name() {
    const { signal } = this.#gone;
    for (let tries = 0; ; tries++) {
      try {
        const limit = AbortSignal.timeout(Math.min(this.#requests.stallMs, MAX_DELAY));
        await unlessAborted(unlessAborted(this.#requests.resolve(), limit), signal);
        return this.#requests.name;
      } catch (fault) {
        const error = asStreamError(fault);
        if (!passes(error) || signal.aborted) throw error;
        this.#say("reconnecting", error);
        await rest(this.#requests.jitter(tries), signal);
      }
    }
  }

  #listen() {
    const { signal } = this.#gone;
    const { document: page } = globalThis;
    /** @param {EventTarget | undefined} target @param {string} type @param {() => void} handle */
    const on = (target, type, handle) => target?.addEventListener?.(type, handle, { signal });
    const hurry = () => this.#connections.forEach((connection) => connection.hurry(this.#offlineSince));
    const look = () => {
      if (this.#requests.options.pauseWhenHidden) this.#pause("hidden", page.hidden);
      if (page.hidden) return;
      this.#connections.forEach((connection) => connection.check());
      hurry();
    };
    on(page, "visibilitychange", look);
    on(globalThis, "online", hurry);
    on(globalThis, "offline", () => (this.#offlineSince = Date.now()));
    // A page with a connection does not get into the back-forward cache, and a frozen one must not hold that of others.
    on(globalThis, "pagehide", () => this.#pause("gone", true));
    on(globalThis, "pageshow", () => this.#pause("gone", false));
    on(page, "freeze", () => this.#pause("gone", true));
    on(page, "resume", () => this.#pause("gone", false));
    if (page) look();
  }

  /** @param {string} why @param {boolean} isPaused */
  #pause(why, isPaused) {
    if (isPaused) {
      this.#pauses.add(why);
      this.#session.abort();
    } else if (this.#pauses.delete(why) && !this.#pauses.size) this.#goOn();
  }

  /** @param {StreamStatus} status @param {StreamError | null} error */
  #say(status, error) {
    if (this.status === "closed" || (this.status === status && this.error?.message === error?.message)) return;
    this.status = status;
    this.error = error;
    this.#dispatch("status", { status, error });
  }

  /** @param {StreamError | null} [error] @param {string} [reason] of a `stream-closed` */
  #end(error = null, reason = "") {
    if (this.status === "closed") return;
    this.#gone.abort();
    this.#session.abort();
    this.#goOn();
    this.#attend();
    this.#say("closed", error);
    if (reason) this.#dispatch("stream-closed", { reason });
    if (error) this.#dispatch("error", error);
    for (const { wake } of this.#readers) wake();
  }

  /** @param {keyof EventStreamEventMap} type @param {unknown} detail */
  #dispatch(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  // Handing on

  /** @param {StreamEvent} event @returns {void | Promise<unknown>} until it has been handled */
  #handle(event) {
    if (this.#audience) return this.#audience.then(() => this.#handle(event));
    if (this.status === "closed") return;
    this.#dispatch("message", event);
    if (!this.#readers.size) return this.#handled(event);
    const all = [...this.#readers].map(
      (reader) =>
        new Promise((done) => {
          Object.assign(reader, { event, done });
          reader.wake();
        }),
    );
    return Promise.all(all).then((each) => each.every(Boolean) && this.#handled(event));
  }

  /** @param {StreamReset} reset @param {boolean} isPast @returns {void | Promise<void>} */
  #handleReset(reset, isPast) {
    if (this.#audience) return this.#audience.then(() => this.#handleReset(reset, isPast));
    if (this.status === "closed") return;
    this.#dispatch("stream-reset", reset);
    if (isPast) return this.#handled({ id: reset.cursor });
    // A page that loads itself anew must not meet it again: it begins where it is rendered.
    this.replays = false;
    this.#keep("");
  }

  /** @param {{ id: string }} event @param {boolean} [replays] */
  #handled({ id }, replays = false) {
    this.replays = replays;
    if (!id) return;
    this.cursor = id;
    this.#keep(replays ? `${id}\n` : id);
  }

  /** For the next load of the page. @param {string} text "" for nothing */
  #keep(text) {
    try {
      if (this.#key && text) sessionStorage.setItem(this.#key, text);
      else if (this.#key) sessionStorage.removeItem(this.#key);
    } catch {
      // Full, or switched off: a reload begins as a first visit does.
    }
  }

  #stored() {
    try {
      return sessionStorage.getItem(this.#key);
    } catch {
      return null;
    }
  }

  // A connection of its own

  /** @param {Connection} connection @param {Hooks} hooks @param {AbortSignal} signal */
  async #connect(connection, hooks, signal) {
    this.#connections.add(connection);
    try {
      return await connection.run(hooks, signal);
    } finally {
      this.#connections.delete(connection);
    }
  }

  /** @param {AbortSignal} signal @param {Partial<Hooks>} [hooks] */
  async #follow(signal, hooks = {}) {
    const connection = new Connection(this.#requests, this.#at, this.#isFresh, this.replays);
    /** @type {Hooks} */
    const all = {
      take: (event) => this.#handle(event),
      reset: (reset, isPast) => this.#handleReset(reset, isPast),
      status: (status, error) => this.#say(status, error),
      begun: (id) => this.#handled({ id }, true),
      ...hooks,
    };
    try {
      const { reason } = await this.#connect(connection, all, signal);
      if (reason !== undefined) this.#end(null, reason);
    } finally {
      this.#at = connection.at;
      this.#isFresh = connection.isFresh;
    }
  }

  // One connection for all tabs of a visitor

  /** Gets what there is until now, and who it is for: nothing where that is not who is wanted.
   * @param {AbortSignal} signal @param {string} [wanted] */
  async #catchUp(signal, wanted) {
    /** @type {string | null} */
    let visitor = null;
    await this.#follow(signal, {
      params: { follow: "0", visitor: "1" },
      opened: (headers) => !!(visitor = headers.get("Events-Visitor")) && (wanted ?? visitor) === visitor,
      status: (status, error) => status === "open" || this.#say(status, error),
    });
    return visitor;
  }

  /** @param {AbortSignal} signal */
  async #share(signal) {
    const visitor = await this.#catchUp(signal);
    if (signal.aborted) return;
    // A server that does not say whose stream it is must not have it shared.
    if (!visitor) return this.#follow(signal);
    await this.#join(`${this.#requests.name} ${visitor}`, visitor, signal);
    // Deposed, or somebody else is signed in by now.
    await rest(Math.random() * this.#requests.base, signal);
  }

  /** @param {string} name @param {string} visitor @param {AbortSignal} signal */
  async #join(name, visitor, signal) {
    const { stallMs } = this.#requests;
    const left = new AbortController();
    const leave = () => left.abort();
    /** @type {BroadcastChannel} */
    let channel;
    try {
      channel = new BroadcastChannel(name);
    } catch {
      // A page that may store nothing.
      this.#isAlone = true;
      return;
    }
    /** @type {Connection | null} of all, where this tab leads */
    let leading = null;
    /** How that is. @type {{ status: StreamStatus, error: StreamError | null }} */
    let led = { status: "connecting", error: null };
    let [heard, toldAt] = [Date.now(), 0];
    /** @param {Note} note */
    const tell = (note) => channel.postMessage(note);
    const tellStatus = () => {
      if (!leading || left.signal.aborted) return;
      toldAt = Date.now();
      tell({ at: leading.at, status: led.status, error: plain(led.error) });
    };
    const ask = () => {
      if (!leading) return tell({ hello: 1 });
      // What a gap has met is not how the connection is.
      this.#say(led.status, led.error);
      tellStatus();
      accept({ at: leading.at });
    };
    const catchUp = async () => {
      // Somebody else is signed in by now.
      if ((await this.#catchUp(left.signal, visitor)) !== visitor) leave();
    };
    /** @param {Note} note */
    const accept = (note) => this.#accept(note, left.signal, { ask, catchUp });
    const lead = async () => {
      leading = new Connection(this.#requests, this.#at, false);
      led = { status: this.status, error: this.error };
      /** @type {Hooks} */
      const hooks = {
        params: { visitor: "1" },
        opened: (headers) => headers.get("Events-Visitor") === visitor,
        status: (status, error) => {
          led = { status, error };
          this.#say(status, error);
          tellStatus();
        },
        take: (event, prev, size) => {
          tell({ event, prev, size });
          accept({ event, prev, size });
        },
        // Each tab asks what that means for its own cursor.
        reset: ({ cursor, reason }) => {
          const note = { at: cursor, isNew: reason !== "trimmed" };
          tell(note);
          accept(note);
        },
        // A hidden page's own timers may be slower than the others' patience.
        heard: () => {
          if (Date.now() - toldAt >= stallMs / 3) tellStatus();
        },
      };
      try {
        const { reason } = await this.#connect(leading, hooks, left.signal);
        if (reason !== undefined && !left.signal.aborted) {
          tell({ end: { reason } });
          this.#end(null, reason);
        }
      } catch (fault) {
        // The others ask for themselves: the headers and the ticket were this tab's.
        this.#end(asStreamError(fault));
      } finally {
        leave();
      }
    };
    /** @param {LockOptions} options */
    const queue = (options) =>
      navigator.locks.request(name, options, lead).catch(({ name }) => {
        // Deposed, or left; or a page that may have no locks.
        this.#isAlone ||= name !== "AbortError";
        leave();
      });
    const timer = setInterval(() => {
      if (leading) return tellStatus();
      if (Date.now() - heard < stallMs) return;
      // Whoever leads is stuck, or its page is frozen.
      heard = Date.now();
      queue({ steal: true });
    }, Math.min(stallMs / 3, MAX_DELAY));
    channel.onmessage = ({ data }) => {
      const { hello, status, error, end } = /** @type {Note} */ (data);
      if (hello) return tellStatus();
      // Also where this tab has got the lock before it is told.
      if (end) return this.#end(null, end.reason);
      if (leading) return;
      heard = Date.now();
      const problem = error ? new StreamError(error.message, error.status) : null;
      if (status) this.#say(status, problem);
      accept(data);
    };
    signal.addEventListener("abort", leave);
    if (signal.aborted) leave();
    else {
      queue({ signal: left.signal });
      tell({ hello: 1 });
    }
    await new Promise((gone) => (left.signal.aborted ? gone(0) : left.signal.addEventListener("abort", gone)));
    signal.removeEventListener("abort", leave);
    clearInterval(timer);
    channel.close();
  }

  /** Takes what the leading tab got, where it follows what this one has. @param {Note} note
   * @param {AbortSignal} signal @param {Membership} membership */
  #accept(note, signal, membership) {
    const { event, prev = "", at = "", isNew = false } = note;
    // What is left out is noticed as a gap.
    if (this.#late) this.#late.add(note);
    else if ((!isNew && covers(this.#at, event ? event.id : at)) || !(event || at)) return;
    else if (event && covers(this.#at, prev) && this.#waiting.add(note)) {
      this.#at = event.id;
      this.#emptying ??= this.#empty();
    } else this.#filling = this.#fill(signal, membership);
  }

  async #empty() {
    for (let note; (note = this.#waiting.next()); ) await this.#handle(/** @type {StreamEvent} */ (note.event));
    this.#emptying = null;
  }

  /** @param {AbortSignal} signal @param {Membership} membership */
  async #fill(signal, membership) {
    const late = (this.#late = new Bounded());
    try {
      // What brought nothing brings nothing at once: the server, or the tab that leads, has to find itself.
      if (this.#fruitless) await rest(this.#requests.jitter(this.#fruitless), signal);
      await this.#emptying;
      const before = this.#at;
      if (!signal.aborted) await membership.catchUp();
      this.#fruitless = before === this.#at ? this.#fruitless + 1 : 0;
    } catch (error) {
      this.#end(asStreamError(error));
    }
    this.#late = null;
    if (signal.aborted) return;
    for (let note; (note = late.next()); ) this.#accept(note, signal, membership);
    membership.ask();
  }
}

/** @type {typeof Types.openStream} */
export const openStream = (url, options = {}) => new EventStream(url, options);
