// @ts-check
/** `openStream` against a server that answers as each test says: a real one, of Node's own. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { afterEach, test } from "node:test";

import { openStream, StreamError } from "../../events/static/events/live-events.js";
import { control, event, guarded, heard, next, reached, replace, replaceDocument, restore, serve, until } from "./streams.js";

/**
 * @import { IncomingMessage, ServerResponse } from "node:http"
 * @import { EventStream, StreamOptions } from "../../events/static/events/live-events.js"
 * @typedef {(request: IncomingMessage, response: ServerResponse) => void} Answer
 */

/** @type {Answer[]} what the next requests get, one after the other; the last one again and again */
let answers = [];
/** @type {IncomingMessage[]} */
let requests = [];
/** @type {EventStream[]} */
let opened = [];

const server = serve((request, response) => {
  requests.push(request);
  // A connection that is kept may be gone when the next request is sent on it.
  response.setHeader("Connection", "close");
  const answer = answers.length > 1 ? answers.shift() : answers[0];
  answer?.(request, response);
});

afterEach(async () => {
  for (const stream of opened) stream.close();
  restore();
  server.cut();
  // `fetch` learns of it before it could take one of them for the next test.
  await new Promise((turn) => setTimeout(turn, 5));
  [answers, requests, opened] = [[], [], []];
});

/** A stream that is closed when its test ends. @param {StreamOptions} [options] */
const open = (options) => {
  const stream = openStream(`${server.url}/stream/`, { backoff: { base: 1, cap: 1 }, ...options });
  opened.push(stream);
  return stream;
};

/** A stream of these texts; `open`: which does not end. @param {string[]} parts @returns {Answer} */
const stream =
  (...parts) =>
  (_, response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream; charset=utf-8" });
    response.flushHeaders();
    for (const part of parts) response.write(part);
  };

/** The same, and its end. @param {string[]} parts @returns {Answer} */
const ending =
  (...parts) =>
  (request, response) => {
    stream(...parts)(request, response);
    response.end();
  };

/** @param {number} code @param {string} body @param {Record<string, string>} headers @returns {Answer} */
const status =
  (code, body = "", headers = {}) =>
  (_, response) => {
    response.writeHead(code, { "Content-Type": "text/plain", ...headers });
    response.end(body);
  };

/** @param {number} number */
const query = (number) => new URL(requests[number].url ?? "", server.url).searchParams;

test("events come with their channel, type, data and cursor", async () => {
  answers = [stream("retry: 5\n: stream\n", event(1), event(2, { a: 1 }, { channel: "orders", type: "new" }))];
  const from = open({ channels: ["news", "orders"] });
  assert.deepEqual(await next(from, 2), [
    { id: "e1-1", channel: "news", event: "message", data: "n1" },
    { id: "e1-2", channel: "orders", event: "new", data: { a: 1 } },
  ]);
  assert.equal(from.status, "open");
  assert.deepEqual(query(0).getAll("channel"), ["news", "orders"]);
  assert.equal(query(0).get("envelope"), "1");
  assert.equal(requests[0].headers.accept, "text/event-stream");
  assert.equal(requests[0].headers["last-event-id"], undefined);
});

test("an event of a server that knows no envelope is its text", async () => {
  answers = [stream("data: plain\n\n", "id: 7\nevent: x\ndata: {\"b\":2}\n\n")];
  assert.deepEqual(await next(open(), 2), [
    { id: "", channel: "", event: "message", data: "plain" },
    { id: "7", channel: "", event: "x", data: '{"b":2}' },
  ]);
});

test("a connection that ends goes on from the cursor, and drops what comes again", async () => {
  answers = [ending(event(1), event(2)), stream(event(1), event(2), event(3))];
  const from = open();
  assert.deepEqual((await next(from, 3)).map(({ id }) => id), ["e1-1", "e1-2", "e1-3"]);
  assert.equal(requests[1].headers["last-event-id"], "e1-2");
  assert.equal(query(1).get("last_event_id"), null);
});

test("a connection that breaks goes on from the cursor", async () => {
  answers = [
    (request, response) => {
      stream(event(1))(request, response);
      setImmediate(() => response.destroy());
    },
    stream(event(2)),
  ];
  assert.deepEqual((await next(open(), 2)).map(({ id }) => id), ["e1-1", "e1-2"]);
  assert.equal(requests[1].headers["last-event-id"], "e1-1");
});

test("half an event is nothing", async () => {
  answers = [ending(event(1), event(2).slice(0, -1)), stream(event(2))];
  assert.deepEqual((await next(open(), 2)).map(({ id }) => id), ["e1-1", "e1-2"]);
  assert.equal(requests[1].headers["last-event-id"], "e1-1");
});

