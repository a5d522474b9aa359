// @ts-check
/**
 * `createParser` against the standard: data of our own, a second parser written from the standard's text, another
 * package's, and chance. A stream means the same however it is cut.
 *
 * @import { ParsedEvent } from "../../events/static/events/live-events.js"
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { createParser as createTheirs } from "eventsource-parser";
import { createParser, StreamError } from "../../events/static/events/live-events.js";
import { parseWhole } from "./reference.js";
import { ofOurOwn, ofTheStandard } from "./vectors.js";

const vectors = [...ofTheStandard, ...ofOurOwn];
const encoder = new TextEncoder();
/** Bytes up to which a stream is cut at every pair of places. */
const SHORT = 100;
const MEBI = 2 ** 20;

/** What comes of chunks. @param {Iterable<Uint8Array>} chunks */
function parsed(chunks) {
  /** @type {ParsedEvent[]} */
  const events = [];
  /** @type {number[]} */
  const retries = [];
  const feed = createParser(
    (event) => events.push(event),
    (milliseconds) => retries.push(milliseconds),
  );
  for (const chunk of chunks) feed(chunk);
  return { events, retries };
}

/** Cut before each of the places. @param {Uint8Array} bytes @param {number[]} places */
const cut = (bytes, places) =>
  [0, ...places].map((place, index) => bytes.subarray(place, places[index] ?? bytes.length));

/**
 * Every way of cutting that is tried, with its name.
 * @param {Uint8Array} bytes @returns {Generator<[string, Uint8Array[]]>}
 */
function* cuts(bytes) {
  yield ["whole", [bytes]];
  yield ["byte by byte", cut(bytes, [...bytes.keys()].slice(1))];
  yield [
    "byte by byte, with empty chunks between",
    [...bytes].flatMap((byte) => [Uint8Array.of(), Uint8Array.of(byte)]),
  ];
  for (let first = 0; first <= bytes.length; first++) {
    yield [`cut at ${first}`, cut(bytes, [first])];
    if (bytes.length > SHORT) continue;
    for (let second = first + 1; second <= bytes.length; second++) {
      yield [`cut at ${first} and ${second}`, cut(bytes, [first, second])];
    }
  }
}

describe("what the standard says", () => {
  for (const { of, name, bytes, events, retries } of vectors) {
    it(of ? `${of}: ${name}` : name, () => {
      for (const [how, chunks] of cuts(bytes)) assert.deepEqual(parsed(chunks), { events, retries }, how);
    });
  }

  it("has every format test of web-platform-tests that is about bytes", () => {
    // Those about the answer's type are in answers.test.js.
    const wanted = [
      ..."bom bom-2 comments data-before-final-empty-line leading-space newlines null-character utf-8".split(" "),
      ..."data event event-empty id id-2 id-3 id-null parsing retry retry-bogus retry-empty unknown"
        .split(" ")
        .map((name) => `field-${name}`),
    ];
    const found = new Set(ofTheStandard.map(({ of }) => of));
    assert.deepEqual(
      wanted.filter((name) => !found.has(`format-${name}`)),
      [],
    );
  });
});

describe("the parser of these tests, written from the standard's text", () => {
  for (const { of, name, bytes, events, retries } of vectors) {
    it(`agrees: ${of ? `${of}: ` : ""}${name}`, () => assert.deepEqual(parseWhole(bytes), { events, retries }));
  }
});

describe("eventsource-parser", () => {
  /**
   * Where its contract is another, made comparable:
   * - it takes text, so the bytes are decoded first, which is where the BOM goes;
   * - it gives the ID of the block only, not the last one: compared where the block has one;
   * - "message" is left to the caller;
   * - a CR at the end of a chunk waits for the next chunk, and with no line end in that for the one after: a comment
   *   that ends with LF is fed at the end. The standard ends the line with its CR, as ours does (see below).
   * @param {Uint8Array[]} chunks
   */
  const theirs = (chunks) => {
    /** @type {{ type: string, data: string, id: string | undefined }[]} */
    const events = [];
    /** @type {number[]} */
    const retries = [];
    const decoder = new TextDecoder();
    const { feed } = createTheirs({
      onEvent: ({ event, data, id }) => events.push({ type: event ?? "message", data, id }),
      onRetry: (milliseconds) => retries.push(milliseconds),
    });
    for (const chunk of chunks) {
      const text = decoder.decode(chunk, { stream: true });
      if (text) feed(text);
    }
    feed(":\n");
    return { events, retries };
  };

  /** @param {{ events: ParsedEvent[], retries: number[] }} ours */
  const comparable = ({ events, retries }) => ({
    events: events.map(({ type, data, lastEventId, hasId }) => ({ type, data, id: hasId ? lastEventId : undefined })),
    retries,
  });

  /** Ends within a line: what is fed at the end would be a part of it. @param {Uint8Array} bytes */
  const isCutShort = (bytes) => bytes.length > 0 && ![10, 13].includes(bytes[bytes.length - 1]);

  for (const { of, name, bytes } of vectors) {
    if (isCutShort(bytes)) continue;
    it(`says the same: ${of ? `${of}: ` : ""}${name}`, () => {
      for (const [how, chunks] of cuts(bytes)) {
        if (chunks.length > 3 && how !== "byte by byte") continue;
        assert.deepEqual(theirs(chunks), comparable(parsed(chunks)), how);
      }
    });
  }
});

