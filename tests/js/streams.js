// @ts-check
/** What tests of streams share: the texts of a server, and how to wait for what comes of them. */

/**
 * @import { RequestListener } from "node:http"
 * @import { EventStream, StreamEvent } from "../../events/static/events/live-events.js"
 */

import { once } from "node:events";
import { createServer } from "node:http";
import { after, before } from "node:test";

/** Milliseconds after which a wait has failed. */
export const GUARD = 10_000;

/** A server of Node's own, for all tests of a file; `url` is its origin. @param {RequestListener} answer */
export const serve = (answer) => {
  const server = createServer(answer);
  const served = { url: "", cut: () => server.closeAllConnections() };
  before(async () => {
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    served.url = `http://127.0.0.1:${/** @type {import("node:net").AddressInfo} */ (server.address()).port}`;
  });
  after(() => {
    served.cut();
    server.close();
  });
  return served;
};

/** @type {(() => void)[]} */
const restorers = [];

/** Another global, until `restore`. @param {string} name @param {any} value */
export const replace = (name, value) => {
  const before = Object.getOwnPropertyDescriptor(globalThis, name);
  Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  restorers.push(() => {
    if (before) Object.defineProperty(globalThis, name, before);
    else Reflect.deleteProperty(globalThis, name);
  });
};

/** All globals that were replaced are what they were. */
export const restore = () => {
  for (const restorer of restorers.splice(0).reverse()) restorer();
};

/** A document, so that there is something to hide and to freeze. */
export const replaceDocument = () => {
  const page = Object.assign(new EventTarget(), { hidden: false });
  replace("document", page);
  return page;
};

/** An event as the server writes it. @param {number} position @param {unknown} data */
export const event = (position, data = `n${position}`, { epoch = "e1", channel = "news", type = "message" } = {}) =>
  `id: ${epoch}-${position}\ndata: ${JSON.stringify({ channel, event: type, data })}\n\n`;

/** A control event: without an id. @param {string} type @param {unknown} data */
export const control = (type, data) => `event: ${type}\ndata: ${JSON.stringify(data)}\n\n`;

/** What a promise gives, unless it takes too long. @template T @param {Promise<T>} promise @param {string} what @returns {Promise<T>} */
export const guarded = (promise, what) => {
  /** @type {NodeJS.Timeout} */
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${GUARD} ms for ${what}`)), GUARD);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
};

/** The next so many events. @param {EventStream} from @param {number} count */
export const next = async (from, count) => {
  /** @type {StreamEvent[]} */
  const found = [];
  const iterator = from[Symbol.asyncIterator]();
  while (found.length < count) {
    const { value, done } = await guarded(iterator.next(), `event ${found.length + 1} of ${count}`);
    if (done) break;
    found.push(value);
  }
  return found;
};

/** The detail of the next event of a type. @param {EventStream} from @param {string} type */
export const heard = (from, type) =>
  guarded(
    new Promise((resolve) => from.addEventListener(type, (/** @type {any} */ { detail }) => resolve(detail))),
    type,
  );

/** @param {EventStream} from @param {string} wanted */
export const reached = async (from, wanted) => {
  while (from.status !== wanted) await heard(from, "status");
};

/** Once it is so. @param {() => unknown} isSo @param {string} what */
export const until = async (isSo, what) => {
  const end = Date.now() + GUARD;
  while (!isSo()) {
    if (Date.now() > end) throw new Error(`waited ${GUARD} ms for ${what}`);
    await new Promise((turn) => setTimeout(turn, 1));
  }
};
