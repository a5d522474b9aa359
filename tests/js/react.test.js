// @ts-check
/** The hook where there is no browser: a page that a server renders. In browsers: tests/test_react.py. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { createElement } from "react";
import { renderToString } from "react-dom/server";

import { useEventStream } from "../../events/static/events/react.js";

/** @import { UseEventStreamOptions } from "../../events/static/events/react.d.ts" */

/** @param {{ options?: UseEventStreamOptions }} props */
const Follower = ({ options }) => {
  const { events, status, error } = useEventStream("/events/stream/", options);
  return createElement("p", null, `${status} ${events.length} ${error}`);
};

/** @param {UseEventStreamOptions} [options] */
const render = (options) => renderToString(createElement(Follower, { options }));

test("a page that a server renders is connecting, and asks for nothing", (context) => {
  const asked = context.mock.method(globalThis, "fetch");
  assert.equal(render({ channels: ["news"] }), "<p>connecting 0 null</p>");
  assert.equal(render(), "<p>connecting 0 null</p>");
  assert.equal(asked.mock.callCount(), 0);
});

test("a page that a server renders is closed where nothing is to be followed", () => {
  assert.equal(render({ channels: ["news"], enabled: false }), "<p>closed 0 null</p>");
});

test("headers of every form are looked at", () => {
  for (const headers of [{ A: "1" }, new Headers({ A: "1" }), [["A", "1"]], () => ({ A: "1" })]) {
    assert.equal(render({ headers: /** @type {HeadersInit} */ (headers) }), "<p>connecting 0 null</p>");
  }
});

test("a limit that cannot be is refused at once", () => {
  for (const limit of [-1, 1.5, NaN, Infinity, /** @type {any} */ ("10")]) {
    assert.throws(() => render({ limit }), {
      name: "TypeError",
      message: `useEventStream: limit is a whole number from 0, not ${limit}`,
    });
  }
});