describe("chance", () => {
  const SEED = 20_240_607;
  const STREAMS = 3000;

  /** mulberry32: the same numbers in each run. @param {number} seed */
  const numbers = (seed) => () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let number = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    number = (number + Math.imul(number ^ (number >>> 7), 61 | number)) ^ number;
    return ((number ^ (number >>> 14)) >>> 0) / 2 ** 32;
  };

  const names = [
    "data",
    "data",
    "data",
    "event",
    "id",
    "id",
    "retry",
    "retry",
    "",
    "Data",
    " data",
    "data ",
    "dat",
    "ids",
    "\uFEFFdata",
  ];
  const colons = [":", ":", ": ", ": ", ":  ", "", " :", "::"];
  const values = [
    "",
    "x",
    " ",
    "\0",
    "a\0b",
    ":",
    "12",
    "007",
    "99",
    "3000",
    "-1",
    "1e3",
    "é",
    "€uro",
    "🦔",
    "\uFEFF",
    "\u2028",
    "long ".repeat(9),
  ];
  const ends = ["\n", "\n", "\r", "\r\n", "\n\n", "\r\r", "\r\n\r\n", "\n\r", "\r\r\n", "\n\n\n", ""];
  const oddBytes = [
    [0xff],
    [0xc3],
    [0xe2, 0x82],
    [0xf0, 0x9f, 0xa6],
    [0xed, 0xa0, 0x80],
    [0x0a],
    [0x0d],
    [0xef, 0xbb, 0xbf],
  ];

  it(`makes ${STREAMS} streams, cut anywhere, and both parsers read them alike (seed ${SEED})`, () => {
    const random = numbers(SEED);
    /** @template T @param {T[]} choices @returns {T} */
    const one = (choices) => choices[Math.floor(random() * choices.length)];
    let [total, withId, withRetry] = [0, 0, 0];
    for (let count = 0; count < STREAMS; count++) {
      /** @type {number[]} */
      const stream = [];
      if (random() < 0.1) stream.push(...encoder.encode("\uFEFF"));
      for (let line = Math.floor(random() * 24); line >= 0; line--) {
        stream.push(...encoder.encode(one(names) + one(colons) + one(values) + one(ends)));
        if (random() < 0.05) stream.push(...one(oddBytes));
      }
      const bytes = Uint8Array.from(stream);
      const share = one([0.02, 0.2, 0.7, 1]);
      const chunks = cut(
        bytes,
        [...bytes.keys()].filter(() => random() < share),
      );
      const expected = parseWhole(bytes);
      assert.deepEqual(
        parsed(chunks),
        expected,
        `stream ${count}: ${JSON.stringify(chunks.map((chunk) => [...chunk]))}`,
      );
      total += expected.events.length;
      withId += expected.events.filter(({ hasId }) => hasId).length;
      withRetry += expected.retries.length;
    }
    // That it is a test of something.
    assert.ok(total > STREAMS && withId > 300 && withRetry > 300, `${total} ${withId} ${withRetry}`);
  });
});

