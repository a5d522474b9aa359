// @ts-check
/**
 * Streams and what a parser makes of them.
 *
 * The first part covers what the `format-*` tests of web-platform-tests look at (`eventsource/`, each named in `of`),
 * written anew as data: what an `EventSource` would be handed as bytes, and the events that must come of it. The second
 * part is our own.
 *
 * @import { ParsedEvent } from "../../events/static/events/live-events.js"
 * @typedef {object} Vector
 * @property {string} name what is shown
 * @property {string} [of] the test of web-platform-tests that looks at the same
 * @property {Uint8Array} bytes the stream
 * @property {ParsedEvent[]} events
 * @property {number[]} retries
 */

const encoder = new TextEncoder();

/**
 * @param {string} data
 * @param {{ type?: string, id?: string, lastEventId?: string }} [more] `id`: of this event itself
 * @returns {ParsedEvent}
 */
const event = (data, { type = "message", id, lastEventId = id ?? "" } = {}) => ({
  type,
  data,
  lastEventId,
  hasId: id !== undefined,
});

/**
 * @param {string | undefined} of
 * @param {string} name
 * @param {string | Uint8Array} stream
 * @param {ParsedEvent[]} events
 * @param {number[]} [retries]
 * @returns {Vector}
 */
const vector = (of, name, stream, events, retries = []) => ({
  name,
  of,
  bytes: typeof stream === "string" ? encoder.encode(stream) : stream,
  events,
  retries,
});

/** @param {...(string | number[])} parts texts, and bytes that are no text */
const bytes = (...parts) =>
  Uint8Array.from(parts.flatMap((part) => (typeof part === "string" ? [...encoder.encode(part)] : part)));

const BOM = "\uFEFF";
const LONG = "x".repeat(2048);

