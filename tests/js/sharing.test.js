// @ts-check
/**
 * Tabs that share a stream, where something goes wrong between them: each stream here is a tab. The server is a real
 * one, with a log; BroadcastChannel is Node's own; the locks are a stand-in. tests/test_live_events.py has real tabs.
 */

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";

import { openStream, StreamError } from "../../events/static/events/live-events.js";
import { Locks } from "./locks.js";
import { control, event, guarded, heard, reached, replace, replaceDocument, restore, serve, until } from "./streams.js";

/**
 * @import { IncomingMessage, ServerResponse } from "node:http"
 * @import { EventStream, StreamOptions } from "../../events/static/events/live-events.js"
 * @typedef {{ isCatchUp: boolean, at: string, time: number }} Asked
 */

/** What a site keeps, and whom it answers. */
class Log {
  /** @type {Set<ServerResponse>} who follow it */
  live = new Set();
  /** @type {Asked[]} */
  asked = [];
  visitor = "v1";
  /** @type {(asked: Asked, response: ServerResponse) => unknown} gives something else than false if it has answered */
  answer = () => false;
  /** @type {string[]} */
  #texts = [];

  get cursor() {
    return `e1-${this.#texts.length}`;
  }

  get catchUps() {
    return this.asked.filter(({ isCatchUp }) => isCatchUp);
  }

  publish(count = 1, data = "") {
    const texts = Array.from({ length: count }, (_, number) => {
      const position = this.#texts.length + number + 1;
      return event(position, data ? `${data}${position}` : undefined);
    });
    this.#texts.push(...texts);
    for (const response of this.live) response.write(texts.join(""));
  }

  /** As an older copy of it has been restored. @param {number} count that are left */
  restore(count) {
    this.#texts.length = count;
  }

  /** All connections that follow it break. */
  cut() {
    for (const response of this.live) response.destroy();
  }