describe("at once", () => {
  /** @returns {[string[], (text: string) => void]} what has come by now, and how to feed */
  const open = () => {
    /** @type {string[]} */
    const come = [];
    const feed = createParser(
      ({ data }) => come.push(data),
      (milliseconds) => come.push(`retry ${milliseconds}`),
    );
    return [come, (text) => feed(encoder.encode(text))];
  };

  it("an event comes with the CR of its empty line, and the LF that follows is no line", () => {
    const [come, feed] = open();
    feed("data: x\r\n\r");
    assert.deepEqual(come, ["x"]);
    feed("\ndata: y\r\r");
    assert.deepEqual(come, ["x", "y"]);
    feed("\n");
    feed("data: z\n");
    assert.deepEqual(come, ["x", "y"]);
    feed("\n");
    assert.deepEqual(come, ["x", "y", "z"]);
  });

  it("an LF after an empty chunk still belongs to the CR before it", () => {
    const [come, feed] = open();
    feed("data: x\r");
    feed("");
    feed("\ndata: y\r");
    assert.deepEqual(come, []);
    feed("");
    feed("\r");
    assert.deepEqual(come, ["x\ny"]);
  });

  it("a time comes with the end of its line", () => {
    const [come, feed] = open();
    feed("retry: 5");
    assert.deepEqual(come, []);
    feed("0\r");
    assert.deepEqual(come, ["retry 50"]);
  });

  it("events of one chunk come in order, times between them", () => {
    const [come, feed] = open();
    feed("data: x\n\nretry: 1\ndata: y\n\n");
    assert.deepEqual(come, ["x", "retry 1", "y"]);
  });

  it("nobody need ask for times", () => {
    const feed = createParser(() => {});
    feed(encoder.encode("retry: 1\n"));
  });

  it("two parsers know nothing of each other", () => {
    const [first, feedFirst] = open();
    const [second, feedSecond] = open();
    feedFirst("data: x\r");
    feedSecond("\ndata: y\n\n");
    feedFirst("\n\n");
    assert.deepEqual([first, second], [["x"], ["y"]]);
  });
});

describe("size", () => {
  /** Pieces of `size` bytes. @param {Uint8Array} bytes @param {number} size */
  const inPieces = (bytes, size) =>
    cut(
      bytes,
      Array.from({ length: Math.ceil(bytes.length / size) - 1 }, (_, index) => (index + 1) * size),
    );

  // Work that grows with the square of the length would copy tens of gigabytes here.
  it("a line of 4 MiB in chunks of 16 bytes is read in time", { timeout: 60_000 }, () => {
    const { events } = parsed(inPieces(encoder.encode(`data: ${"x".repeat(4 * MEBI)}\n\n`), 16));
    assert.deepEqual([events.length, events[0].data.length], [1, 4 * MEBI]);
  });

  it("an event of a million short lines is read in time", { timeout: 60_000 }, () => {
    const { events } = parsed(inPieces(encoder.encode(`${"data:x\n".repeat(MEBI)}\n`), 4096));
    assert.deepEqual([events.length, events[0].data.length], [1, 2 * MEBI - 1]);
  });

  it("a chunk with a hundred thousand events is read in time", { timeout: 60_000 }, () => {
    assert.equal(parsed([encoder.encode("data: x\n\n".repeat(100_000))]).events.length, 100_000);
  });

  const almost = 16 * MEBI - 64;
  const tooMuch = 16 * MEBI + 64;
  /** @type {Record<string, (size: number) => string>} */
  const shapes = {
    "of one line": (size) => `data:${"x".repeat(size)}\n\n`,
    "of many lines": (size) =>
      `${`data:${"x".repeat(1023)}\n`.repeat(size / 1024)}${`data:${"x".repeat(size % 1024)}`}\n\n`,
  };
  for (const [shape, make] of Object.entries(shapes)) {
    for (const [how, size] of /** @type {[string, number][]} */ ([
      ["in chunks", 64 * 1024],
      ["in one chunk", Infinity],
    ])) {
      it(`an event ${shape}, ${how}, of just below 16 Mi characters is read`, () => {
        const bytes = encoder.encode(make(almost));
        const { events } = parsed(inPieces(bytes, Math.min(size, bytes.length)));
        assert.equal(events.length, 1);
        assert.ok(Math.abs(events[0].data.length - almost) < 64);
      });

      it(`an event ${shape}, ${how}, of more than 16 Mi characters is an error`, () => {
        const bytes = encoder.encode(make(tooMuch));
        assert.throws(
          () => parsed(inPieces(bytes, Math.min(size, bytes.length))),
          (error) => error instanceof StreamError && /16777216|16 Mi/.test(error.message),
        );
      });
    }
  }

  it("a line that never ends is an error, whatever its field", () => {
    for (const field of [":", "id:", "nonsense"]) {
      const chunk = encoder.encode(field + "x".repeat(MEBI));
      assert.throws(() => parsed(Array.from({ length: 18 }, () => chunk)), StreamError, field);
    }
  });

  it("comments and events without end, each of them short, are none", () => {
    const chunk = encoder.encode(`: ${"x".repeat(MEBI)}\ndata: ${"x".repeat(MEBI)}\n\n`);
    assert.equal(parsed(Array.from({ length: 20 }, () => chunk)).events.length, 20);
  });
});
