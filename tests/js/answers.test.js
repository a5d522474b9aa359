// @ts-check
/**
 * Which answers are streams: what the `format-mime-*` tests of web-platform-tests (`eventsource/`) look at; and that
 * the text is UTF-8 whatever the answer says.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { openStream, StreamError } from "../../events/static/events/live-events.js";
import { serve } from "./streams.js";

describe("the answer's type", { timeout: 30_000 }, () => {
  // Answers with the type that the query asks for.
  const server = serve((request, response) => {
    const type = new URL(request.url ?? "", "http://localhost").searchParams.get("type");
    response.writeHead(200, type === null ? {} : { "Content-Type": type });
    response.end('data: ok…\n\nevent: stream-closed\ndata: {"reason": "done"}\n\n');
  });

  /** What a stream of this type gives, to its end. @param {string | null} type */
  const taken = async (type) => {
    const texts = [];
    const url = type === null ? `${server.url}/` : `${server.url}/?type=${encodeURIComponent(type)}`;
    for await (const { data } of openStream(url)) texts.push(data);
    return texts;
  };

  for (const [of, type] of [
    ["format-mime-trailing-semicolon", "text/event-stream;"],
    ["format-utf-8", "text/event-stream;charset=windows-1252"],
    ["in other letters, with spaces", "Text/Event-Stream ; charset=UTF-8"],
  ]) {
    it(`${of}: "${type}" is a stream, of UTF-8`, async () => assert.deepEqual(await taken(type), ["ok…"]));
  }

  for (const [of, type] of [
    ["format-mime-bogus", "x bogus"],
    ["format-mime-valid-bogus", "text/x-bogus"],
    ["a page", "text/html; charset=utf-8"],
    ["one that begins alike", "text/event-streams"],
    ["one that only names it", "text/html; was=text/event-stream"],
    ["none", null],
  ]) {
    it(`${of}: ${type === null ? "no type" : `"${type}"`} is an error that says so, and ends the stream`, async () => {
      await assert.rejects(taken(type), (error) => {
        assert.ok(error instanceof StreamError);
        assert.equal(error.status, 200);
        assert.match(error.message, /text\/event-stream/);
        return true;
      });
    });
  }
});