/** @type {Vector[]} */
export const ofTheStandard = [
  vector(
    "format-bom",
    "one BOM at the start is no part of the first field, a later one is",
    `${BOM}data:1\n\n${BOM}data:2\n\ndata:3\n\n`,
    [event("1"), event("3")],
  ),
  vector(
    "format-bom-2",
    "of two BOMs at the start the second is a part of the first field",
    `${BOM}${BOM}data:1\n\ndata:2\n\ndata:3\n\n`,
    [event("2"), event("3")],
  ),
  vector(
    "format-comments",
    "a line that begins with a colon is a comment, however long and however ended",
    `data:1\r:\0\n:\r\ndata:2\n:${LONG}\rdata:3\n:data:fail\r:${LONG}\ndata:4\n\n`,
    [event("1\n2\n3\n4")],
  ),
  vector(
    "format-data-before-final-empty-line",
    "a block without its empty line at the end of a stream is no event, and its ID counts for none",
    "retry:1000\ndata:test1\n\nid:test\ndata:test2",
    [event("test1")],
    [1000],
  ),
  vector("format-field-data", "data without a value is an empty line of data", "data:\n\ndata\ndata\n\ndata:test\n\n", [
    event(""),
    event("\n"),
    event("test"),
  ]),
  vector("format-field-event", "a type is that of its block only", "event:test\ndata:x\n\ndata:x\n\n", [
    event("x", { type: "test" }),
    event("x"),
  ]),
  vector("format-field-event-empty", "an empty type is none", "event: \ndata:data\n\n", [event("data")]),
  vector("format-field-id", "an ID that is not ASCII comes as it was sent", "id: …\ndata: hello\n\n", [
    event("hello", { id: "…" }),
  ]),
  vector(
    "format-field-id-2",
    "the last ID stays for events without one",
    "id: …\ndata: hello\n\ndata: 2\n\ndata: 3\n\n",
    [event("hello", { id: "…" }), event("2", { lastEventId: "…" }), event("3", { lastEventId: "…" })],
  ),
  vector("format-field-id-3", "an ID persists", "id: 1\ndata: 1\n\ndata:2\n\n", [
    event("1", { id: "1" }),
    event("2", { lastEventId: "1" }),
  ]),
  vector(
    "format-field-id-3",
    "another ID takes its place and persists",
    "id: 1\ndata: 1\n\nid: 2\ndata:2\n\ndata:3\n\n",
    [event("1", { id: "1" }), event("2", { id: "2" }), event("3", { lastEventId: "2" })],
  ),
  vector("format-field-id-3", "an empty ID resets it", "id: 1\ndata: 1\n\nid:\ndata:2\n\ndata:3\n\n", [
    event("1", { id: "1" }),
    event("2", { id: "" }),
    event("3"),
  ]),
  vector("format-field-id-null", "an ID of NULs is ignored", "id: \0\0\ndata: hello\n\n", [event("hello")]),
  vector("format-field-id-null", "an ID that begins with a NUL is ignored", "id: \0x\ndata: hello\n\n", [
    event("hello"),
  ]),
  vector("format-field-id-null", "an ID that ends with a NUL is ignored", "id: x\0\ndata: hello\n\n", [event("hello")]),
  vector("format-field-id-null", "an ID with a NUL in it is ignored", "id: x\0x\ndata: hello\n\n", [event("hello")]),
  vector("format-field-id-null", "an ID that begins with a space and a NUL is ignored", "id:  \0\ndata: hello\n\n", [
    event("hello"),
  ]),
  vector(
    "format-field-parsing",
    "a name is taken as it stands: no other case, no NUL, no dash, no space before it",
    "data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n",
    [event("\0\n 2\n1\n3\n\n4")],
  ),
  vector("format-field-retry", "a time may begin with zeros", "retry:03000\ndata:x\n\n", [event("x")], [3000]),
  vector(
    "format-field-retry-bogus",
    "a time that is no number is ignored",
    "retry:3000\nretry:1000x\ndata:x\n\n",
    [event("x")],
    [3000],
  ),
  vector("format-field-retry-empty", "a time without a value is ignored", "retry\ndata:test\n\n", [event("test")]),
  vector(
    "format-field-unknown",
    "unknown fields are ignored, with a value and without",
    "data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\ndata:test\n\n",
    [event("test\n\ntest")],
  ),
  vector(
    "format-leading-space",
    "one space after the colon is no part of the value, a tab is",
    "data:\ttest\rdata: \ndata:test\n\n",
    [event("\ttest\n\ntest")],
  ),
  vector("format-newlines", "CR LF, LF and CR end a line alike", "data:test\r\ndata\ndata:test\r\n\r", [
    event("test\n\ntest"),
  ]),
  vector("format-null-character", "a NUL is data like any other character", "data:\0\n\n\n\n", [event("\0")]),
  vector("format-utf-8", "the text is UTF-8", "data:ok…\n\n", [event("ok…")]),
  vector(
    "event-data",
    "blocks without data are no events",
    "data:msg\ndata:msg\n\n:\nfalsefield:msg\n\nfalsefield:msg\nData:data\n\ndata\n\ndata:end\n\n",
    [event("msg\nmsg"), event(""), event("end")],
  ),
];