test("a page's cursor is a parameter of the first request", async () => {
  answers = [ending(), stream(event(10))];
  const from = open({ lastEventId: "e1-9", replay: true });
  await next(from, 1);
  assert.equal(query(0).get("last_event_id"), "e1-9");
  assert.equal(query(0).get("replay"), "1");
  assert.equal(requests[0].headers["last-event-id"], undefined);
  // Nothing came: it still is where the page began.
  assert.equal(query(1).get("replay"), "1");
});

test("a stream without a cursor has one before its first event", async () => {
  answers = [
    (_, response) => {
      response.writeHead(200, { "Content-Type": "text/event-stream", "Events-Cursor": "e1-9" });
      response.end("retry: 1\n: stream\n");
    },
    stream(event(3), event(10)),
  ];
  const from = open();
  assert.deepEqual((await next(from, 2)).map(({ id }) => id), ["e1-3", "e1-10"]);
  assert.equal(query(0).get("last_event_id"), null);
  // What channels give to a new stream has not come either.
  assert.deepEqual([query(1).get("last_event_id"), query(1).get("replay")], ["e1-9", "1"]);
});

test("where a stream without a cursor began is what another stream goes on from", async () => {
  answers = [
    (_, response) => {
      response.writeHead(200, { "Content-Type": "text/event-stream", "Events-Cursor": "e1-9" });
      response.flushHeaders();
    },
  ];
  const from = open();
  assert.equal(from.cursor, "");
  await reached(from, "open");
  assert.equal(from.cursor, "e1-9");
});

test("what is replayed to a new stream is below the page's cursor, and comes", async () => {
  answers = [stream(event(3), event(10))];
  assert.deepEqual((await next(open({ lastEventId: "e1-9", replay: true }), 2)).map(({ id }) => id), ["e1-3", "e1-10"]);
});

test("the cursor is that of the last event whose handler has run", async () => {
  answers = [stream(event(1), event(2))];
  const from = open();
  const iterator = from[Symbol.asyncIterator]();
  await guarded(iterator.next(), "the first");
  assert.equal(from.cursor, "");
  await guarded(iterator.next(), "the second");
  assert.equal(from.cursor, "e1-1");
});

test("nothing is lost before the first listener", async () => {
  answers = [stream(event(1), event(2))];
  const from = open();
  await reached(from, "open");
  await new Promise((turn) => setTimeout(turn, 50));
  /** @type {string[]} */
  const ids = [];
  const second = guarded(
    new Promise((resolve) =>
      from.addEventListener("message", ({ detail }) => ids.push(detail.id) === 2 && resolve(0)),
    ),
    "two events",
  );
  await second;
  assert.deepEqual(ids, ["e1-1", "e1-2"]);
  assert.equal(from.cursor, "e1-2");
});

test("the slowest of several decides when the stream reads on", async () => {
  answers = [stream(event(1), event(2))];
  const from = open();
  const [fast, slow] = [from[Symbol.asyncIterator](), from[Symbol.asyncIterator]()];
  const [first] = await guarded(Promise.all([fast.next(), slow.next()]), "the first");
  assert.equal(first.value.id, "e1-1");
  let isThere = false;
  const second = fast.next().then(() => (isThere = true));
  await new Promise((turn) => setTimeout(turn, 50));
  assert.equal(isThere, false);
  await guarded(Promise.all([second, slow.next()]), "the second");
});

test("leaving the loop closes the stream, and what was not handled is not counted", async () => {
  answers = [stream(event(1), event(2))];
  const from = open();
  for await (const { id } of from) {
    if (id === "e1-2") break;
  }
  // Whatever is still to be done for it has been done by then.
  await new Promise((turn) => setTimeout(turn, 0));
  assert.equal(from.status, "closed");
  assert.equal(from.cursor, "e1-1");
  assert.equal(from.error, null);
});

test("an iterator that waits for an event can be left", async () => {
  answers = [stream(event(1))];
  const from = open();
  const iterator = from[Symbol.asyncIterator]();
  const { value } = await iterator.next();
  assert.equal(value.id, "e1-1");
  const waiting = iterator.next();
  await new Promise((turn) => setTimeout(turn, 0));
  assert.deepEqual(await iterator.return?.("left"), { done: true, value: "left" });
  assert.deepEqual(await waiting, { done: true, value: undefined });
  assert.equal(from.status, "closed");
  // It was asked for what comes after it.
  assert.equal(from.cursor, "e1-1");
  assert.deepEqual(await iterator.next(), { done: true, value: undefined });
});

