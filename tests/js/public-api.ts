/**
 * The public names as somebody uses them who writes TypeScript. Never run: `make types` reads it, and
 * tests/test_client.py does beside the package as npm packs it. A `@ts-expect-error` is an error where there is none.
 */
import {
  createParser,
  openStream,
  StreamError,
  type EventStream,
  type ParsedEvent,
  type StreamClosed,
  type StreamEvent,
  type StreamOptions,
  type StreamReset,
  type StreamStatus,
} from "django-live-events";
import "django-live-events/live-channel";
import type { LiveChannel } from "django-live-events/live-channel";
import { useEventStream } from "django-live-events/react";

/** Whether two types are the same: `holds<Same<A, B>>()` is an error where they are not. */
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const holds = <T extends true>(): T | undefined => undefined;

// Streams

export async function follow(): Promise<void> {
  const stream = openStream("/events/stream/", { channels: ["news"] });
  holds<Same<typeof stream, EventStream>>();
  holds<Same<typeof stream.status, StreamStatus>>();
  holds<Same<typeof stream.error, StreamError | null>>();
  const cursor: string = stream.cursor;

  for await (const event of stream) {
    holds<Same<typeof event, StreamEvent>>();
    const text: string = event.id + event.channel + event.event + cursor;
    // What was published may be anything.
    // @ts-expect-error
    const title: string = event.data.title;
    // @ts-expect-error
    event.id = text + title;
  }

  stream.addEventListener("message", function (event) {
    holds<Same<typeof event.detail, StreamEvent>>();
    this.close();
  });
  stream.addEventListener("status", ({ detail: { status, error } }) => {
    if (status === "open") return error?.message;
    // @ts-expect-error: no such status
    return status === "opened";
  });
  stream.addEventListener("stream-reset", ({ detail }) => {
    holds<Same<typeof detail, StreamReset>>();
    return detail.channels.includes(detail.reason);
  });
  stream.addEventListener("stream-closed", ({ detail }: CustomEvent<StreamClosed>) => detail.reason === "revoked", {
    once: true,
  });
  stream.addEventListener("error", ({ detail }) => detail.status === 403);
  stream.addEventListener("of-my-own", (event: Event) => event.type);

  // @ts-expect-error: only the stream itself changes it
  stream.status = "closed";
  stream.close();
}

/** What is published, where it is known. */
interface News {
  title: string;
}

export async function titles(): Promise<string[]> {
  const stream = openStream<News>("/events/stream/");
  holds<Same<typeof stream, EventStream<News>>>();
  stream.addEventListener("message", ({ detail }) => holds<Same<typeof detail, StreamEvent<News>>>());
  const found: string[] = [];
  for await (const { data } of stream) found.push(data.title);
  // @ts-expect-error: no such field
  for await (const { data } of stream) found.push(data.name);
  const { events } = useEventStream<News>("/events/stream/", { onEvent: ({ data }) => found.push(data.title) });
  return [...found, ...events.map(({ data }) => data.title)];
}

// Options

const controller = new AbortController();
const options: StreamOptions = {
  channels: ["news", "alerts"] as const,
  lastEventId: "a1b2c3-41",
  replay: true,
  headers: async () => ({ Authorization: "Bearer …" }),
  credentials: "include",
  persist: "news",
  share: "tabs",
  pauseWhenHidden: true,
  stallMs: 45_000,
  backoff: { cap: 10_000 },
  signal: controller.signal,
};
openStream(new URL("https://example.org/events/stream/"), options);
openStream(async () => `/events/stream/?ticket=${await Promise.resolve("…")}`);
openStream("/events/stream/", { headers: new Headers(), persist: true, share: null, backoff: {} });

// @ts-expect-error: a URL there must be
openStream();
// @ts-expect-error: names, not a text
openStream("/events/stream/", { channels: "news" });
// @ts-expect-error: a number of milliseconds
openStream("/events/stream/", { stallMs: "45s" });
// @ts-expect-error: only between tabs
openStream("/events/stream/", { share: "windows" });
// @ts-expect-error: no such option
openStream("/events/stream/", { withCredentials: true });

// Errors

export const isForbidden = (error: unknown): boolean => error instanceof StreamError && error.status === 403;

// The parser

const feed = createParser(
  (event) => holds<Same<typeof event, ParsedEvent>>(),
  (milliseconds) => holds<Same<typeof milliseconds, number>>(),
);
feed(new Uint8Array());
createParser(({ type, data, lastEventId, hasId }) => [type, data, lastEventId, hasId]);
// @ts-expect-error: bytes, not text
feed("data: x\n\n");
// @ts-expect-error: somebody must take the events
createParser();

// The element

export function element(): string[] {
  const live = document.createElement("live-channel");
  holds<Same<typeof live, LiveChannel>>();
  live.addEventListener("live-event", ({ detail }) => holds<Same<typeof detail, StreamEvent>>());
  live.clear();
  // @ts-expect-error: the element makes its stream itself
  live.stream = null;
  return document.querySelector("live-channel")?.channels ?? [];
}

// React

export function Component(): string {
  const { events, status, error, clear } = useEventStream("/events/stream/", {
    ...options,
    limit: 20,
    onEvent: (event) => holds<Same<typeof event, StreamEvent>>(),
    onReset: (reset) => holds<Same<typeof reset, StreamReset>>(),
  });
  holds<Same<typeof status, StreamStatus>>();
  holds<Same<typeof error, StreamError | null>>();
  clear();
  // @ts-expect-error: a new array comes with the next event
  events.push(events[0]);
  // @ts-expect-error: no such option
  useEventStream("/events/stream/", { maximum: 20 });
  return events.map(({ id }) => id).join();
}