/** @type {Vector[]} */
export const ofOurOwn = [
  vector(undefined, "nothing", "", []),
  vector(undefined, "only a BOM", BOM, []),
  vector(undefined, "only empty lines, of every kind", "\n\r\n\r\n\r\r", []),
  vector(undefined, "a comment alone is no event", ": stay\n\n: stay\n\n", []),
  vector(undefined, "a type alone is no event, and is not that of the next one", "event: a\n\ndata: x\n\n", [
    event("x"),
  ]),
  vector(
    undefined,
    "a field counts as it came last, data as it came first",
    "event: a\nid: 1\nevent: b\nid: 2\ndata: x\ndata: y\n\n",
    [event("x\ny", { type: "b", id: "2" })],
  ),
  vector(undefined, "the type that counts is empty: it is a message", "event: a\nevent\ndata: x\n\n", [event("x")]),
  vector(undefined, "an ID without data is no event, and stays", "id: 7\n\ndata: x\n\n", [
    event("x", { lastEventId: "7" }),
  ]),
  vector(
    undefined,
    "an empty ID without data is no event, and resets the last one",
    "id: 7\ndata: x\n\nid\n\ndata: y\n\n",
    [event("x", { id: "7" }), event("y")],
  ),
  vector(
    undefined,
    "an ID with a NUL leaves the one before it, also in its own block",
    "id: 1\ndata: x\n\nid: 2\nid: 3\0\ndata: y\n\nid: \0\ndata: z\n\n",
    [event("x", { id: "1" }), event("y", { id: "2" }), event("z", { lastEventId: "2" })],
  ),
  vector(undefined, "an ID of two spaces is one space", "id:  \ndata: x\n\n", [event("x", { id: " " })]),
  vector(undefined, "only the first colon parts name and value", "data:a:b::c\nid:1:2\n\n", [
    event("a:b::c", { id: "1:2" }),
  ]),
  vector(undefined, "a colon alone is a comment", ":\n::\n: :\ndata: x\n\n", [event("x")]),
  vector(undefined, "only one space goes", "data:   x  \n\n", [event("  x  ")]),
  vector(undefined, "CR alone ends everything", "id: 1\rdata: x\r\rdata: y\r\r", [
    event("x", { id: "1" }),
    event("y", { lastEventId: "1" }),
  ]),
  vector(undefined, "CR LF alone ends everything", "id: 1\r\ndata: x\r\n\r\ndata: y\r\n\r\n", [
    event("x", { id: "1" }),
    event("y", { lastEventId: "1" }),
  ]),
  vector(undefined, "LF CR is two line ends", "data: x\n\rdata: y\n\r", [event("x"), event("y")]),
  vector(undefined, "CR CR LF is two line ends", "data: x\r\r\ndata: y\r\r\n", [event("x"), event("y")]),
  vector(undefined, "other line ends of Unicode are data", "data: a\u0085b\u2028c\u2029d\vd\fe\n\n", [
    event("a\u0085b\u2028c\u2029d\vd\fe"),
  ]),
  vector(
    undefined,
    "a time is ASCII digits alone",
    "retry: 1\nretry:  2\nretry: 3 \nretry: -4\nretry: +5\nretry: 6.0\nretry: 7e3\nretry: 0x8\nretry: ٩\nretry: 0\n\n",
    [],
    [1, 0],
  ),
  vector(undefined, "a time counts without data and without an empty line", "retry: 25\n", [], [25]),
  vector(undefined, "a time that is not ended does not count", "retry: 25", []),
  vector(
    undefined,
    "a time may be huge",
    `retry: 99999999999\nretry: ${"9".repeat(400)}\n`,
    [],
    [99_999_999_999, Number.POSITIVE_INFINITY],
  ),
  vector(undefined, "texts of two, three and four bytes", "event: é\nid: €\ndata: 🦔 é€\ndata: 🏳️‍🌈\n\n", [
    event("🦔 é€\n🏳️‍🌈", { type: "é", id: "€" }),
  ]),
  vector(undefined, "a BOM inside of a value stays", `data: ${BOM}x${BOM}\n\n`, [event(`${BOM}x${BOM}`)]),
  vector(
    undefined,
    "bytes that are no UTF-8 are replaced",
    bytes("data: a", [0xff], "b", [0xe2, 0x82], "c", [0xf0, 0x9f], "\n\n"),
    [event("a\uFFFDb\uFFFDc\uFFFD")],
  ),
  vector(undefined, "half of a BOM is no BOM", bytes([0xef, 0xbb], "data: x\n\ndata: y\n\n"), [event("y")]),
  vector(undefined, "a character that is not complete at the end", bytes("data: x\n\ndata: ", [0xf0, 0x9f, 0xa6]), [
    event("x"),
  ]),
  vector(undefined, "UTF-16 is not read", bytes([0xff, 0xfe], "d\0a\0t\0a\0:\0x\0\n\0\n\0"), []),
  vector(undefined, "names of objects are no fields", "__proto__: x\nconstructor: x\ntoString\ndata: x\n\n", [
    event("x"),
  ]),
  vector(
    undefined,
    "a stream of this server",
    'retry: 2000\n:\n\nevent: message\nid: a1b2c3-41\ndata: {"n": 1}\n\n' +
      ": keep-alive\n\nevent: stream-reset\ndata: {}\n\n",
    [event('{"n": 1}', { id: "a1b2c3-41" }), event("{}", { type: "stream-reset", lastEventId: "a1b2c3-41" })],
    [2000],
  ),
];