test("an iterator that is left before it was used closes the stream", async () => {
  const from = open();
  await from[Symbol.asyncIterator]().return?.();
  assert.equal(from.status, "closed");
});

test("what is asked of an iterator at once comes in order", async () => {
  answers = [stream(event(1), event(2), event(3))];
  const iterator = open()[Symbol.asyncIterator]();
  const found = await Promise.all([iterator.next(), iterator.next(), iterator.next()]);
  assert.deepEqual(found.map(({ value }) => value.id), ["e1-1", "e1-2", "e1-3"]);
  await iterator.return?.();
});

test("204 ends the stream for good", async () => {
  answers = [status(204)];
  const from = open();
  assert.deepEqual(await next(from, 1), []);
  assert.equal(from.status, "closed");
  assert.equal(from.error, null);
  assert.equal(requests.length, 1);
});

for (const code of [400, 401, 403, 404, 405, 410, 501]) {
  test(`${code} stops, and says so`, async () => {
    answers = [status(code, "Not for you.\n")];
    const from = open();
    const error = heard(from, "error");
    await assert.rejects(next(from, 1), { name: "StreamError", status: code, message: `status ${code}: Not for you.` });
    assert.equal(from.status, "closed");
    assert.equal(await error, from.error);
    assert.ok(from.error instanceof StreamError);
    assert.equal(requests.length, 1);
  });
}

for (const type of ["text/html", "text/event-streams", ""]) {
  test(`200 with the type "${type}" stops, and says so`, async () => {
    answers = [status(200, "<html>", { "Content-Type": type })];
    await assert.rejects(next(open(), 1), { status: 200, message: `the answer is ${type}, not text/event-stream` });
  });
}

for (const type of ["text/event-stream", "TEXT/Event-Stream;charset=windows-1251", "text/event-stream ; x=y"]) {
  test(`200 with the type "${type}" is a stream`, async () => {
    answers = [(_, response) => response.writeHead(200, { "Content-Type": type }).write(event(1))];
    assert.equal((await next(open(), 1))[0].id, "e1-1");
  });
}

for (const code of [408, 425, 429, 500, 502, 503, 504]) {
  test(`${code} passes`, async () => {
    answers = [status(code), status(code), stream(event(1))];
    const from = open();
    /** @type {string[]} */
    const said = [];
    from.addEventListener("status", ({ detail }) => said.push(`${detail.status} ${detail.error?.status ?? ""}`.trim()));
    assert.equal((await next(from, 1))[0].id, "e1-1");
    assert.deepEqual(said, [`reconnecting ${code}`, "open"]);
    assert.equal(from.error, null);
  });
}

test("a server that is not there is tried again", async () => {
  answers = [(request) => request.socket.destroy(), stream(event(1))];
  const from = open();
  const problem = heard(from, "status");
  assert.equal((await next(from, 1))[0].id, "e1-1");
  assert.equal((await problem).error.status, 0);
});

/** Runs with a clock of its own: what is waited for is known, and takes no time. */
const withTimers = async (/** @type {(waits: number[]) => Promise<void>} */ body) => {
  const [setTimer, random] = [globalThis.setTimeout, Math.random];
  /** @type {number[]} */
  const waits = [];
  // Only what the client waits for; the guards of tests are longer than any of it.
  globalThis.setTimeout = /** @type {any} */ (
    (/** @type {() => void} */ done, /** @type {number} */ ms, /** @type {unknown[]} */ ...rest) => {
      const isRest = new Error().stack?.includes("#rest");
      if (isRest) waits.push(ms);
      return setTimer(done, isRest ? 0 : ms, ...rest);
    }
  );
  Math.random = () => 1;
  try {
    await body(waits);
  } finally {
    globalThis.setTimeout = setTimer;
    Math.random = random;
  }
};

test("tries are spread: at random up to the base times a power of two, up to the cap", () =>
  withTimers(async (waits) => {
    answers = [...Array(6).fill(status(500)), stream(event(1))];
    await next(open({ backoff: { base: 100, cap: 1000 } }), 1);
    assert.deepEqual(waits, [100, 200, 400, 800, 1000, 1000]);
  }));

test("only an event resets the tries, and not a connection", () =>
  withTimers(async (waits) => {
    answers = [ending(": stream\n"), ending(":\n"), status(500), ending(event(1)), status(500), stream(event(2))];
    await next(open({ backoff: { base: 100, cap: 1000 } }), 2);
    assert.deepEqual(waits, [100, 200, 400, 100, 200]);
  }));