  /** @param {IncomingMessage} request @param {ServerResponse} response */
  handle(request, response) {
    const { searchParams } = new URL(request.url ?? "", "http://localhost");
    const at = String(request.headers["last-event-id"] ?? searchParams.get("last_event_id") ?? "");
    const asked = { isCatchUp: searchParams.get("follow") === "0", at, time: Date.now() };
    this.asked.push(asked);
    if (this.answer(asked, response) !== false) return;
    this.start(response);
    const position = at ? Number(at.split("-")[1]) : this.#texts.length;
    if (position > this.#texts.length) {
      response.write(control("stream-reset", { reason: "unknown", cursor: this.cursor, channels: ["news"] }));
    }
    for (const text of this.#texts.slice(position)) response.write(text);
    if (asked.isCatchUp) return response.end(control("stream-end", { cursor: this.cursor }));
    this.live.add(response);
    response.on("close", () => this.live.delete(response));
  }

  /** @param {ServerResponse} response */
  start(response) {
    const visitor = this.visitor && { "Events-Visitor": this.visitor };
    response.writeHead(200, { "Content-Type": "text/event-stream", "Events-Cursor": this.cursor, ...visitor });
    response.flushHeaders();
  }
}

let log = new Log();
let locks = new Locks();
/** @type {EventStream[]} */
let opened = [];
/** @type {(() => void)[]} */
let cleanups = [];
let number = 0;

const server = serve((request, response) => {
  // A connection that is kept may be gone when the next request is sent on it.
  response.setHeader("Connection", "close");
  log.handle(request, response);
});

beforeEach(() => {
  [log, locks, opened, cleanups] = [new Log(), new Locks(), [], []];
  number++;
  replace("navigator", { locks });
});

afterEach(async () => {
  for (const stream of opened) stream.close();
  try {
    await until(() => !locks.counts.some(Boolean), "the locks to be let go");
  } finally {
    for (const cleanup of cleanups.reverse()) cleanup();
    restore();
    server.cut();
  }
});

/** Another tab, and the positions that it has got. @param {StreamOptions} [options] */
const tab = (options) => {
  const stream = openStream(`${server.url}/stream/${number}/`, {
    channels: ["news"],
    share: "tabs",
    backoff: { base: 1, cap: 1 },
    ...options,
  });
  opened.push(stream);
  /** @type {string[]} */
  const got = [];
  stream.addEventListener("message", ({ detail }) => got.push(String(detail.data)));
  return Object.assign(stream, { got });
};

/** Tabs of which the first leads. @param {number} [count] @param {StreamOptions} [options] */
const tabs = async (count = 2, options) => {
  const all = [];
  for (let index = 0; index < count; index++) {
    all.push(tab(options));
    await guarded(reached(all[index], "open"), `tab ${index} to be open`);
    await until(() => log.live.size === 1, "a tab to lead");
  }
  await until(() => locks.counts[1] === count - 1, "the others to wait");
  return all;
};

/** @param {number} count @param {string} [data] */
const upTo = (count, data = "n") => Array.from({ length: count }, (_, index) => `${data}${index + 1}`);

/** @param {{ got: string[] }[]} all @param {string[]} wanted */
const allGet = async (all, wanted) => {
  await until(() => all.every(({ got }) => got.length >= wanted.length), `${wanted.length} events in each tab`);
  for (const { got } of all) assert.deepEqual(got, wanted);
};

test("tabs of one visitor have one connection, and each has each event once", async () => {
  const all = await tabs(4);
  assert.deepEqual(all.map(({ cursor }) => cursor), Array(4).fill("e1-0"));
  log.publish(3);
  await allGet(all, upTo(3));
  assert.equal(log.asked.length, 5);
  assert.deepEqual(all.map(({ cursor }) => cursor), Array(4).fill("e1-3"));
});

test("a tab that is closed because of a fault lets the others have the connection", async () => {
  const [leader, other] = await tabs();
  leader.addEventListener("status", () => leader.close());
  log.cut();
  await reached(leader, "closed");
  await until(() => log.live.size === 1, "the other to lead");
  assert.deepEqual(locks.counts, [1, 0]);
  log.publish();
  await allGet([other], ["n1"]);
  assert.deepEqual(leader.got, []);
});

test("a tab that is told no ends, and the others ask for themselves", async () => {
  const [leader, other] = await tabs();
  log.answer = (_, response) => {
    log.answer = () => false;
    response.writeHead(403).end();
  };
  log.cut();
  await reached(leader, "closed");
  assert.equal(leader.error?.status, 403);
  await until(() => log.live.size === 1, "the other to lead");
  log.publish();
  await allGet([other], ["n1"]);
  assert.deepEqual([other.status, other.error], ["open", null]);
});

test("the end of the stream is that of all tabs", async () => {
  const all = await tabs(3);
  const reasons = all.map((one) => heard(one, "stream-closed"));
  for (const response of log.live) response.end(control("stream-closed", { reason: "deleted" }));
  assert.deepEqual(await Promise.all(reasons), Array(3).fill({ reason: "deleted" }));
  assert.deepEqual(all.map(({ status }) => status), Array(3).fill("closed"));
});

test("a log that was restored is told to all tabs, and what is written from then on comes", async () => {
  const all = await tabs(3);
  log.publish(5);
  await allGet(all, upTo(5));
  const resets = all.map((one) => heard(one, "stream-reset"));
  log.restore(2);
  log.cut();
  const told = await Promise.all(resets);
  assert.deepEqual(told.map(({ cursor }) => cursor), Array(3).fill("e1-2"));
  await until(() => log.live.size === 1, "the connection");
  log.publish(2, "again");
  await allGet(all, [...upTo(5), "again3", "again4"]);
});

/** Counts what the tabs tell each other from now on. */
const listen = () => {
  const told = { notes: 0 };
  const channel = new BroadcastChannel(locks.held[0]);
  channel.onmessage = () => told.notes++;
  cleanups.push(() => channel.close());
  return told;
};

/** Reads on only when asked. @param {EventStream} stream */
const slowly = (stream) => {
  /** @type {string[]} */
  const read = [];
  const events = stream[Symbol.asyncIterator]();
  /** @param {number} count */
  const more = async (count) => {
    for (const _ of Array(count)) read.push((await guarded(events.next(), `event ${read.length + 1}`)).value.data);
    return read;
  };
  return { read, more };
};

for (const who of ["leads", "follows"]) {
  test(`a slow loop of the tab that ${who} gets more than can wait for it`, async () => {
    const all = await tabs();
    const [slow, fast] = who === "leads" ? all : all.reverse();
    const { read, more } = slowly(slow);
    const first = more(1);
    log.publish();
    await first;
    const told = listen();
    log.publish(1100);
    await until(() => fast.got.length === 1101 && told.notes >= 1100, "the fast tab to have all");
    // Time for an answer that should not have been asked for yet, as the loop has one event in hand.
    for (const _ of Array(5)) await (await fetch(`${server.url}/stream/?follow=0`)).text();
    log.asked.splice(-5);
    assert.equal(log.catchUps.length, 2);
    // It has all that may wait, and takes what fills the gap.
    await more(1050);
    assert.equal(log.catchUps.length, 3);
    // While that goes on, as many come again, and the last of them are dropped.
    log.publish(1500);
    await until(() => fast.got.length === 2601, "the fast tab to have all");
    await more(1550);
    assert.deepEqual(read, upTo(2601));
    assert.deepEqual(fast.got, upTo(2601));
    const last = more(1);
    log.publish();
    await last;
    assert.equal(read.at(-1), "n2602");
  });
}

test("a fault while a gap is filled is not how the connection is", async () => {
  const [leader, other] = await tabs();
  const { more } = slowly(leader);
  const first = more(1);
  log.publish();
  await first;
  let refused = 0;
  log.answer = ({ isCatchUp }, response) => isCatchUp && !refused++ && response.writeHead(503).end();
  log.publish(1100);
  await until(() => other.got.length === 1101, "the other tab to have all");
  /** @type {string[]} */
  const said = [];
  for (const one of [leader, other]) one.addEventListener("status", ({ detail }) => said.push(detail.status));
  await more(1100);
  assert.ok(refused >= 1);
  // The gap is over when the last event in it has been handled: when the loop asks for another.
  const last = more(1);
  log.publish();
  await last;
  await until(() => leader.status === "open", "the status of the connection");
  assert.deepEqual(said, ["reconnecting", "open"]);
});

test("a gap that nothing fills is asked about less and less", async () => {
  const [leader] = await tabs(1);
  log.publish(5);
  await allGet([leader], upTo(5));
  const before = log.asked.length;
  // A machine of the site that is behind.
  log.answer = ({ isCatchUp, at }, response) => {
    if (!isCatchUp) return false;
    log.start(response);
    response.end(control("stream-end", { cursor: at }));
  };
  const random = Math.random;
  cleanups.push(() => (Math.random = random));
  Math.random = () => 1;
  const late = tab({ lastEventId: "e1-1", backoff: { base: 10, cap: 80 } });
  await until(() => log.asked.length === before + 7, "the tries");
  const times = log.asked.slice(before).map(({ time }) => time);
  // The first is what a tab begins with, the second the gap; timers may be a millisecond early.
  const waits = times.slice(2).map((time, index) => time - times[index + 1]);
  for (const [index, least] of [20, 40, 80, 80, 80].entries()) assert.ok(waits[index] >= least - 2, String(waits));
  log.answer = () => false;
  await allGet([late], ["n2", "n3", "n4", "n5"]);
});

test("what waits for a slow loop comes before what a page that was frozen catches up with", async () => {
  const page = replaceDocument();
  const [leader, other] = await tabs();
  const { read, more } = slowly(leader);
  const first = more(1);
  log.publish();
  await first;
  log.publish(2);
  await until(() => other.got.length === 3, "the other tab to have all");
  page.dispatchEvent(new Event("freeze"));
  await reached(other, "paused");
  log.publish();
  page.dispatchEvent(new Event("resume"));
  await allGet([other], upTo(4));
  // Time for an answer that should not have been asked for yet.
  for (const _ of Array(5)) await (await fetch(`${server.url}/stream/?follow=0`)).text();
  await more(3);
  assert.deepEqual(read, upTo(4));
});

test("a slow loop of a page that was frozen while a gap was filled gets each event once", async () => {
  const page = replaceDocument();
  const [leader] = await tabs(1);
  log.publish(3);
  await allGet([leader], upTo(3));
  // What the next tab begins with comes from a machine of the site that is behind.
  log.answer = ({ at }, response) => {
    log.answer = () => false;
    log.start(response);
    response.end(control("stream-end", { cursor: at }));
  };
  const { read, more } = slowly(tab({ lastEventId: "e1-0" }));
  await more(1);
  page.dispatchEvent(new Event("freeze"));
  await reached(leader, "paused");
  log.publish();
  page.dispatchEvent(new Event("resume"));
  await allGet([leader], upTo(4));
  await more(3);
  assert.deepEqual(read, upTo(4));
});

test("a tab that is paused says so at once, and one that is back does not wait for a pause between tries", async () => {
  const page = replaceDocument();
  const all = await tabs(2, { backoff: { base: 600_000, cap: 600_000 } });
  for (const count of [1, 2]) {
    page.dispatchEvent(new Event("freeze"));
    await Promise.all(all.map((one) => reached(one, "paused")));
    log.publish();
    page.dispatchEvent(new Event("resume"));
    await allGet(all, upTo(count));
  }
});

test("of large events fewer wait for a slow loop, and what is left out comes from the log", async () => {
  const [leader, other] = await tabs();
  const { read, more } = slowly(other);
  const first = more(1);
  log.publish(1, "n");
  await first;
  const told = listen();
  const large = "x".repeat(2 ** 19);
  log.publish(20, large);
  await until(() => leader.got.length === 21 && told.notes >= 20, "the leading tab to have all");
  assert.equal(log.catchUps.length, 2);
  // Eight of them are all that may wait.
  await more(20);
  assert.equal(log.catchUps.length, 3);
  assert.deepEqual(read.map((text) => text.replaceAll("x", "")), ["n1", ...upTo(21, "").slice(1)]);
});

test("a gap is not filled for somebody else", async () => {
  const [leader, other] = await tabs();
  // The leading tab's words are lost for a while; meanwhile somebody else signs in.
  const { postMessage } = BroadcastChannel.prototype;
  cleanups.push(() => (BroadcastChannel.prototype.postMessage = postMessage));
  BroadcastChannel.prototype.postMessage = () => {};
  log.publish(2);
  await allGet([leader], upTo(2));
  log.visitor = "v2";
  BroadcastChannel.prototype.postMessage = postMessage;
  log.publish();
  await allGet([other], upTo(3));
  await until(() => locks.held.some((name) => name.endsWith(" v2")), "a lock of the other visitor's");
  await until(() => log.live.size === 2, "a connection for each visitor");
  // What came for the gap was not taken: it is asked for again, by whoever that is.
  assert.deepEqual(log.catchUps.map(({ at }) => at), ["", "", "e1-0", "e1-0"]);
  // Whoever they are: what the page asks for now is answered to who is signed in now.
  log.cut();
  await until(() => locks.counts.join() === "1,1" && log.live.size === 1, "the tabs to share again");
  log.publish();
  await allGet([leader, other], upTo(4));
});

test("where locks are not to be had any more, what waits for a slow loop comes first", async () => {
  slowTimer();
  const leader = tab({ stallMs: 100_000 });
  await until(() => log.live.size === 1, "a tab to lead");
  const other = tab({ stallMs: 400 });
  await reached(other, "open");
  const { read, more } = slowly(other);
  const first = more(1);
  log.publish();
  await first;
  const told = listen();
  log.publish(3);
  await until(() => leader.got.length === 4 && told.notes >= 3, "the leading tab to have all");
  const request = locks.request.bind(locks);
  locks.request = (name, options, run) =>
    options.steal ? Promise.reject(new DOMException("denied", "SecurityError")) : request(name, options, run);
  // What comes with the connection of its own stays behind what waits.
  await more(1);
  await until(() => log.live.size === 2 || locks.counts[1] === 0, "the other to be alone");
  log.publish();
  await more(3);
  assert.deepEqual(read, upTo(5));
});

for (const [what, name, value] of /** @type {[string, string, any][]} */ ([
  [
    "BroadcastChannel",
    "BroadcastChannel",
    class {
      constructor() {
        throw new DOMException("denied", "SecurityError");
      }
    },
  ],
  ["locks", "navigator", { locks: { request: () => Promise.reject(new DOMException("denied", "SecurityError")) } }],
])) {
  test(`a page that may have no ${what} has a connection of its own`, async () => {
    replace(name, value);
    const all = [tab(), tab()];
    await until(() => log.live.size === 2, "two connections");
    log.publish();
    await allGet(all, ["n1"]);
  });
}

test("a server that does not say who the visitor is has no tabs that share", async () => {
  log.visitor = "";
  const all = [tab(), tab()];
  await until(() => log.live.size === 2, "two connections");
  log.publish();
  await allGet(all, ["n1"]);
  assert.deepEqual(locks.counts, [0, 0]);
});

test("tabs find each other again when somebody else has signed in", async () => {
  const all = await tabs(3);
  log.publish();
  await allGet(all, ["n1"]);
  log.visitor = "v2";
  log.cut();
  const areAgain = () => locks.held[0]?.endsWith(" v2") && locks.counts.join() === "1,2" && log.live.size === 1;
  await until(areAgain, "the tabs to share again");
  log.publish();
  await allGet(all, upTo(2));
});

/** Makes the next interval one that never comes, as it is for the tab that sets it where its timers hardly run. */
const slowTimer = () => {
  const interval = globalThis.setInterval;
  replace("setInterval", (/** @type {any[]} */ ...args) => {
    globalThis.setInterval = interval;
    return interval(args[0], 2 ** 31 - 1);
  });
};

test("keep-alives of the connection are signs of life of the tab that has it", async () => {
  // As where the tab's own timers hardly run: hidden for some minutes, in Chromium once a minute.
  const stallMs = 1500;
  slowTimer();
  const leader = tab({ stallMs });
  await until(() => log.live.size === 1, "a tab to lead");
  const other = tab({ stallMs });
  await reached(other, "open");
  const alive = setInterval(() => log.live.forEach((response) => response.write(":\n")), 50);
  cleanups.push(() => clearInterval(alive));
  const told = listen();
  // Each is a third of what the other has patience for.
  await until(() => told.notes >= 5, "signs of life");
  assert.equal(locks.steals, 0);
  assert.deepEqual([leader.status, other.status, log.live.size], ["open", "open", 1]);
});

test("a tab that says nothing loses the connection to another, and follows that one", async () => {
  slowTimer();
  const leader = tab({ stallMs: 100_000 });
  await until(() => log.live.size === 1, "a tab to lead");
  const other = tab({ stallMs: 200 });
  await until(() => locks.steals > 0, "the other to take over");
  await until(() => log.live.size === 1 && locks.counts.join() === "1,1", "the first to follow");
  log.publish();
  await allGet([leader, other], ["n1"]);
});

test("a function that cannot give the URL any more ends its own tab only", async () => {
  let isSignedOut = false;
  const url = async () => {
    if (isSignedOut) throw new StreamError("signed out", 401);
    return `${server.url}/stream/${number}/?channel=news`;
  };
  const leader = openStream(url, { share: "tabs", backoff: { base: 1, cap: 1 } });
  opened.push(leader);
  await until(() => log.live.size === 1, "a tab to lead");
  const other = tab();
  await reached(other, "open");
  isSignedOut = true;
  log.cut();
  await reached(leader, "closed");
  assert.equal(leader.error?.message, "signed out");
  await until(() => log.live.size === 1, "the other to lead");
  log.publish();
  await allGet([other], ["n1"]);
});