test("what the server asks for as `retry` is the least that is waited", () =>
  withTimers(async (waits) => {
    answers = [ending("retry: 350\n", event(1)), status(500), status(500), status(500), stream(event(2))];
    await next(open({ backoff: { base: 100, cap: 1000 } }), 2);
    assert.deepEqual(waits, [350, 350, 400, 800]);
  }));

for (const [code, after, least, most] of [
  [503, () => "7", 7000, 7000],
  [429, () => new Date(Date.now() + 20_000).toUTCString(), 18_000, 20_000],
  [503, () => "99999999999", 2 ** 31 - 101, 2 ** 31 - 1],
]) {
  test(`a Retry-After of about ${least} ms is waited`, () =>
    withTimers(async (waits) => {
      const retryAfter = /** @type {() => string} */ (after)();
      answers = [status(/** @type {number} */ (code), "", { "Retry-After": retryAfter }), stream(event(1))];
      await next(open({ backoff: { base: 100, cap: 1000 } }), 1);
      assert.equal(waits.length, 1);
      // And at random a little longer: all who were sent away were told the same.
      assert.ok(waits[0] >= Number(least) && waits[0] <= Number(most) + 100, String(waits));
    }));
}

test("of Retry-After and `retry` the longer is waited", () =>
  withTimers(async (waits) => {
    const [short, long] = [status(503, "", { "Retry-After": "1" }), status(503, "", { "Retry-After": "9" })];
    answers = [ending("retry: 5000\n", event(1)), short, long, stream(event(2))];
    await next(open({ backoff: { base: 1, cap: 1 } }), 2);
    assert.deepEqual(waits, [5000, 5001, 9001]);
  }));

test("unless told otherwise it is tried again within a second, and at last within half a minute", () =>
  withTimers(async (waits) => {
    answers = [...Array(7).fill(status(500)), stream(event(1))];
    await next(open({ backoff: undefined }), 1);
    assert.deepEqual(waits, [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
  }));

for (const [keepalive, stallMs, wanted] of /** @type {[string, number | undefined, number][]} */ ([
  ["", undefined, 45_000],
  ["20", undefined, 60_000],
  ["0.5", undefined, 10_000],
  ["often", undefined, 45_000],
  ["20", 7000, 7000],
])) {
  test(`a connection may be silent for ${wanted} ms: Events-Keepalive "${keepalive}", stallMs ${stallMs}`, async () => {
    answers = [
      (_, response) => {
        response.writeHead(200, { "Content-Type": "text/event-stream", "Events-Keepalive": keepalive });
        response.write(event(1));
      },
    ];
    /** @type {number[]} */
    const patience = [];
    const { setTimeout: setTimer, Date: Clock } = globalThis;
    // No time passes.
    replace("Date", class extends Clock {
      static now = () => 1e12;
    });
    replace("setTimeout", (/** @type {() => void} */ done, /** @type {number} */ ms) => {
      if (new Error().stack?.includes("#watch")) patience.push(ms);
      return setTimer(done, ms);
    });
    await next(open({ stallMs }), 1);
    assert.deepEqual([patience[0], patience[patience.length - 1]], [stallMs ?? 45_000, wanted]);
  });
}

test("a stream that is closed because of a fault waits for nothing", () =>
  withTimers(async (waits) => {
    answers = [status(503)];
    const from = open();
    from.addEventListener("status", () => from.close());
    await reached(from, "closed");
    await new Promise((turn) => setImmediate(turn));
    assert.deepEqual([waits, requests.length], [[], 1]);
  }));

test("an explanation that does not end is not waited for", async () => {
  answers = [
    (_, response) => {
      response.writeHead(403, { "Content-Type": "text/plain" });
      response.write("Not for you.");
    },
  ];
  await assert.rejects(next(open(), 1), { status: 403, message: "status 403: Not for you." });
});

test("an explanation that breaks off is no fault of the network", async () => {
  answers = [
    (_, response) => {
      response.writeHead(403, { "Content-Type": "text/plain", "Content-Length": "100" });
      response.write("Not for you.");
      setTimeout(() => response.destroy(), 20);
    },
  ];
  await assert.rejects(next(open(), 1), { status: 403, message: "status 403: Not for you." });
  assert.equal(requests.length, 1);
});

test("a stream that is closed while it is told why it was refused is closed", async () => {
  answers = [
    (_, response) => {
      response.writeHead(503, { "Content-Type": "text/plain" });
      response.write("Later.");
    },
  ];
  const from = open();
  await until(() => requests.length, "the request");
  await new Promise((turn) => setTimeout(turn, 50));
  from.close();
  // What would be thrown nowhere would fail this file.
  await new Promise((turn) => setTimeout(turn, 50));
  assert.deepEqual([from.status, from.error], ["closed", null]);
});

test("a connection without a byte is taken for dead, and the stream goes on", async () => {
  answers = [stream(event(1)), stream(event(2))];
  const from = open({ stallMs: 200 });
  /** @type {string[]} */
  const problems = [];
  from.addEventListener("status", ({ detail }) => detail.error && problems.push(detail.error.message));
  assert.deepEqual((await next(from, 2)).map(({ id }) => id), ["e1-1", "e1-2"]);
  assert.deepEqual(problems, ["not a byte for 0.2 s"]);
  assert.equal(requests[1].headers["last-event-id"], "e1-1");
});

test("an answer that does not come is taken for dead, too", async () => {
  answers = [() => {}, stream(event(1))];
  assert.equal((await next(open({ stallMs: 200 }), 1))[0].id, "e1-1");
});

test("a clock that was set back hides no dead connection", async () => {
  answers = [stream(event(1)), stream(event(2))];
  const from = open({ stallMs: 200 });
  const iterator = from[Symbol.asyncIterator]();
  await guarded(iterator.next(), "the first");
  const second = iterator.next();
  await until(() => from.cursor === "e1-1", "the first to be handled");
  const now = Date.now;
  Date.now = () => now() - 3_600_000;
  try {
    await guarded(second, "the second");
  } finally {
    Date.now = now;
  }
  assert.equal(requests.length, 2);
});

/** What a window hears. */
const replaceWindow = () => {
  const page = new EventTarget();
  replace("addEventListener", page.addEventListener.bind(page));
  return (/** @type {string} */ type) => page.dispatchEvent(new Event(type));
};

test("back from sleep, a connection that is dead by then is noticed when the page is seen", async () => {
  const page = replaceDocument();
  answers = [stream(event(1)), stream(event(2))];
  const from = open({ stallMs: 600_000 });
  const iterator = from[Symbol.asyncIterator]();
  await guarded(iterator.next(), "the first");
  const second = iterator.next();
  // Until the first counts as handled, the connection has all the time in the world.
  await until(() => from.cursor === "e1-1", "the first to be handled");
  const now = Date.now;
  Date.now = () => now() + 700_000;
  const problem = heard(from, "status");
  try {
    page.dispatchEvent(new Event("visibilitychange"));
    assert.equal((await guarded(second, "the second")).value.id, "e1-2");
  } finally {
    Date.now = now;
  }
  assert.equal((await problem).error.message, "not a byte for 600 s");
});

test("a connection that was silent while there was no network is opened anew when there is one", async () => {
  const say = replaceWindow();
  answers = [stream(event(1)), stream(event(2))];
  const from = open();
  const iterator = from[Symbol.asyncIterator]();
  await guarded(iterator.next(), "the first");
  const second = iterator.next();
  await until(() => from.cursor === "e1-1", "the first to be handled");
  const at = Date.now();
  await until(() => Date.now() > at + 1, "the clock to go on");
  say("offline");
  const problem = heard(from, "status");
  say("online");
  assert.equal((await guarded(second, "the second")).value.id, "e1-2");
  assert.equal((await problem).error.message, "the network was away");
});

test("a connection that spoke while there was said to be no network is kept", async () => {
  const say = replaceWindow();
  /** @type {ServerResponse[]} */
  const connections = [];
  answers = [
    (request, response) => {
      stream(event(1))(request, response);
      connections.push(response);
    },
  ];
  const from = open();
  const iterator = from[Symbol.asyncIterator]();
  await guarded(iterator.next(), "the first");
  say("offline");
  connections[0].write(event(2));
  await guarded(iterator.next(), "the second");
  const third = iterator.next();
  await new Promise((turn) => setTimeout(turn, 20));
  say("online");
  connections[0].write(event(3));
  await guarded(third, "the third");
  assert.equal(requests.length, 1);
});

test("what the server asked to wait is waited, also when the network is back", async () => {
  const say = replaceWindow();
  /** @type {number[]} */
  const times = [];
  answers = [
    (request, response) => {
      times.push(Date.now());
      status(503, "", { "Retry-After": "1" })(request, response);
    },
    (request, response) => {
      times.push(Date.now());
      stream(event(1))(request, response);
    },
  ];
  const from = open({ backoff: { base: 600_000, cap: 600_000 } });
  await reached(from, "reconnecting");
  await new Promise((turn) => setTimeout(turn, 20));
  say("online");
  await next(from, 1);
  // Timers may be a millisecond early.
  assert.ok(times[1] - times[0] >= 998, String(times));
});

test("any byte is a sign of life", async () => {
  answers = [
    (request, response) => {
      stream(event(1))(request, response);
      let left = 6;
      const timer = setInterval(() => {
        response.write(left-- ? ":\n" : event(2));
        if (left < 0) clearInterval(timer);
      }, 100);
    },
  ];
  await next(open({ stallMs: 400 }), 2);
  assert.equal(requests.length, 1);
});

test("a slow handler is not a dead connection", async () => {
  answers = [stream(event(1), event(2))];
  const from = open({ stallMs: 100 });
  const iterator = from[Symbol.asyncIterator]();
  await guarded(iterator.next(), "the first");
  await new Promise((turn) => setTimeout(turn, 400));
  await guarded(iterator.next(), "the second");
  assert.equal(requests.length, 1);
});

test("stream-reset is told, and the stream goes on from its cursor", async () => {
  const reset = { channels: ["news"], reason: "epoch", cursor: "e2-40" };
  answers = [ending(event(50), control("stream-reset", reset)), stream(event(41, "x", { epoch: "e2" }))];
  const from = open();
  const told = heard(from, "stream-reset");
  assert.deepEqual((await next(from, 2)).map(({ id }) => id), ["e1-50", "e2-41"]);
  assert.deepEqual(await told, reset);
  assert.equal(requests[1].headers["last-event-id"], "e2-40");
});

test("after a reset its cursor is the page's, too", async () => {
  answers = [stream(control("stream-reset", { channels: ["news"], reason: "unknown", cursor: "e2-40" }))];
  const from = open({ lastEventId: "garbage" });
  await reached(from, "open");
  await new Promise((turn) => setTimeout(turn, 50));
  // Nobody listens yet: it waits, as events do.
  assert.equal(from.cursor, "garbage");
  const told = heard(from, "stream-reset");
  from.addEventListener("message", () => {});
  assert.equal((await told).reason, "unknown");
  assert.equal(from.cursor, "e2-40");
});

test("after a trim, channels that were not trimmed go on from the old cursor", async () => {
  const reset = { channels: ["news"], reason: "trimmed", cursor: "e1-40" };
  answers = [ending(control("stream-reset", reset), event(12, "x", { channel: "orders" })), stream()];
  const from = open({ lastEventId: "e1-9", channels: ["news", "orders"] });
  const first = heard(from, "message");
  await reached(from, "reconnecting");
  await reached(from, "open");
  assert.equal((await first).id, "e1-12");
  assert.equal(requests[1].headers["last-event-id"], "e1-12");
});

/** A `sessionStorage` until the test ends. @param {Record<string, string>} kept */
const replaceStorage = (kept = {}) => {
  replace("sessionStorage", {
    getItem: (/** @type {string} */ name) => kept[name] ?? null,
    setItem: (/** @type {string} */ name, /** @type {string} */ value) => (kept[name] = value),
    removeItem: (/** @type {string} */ name) => delete kept[name],
  });
  return kept;
};

test("where all channels were trimmed there is nothing to come before the reset's cursor", async () => {
  const kept = replaceStorage({ here: "e1-9" });
  const reset = { channels: ["news"], reason: "trimmed", cursor: "e1-40" };
  answers = [ending(control("stream-reset", reset)), stream(event(41))];
  const from = open({ channels: ["news"], persist: "here" });
  assert.deepEqual((await next(from, 1)).map(({ id }) => id), ["e1-41"]);
  assert.equal(requests[1].headers["last-event-id"], "e1-40");
  assert.deepEqual(kept, { here: "e1-40" });
});

for (const query of ["?channel=news&channel=orders", "?channel=news&from=earliest", ""]) {
  test(`a reset after which older events may come is told once for each hole: ${query || "channels unknown"}`, async () => {
    const kept = replaceStorage({ here: "e1-9" });
    const told = (/** @type {number} */ at) =>
      ending(control("stream-reset", { channels: ["news"], reason: "trimmed", cursor: `e1-${at}` }));
    answers = [told(40), told(40), told(50), stream(event(30, "x", { channel: "orders" }))];
    const from = openStream(`${server.url}/stream/${query}`, { persist: "here", backoff: { base: 1, cap: 1 } });
    opened.push(from);
    /** @type {string[]} */
    const cursors = [];
    from.addEventListener("stream-reset", ({ detail }) => {
      cursors.push(detail.cursor);
      // A page that is loaded anew now must not meet it again.
      queueMicrotask(() => assert.deepEqual(kept, {}));
    });
    assert.equal((await next(from, 1))[0].id, "e1-30");
    assert.deepEqual(cursors, ["e1-40", "e1-50"]);
    assert.deepEqual(requests.map(({ headers }) => headers["last-event-id"]), Array(4).fill("e1-9"));
  });
}

/** A stream without events, of a log that is there. @type {Answer} */
const begun = (_, response) => {
  response.writeHead(200, { "Content-Type": "text/event-stream", "Events-Cursor": "e1-9" });
  response.flushHeaders();
};

/** Where a request begins. @param {number} number */
const start = (number) => [
  requests[number].headers["last-event-id"],
  query(number).get("last_event_id"),
  query(number).get("replay"),
];

test("what channels give to a new stream comes after a pause, too", async () => {
  const page = replaceDocument();
  answers = [begun, stream(event(3))];
  const from = open({ pauseWhenHidden: true });
  await reached(from, "open");
  for (const isHidden of [true, false]) {
    page.hidden = isHidden;
    page.dispatchEvent(new Event("visibilitychange"));
    if (isHidden) await reached(from, "paused");
  }
  assert.equal((await next(from, 1))[0].id, "e1-3");
  assert.deepEqual(start(1), [undefined, "e1-9", "1"]);
});

test("and after a reload, until an event was handled", async () => {
  const kept = replaceStorage();
  answers = [begun, stream(event(3)), stream(event(4))];
  const first = open({ persist: "here" });
  await reached(first, "open");
  first.close();
  const second = open({ persist: "here" });
  second.addEventListener("message", () => {});
  await until(() => second.cursor === "e1-3", "the first event");
  assert.deepEqual(start(1), [undefined, "e1-9", "1"]);
  assert.deepEqual(kept, { here: "e1-3" });
  second.close();
  await next(open({ persist: "here" }), 1);
  assert.deepEqual(start(2), ["e1-3", null, null]);
});

test("another stream goes on where one was, with what that has not had", async () => {
  answers = [begun, stream(event(3)), stream(event(4))];
  const first = open();
  assert.equal(first.replays, true);
  await reached(first, "open");
  const second = open({ lastEventId: first.cursor, replay: first.replays });
  second.addEventListener("message", () => {});
  await until(() => second.cursor === "e1-3", "the first event");
  assert.deepEqual(start(1), [undefined, "e1-9", "1"]);
  assert.equal(second.replays, false);
  assert.equal(open({ lastEventId: "e1-3" }).replays, false);
});

test("stream-closed closes the stream, and says why", async () => {
  answers = [stream(event(1), control("stream-closed", { reason: "revoked" }))];
  const from = open();
  const told = heard(from, "stream-closed");
  assert.equal((await next(from, 5)).length, 1);
  assert.deepEqual(await told, { reason: "revoked" });
  assert.equal(from.status, "closed");
  assert.equal(requests.length, 1);
});

test("an event that only looks like a control event is an event", async () => {
  answers = [stream("id: e1-1\nevent: stream-closed\ndata: mine\n\n")];
  assert.deepEqual((await next(open(), 1))[0].event, "stream-closed");
});

test("what is closed at once has asked for nothing", async () => {
  answers = [stream(event(1))];
  open().close();
  const from = open();
  await next(from, 1);
  assert.equal(requests.length, 1);
});

test("an answer that the page's own URL limits is the whole stream", async () => {
  answers = [ending(event(1), control("stream-end", { cursor: "e1-1" }))];
  const from = openStream(`${server.url}/stream/?follow=0`);
  opened.push(from);
  assert.deepEqual((await next(from, 2)).map(({ id }) => id), ["e1-1"]);
  assert.deepEqual([from.status, from.error, requests.length], ["closed", null, 1]);
});

test("a cursor of any characters goes as UTF-8, as a browser sends it", async () => {
  answers = [ending("id: é…\ndata: 1\n\n"), stream(event(2))];
  await next(open(), 2);
  assert.equal(Buffer.from(requests[1].headers["last-event-id"]?.toString() ?? "", "latin1").toString(), "é…");
});

for (const [kept, begins] of /** @type {[string, string | null][]} */ ([
  ["e1-7", "e1-7"],
  ["e1\n7", null],
  ["x".repeat(1001), null],
])) {
  test(`a kept cursor ${begins ? "is gone on from" : "that no server can have sent is none"}: ${kept.length}`, async () => {
    replaceStorage({ here: kept });
    answers = [stream(event(8))];
    assert.equal((await next(open({ persist: "here" }), 1))[0].id, "e1-8");
    assert.equal(requests[0].headers["last-event-id"] ?? null, begins);
    assert.equal(query(0).get("last_event_id"), null);
  });
}

test("a signal closes the stream and its connection", async () => {
  answers = [stream(event(1))];
  const controller = new AbortController();
  const from = open({ signal: controller.signal });
  await next(from, 1);
  const gone = once(requests[0].socket, "close");
  controller.abort();
  await guarded(gone, "the connection's end");
  assert.equal(from.status, "closed");
  const late = open({ signal: controller.signal });
  assert.equal(late.status, "closed");
});

test("close ends an iteration that waits", async () => {
  answers = [stream()];
  const from = open();
  await reached(from, "open");
  const waiting = next(from, 1);
  from.close();
  assert.deepEqual(await waiting, []);
});

test("URL and headers are asked for at every request", async () => {
  answers = [ending(event(1)), stream(event(2))];
  let tickets = 0;
  const from = openStream(async () => `${server.url}/stream/?ticket=${++tickets}`, {
    headers: () => ({ Authorization: `Bearer ${tickets}` }),
    backoff: { base: 1, cap: 1 },
  });
  opened.push(from);
  await next(from, 2);
  assert.deepEqual([query(0).get("ticket"), query(1).get("ticket")], ["1", "2"]);
  assert.deepEqual([requests[0].headers.authorization, requests[1].headers.authorization], ["Bearer 1", "Bearer 2"]);
});

for (const [what, persist] of /** @type {const} */ ([["URL", false], ["URL", true], ["headers", false]])) {
  test(`a function whose ${what} do not come is asked again${persist ? ", also for the name of what is kept" : ""}`, async () => {
    answers = [stream(event(1))];
    let asked = 0;
    /** The first never. @template T @param {T} value @returns {Promise<T>} */
    const late = (value) => (++asked === 1 ? new Promise(() => {}) : Promise.resolve(value));
    const url = `${server.url}/stream/`;
    const from = openStream(what === "URL" ? () => late(url) : url, {
      headers: what === "headers" ? () => late({}) : {},
      persist,
      stallMs: 50,
      backoff: { base: 1, cap: 1 },
    });
    opened.push(from);
    assert.equal((await next(from, 1))[0].id, "e1-1");
    assert.ok(asked > 1);
  });
}

for (const persist of [false, true]) {
  test(`a URL that cannot be had now is asked for again${persist ? ", also for the name of what is kept" : ""}`, async () => {
    answers = [stream(event(1))];
    let tries = 0;
    const from = openStream(
      async () => {
        if (++tries < 3) throw new Error("no ticket");
        return `${server.url}/stream/?channel=news`;
      },
      { backoff: { base: 1, cap: 1 }, persist },
    );
    opened.push(from);
    const problem = heard(from, "status");
    await next(from, 1);
    assert.equal((await problem).error.message, "no ticket");
  });
}

test("a function that gives the URL can stop the stream", async () => {
  let tries = 0;
  for (const persist of [false, true]) {
    const from = openStream(
      async () => {
        tries++;
        throw new StreamError("signed out", 401);
      },
      { persist },
    );
    opened.push(from);
    await assert.rejects(next(from, 1), { status: 401, message: "signed out" });
  }
  assert.equal(tries, 2);
});

test("options that cannot be are refused at once", () => {
  for (const [options, message] of /** @type {[any, RegExp][]} */ ([
    [{ stallMs: 0 }, /stallMs is milliseconds, more than 0, not 0/],
    [{ backoff: { cap: "x" } }, /cap is milliseconds, more than 0, not x/],
    [{ channels: "news" }, /channels is an array of names, not news/],
    [{ share: "windows" }, /share is "tabs" or nothing, not windows/],
    [{ credentials: "cookies" }, /credentials is "omit", "same-origin" or "include", not cookies/],
    [{ headers: { "a b": "c" } }, /a b/],
  ])) {
    assert.throws(() => openStream(`${server.url}/`, options), { name: "TypeError", message });
  }
  assert.throws(() => openStream("http://["), {
    name: "TypeError",
    message: "openStream: url is the URL of a stream, not http://[",
  });
});

test("an event that is too large stops the stream", async () => {
  answers = [
    (request, response) => {
      stream("data: ")(request, response);
      const more = () => {
        while (!response.destroyed && response.write("x".repeat(2 ** 20)));
      };
      response.on("drain", more);
      more();
    },
  ];
  await assert.rejects(next(open(), 1), /an event has more than 16777216 characters/);
});

test("where tabs cannot share, a stream has a connection of its own", async () => {
  answers = [stream(event(1))];
  const from = open({ share: "tabs" });
  await next(from, 1);
  assert.equal(requests.length, 1);
});
