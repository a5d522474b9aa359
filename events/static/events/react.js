// @ts-check
/**
 * A React hook that follows channels. What its options and results mean: react.d.ts.
 *
 * An effect opens the stream, so a page that a server renders is "connecting" and asks for nothing. What arrives is
 * collected and shown once a frame: a thousand events a second must not be a thousand renders.
 *
 * @import { EventStreamState, UseEventStreamOptions, useEventStream as UseEventStream } from "./react.d.ts"
 * @import { EventStream, StreamEvent } from "./live-events.d.ts"
 * @typedef {Pick<EventStreamState, "events" | "status" | "error"> & { source: string, settings: string }} State
 * @typedef {{ source: string, from: Pick<EventStream, "cursor" | "replays"> | null, coming: StreamEvent[] }} Kept
 */

import { useCallback, useEffect, useMemo, useRef, useState } from "react";
import { openStream } from "./live-events.js";

/** Milliseconds: no frame comes while a page is hidden, or in a part of it that is not seen. */
const NO_FRAME = 250;

/** @type {StreamEvent[]} */
const NONE = [];

/** @type {(events: readonly StreamEvent[], limit: number) => readonly StreamEvent[]} */
const newest = (events, limit) => {
  // Always the same list: that there are none is no reason to render.
  if (!limit) return NONE;
  return events.length > limit ? events.slice(events.length - limit) : events;
};

/**
 * How a stream is asked for, as text: equal options are equal texts, in whatever order they are written. Not where it
 * begins, which is for its first time.
 *
 * @param {UseEventStreamOptions} options
 */
const textOf = ({ channels, lastEventId, replay, signal, headers, ...options }) => {
  const list = typeof headers === "function" || [...new Headers(headers)];
  // As `JSON.stringify` has it, this is also the order in which they come.
  const names = Object.keys({ ...options, ...options.backoff }).sort();
  return JSON.stringify([options, list], names);
};

/**
 * Where `value` is a function, one that calls what `current` answers by then.
 *
 * @type {<T>(value: T, current: () => any) => T}
 */
const late = (value, current) => (typeof value === "function" ? /** @type {any} */ (() => current()()) : value);

/** @type {typeof UseEventStream} */
export const useEventStream = (url, options = {}) => {
  const { limit = 100, enabled = true, onEvent, onReset, onClosed, ...given } = options;
  if (!Number.isInteger(limit) || limit < 0) {
    throw new TypeError(`useEventStream: limit is a whole number from 0, not ${limit}`);
  }
  // Where events come from, and how.
  const source = JSON.stringify([typeof url === "function" || String(url), given.channels]);
  const settings = textOf({ ...given, enabled });
  const resting = enabled ? "connecting" : "closed";

  const [state, setState] = useState(
    /** @returns {State} */ () => ({ source, settings, events: NONE, status: resting, error: null }),
  );
  /** What was rendered last: a stream that is open calls the newest functions. */
  const latest = useRef({ url, given, limit, onEvent, onReset, onClosed });
  /** What outlives a stream: where the next one goes on, and what it brought that is not shown yet. */
  const kept = useRef(/** @type {Kept} */ ({ source, from: null, coming: NONE }));

  // Before the effect that opens the stream, which looks at it.
  useEffect(() => {
    latest.current = { url, given, limit, onEvent, onReset, onClosed };
  });

  useEffect(() => {
    if (kept.current.source !== source) kept.current = { source, from: null, coming: NONE };
    const mine = kept.current;

    /** @param {Pick<State, "status" | "error">} now */
    const show = ({ status, error }) => {
      const { coming } = mine;
      const { limit } = latest.current;
      mine.coming = NONE;
      setState((state) => {
        const had = state.source === source ? state.events : NONE;
        const events = coming.length || !limit ? newest([...had, ...coming], limit) : had;
        const isShown = state.settings === settings && state.status === status && state.error === error;
        return isShown && events === state.events ? state : { source, settings, events, status, error };
      });
    };

    if (!enabled) {
      show({ status: "closed", error: null });
      return;
    }

    const begin = latest.current;
    const { from } = mine;
    const stream = openStream(late(begin.url, () => latest.current.url), {
      ...begin.given,
      headers: late(begin.given.headers, () => latest.current.given.headers),
      ...(from?.cursor && { lastEventId: from.cursor, replay: from.replays }),
    });
    mine.from = stream;

    let frame = 0;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    const cancel = () => {
      cancelAnimationFrame(frame);
      clearTimeout(timer);
      timer = undefined;
    };
    const flush = () => {
      cancel();
      show(stream);
    };
    const schedule = () => {
      if (timer !== undefined) return;
      timer = setTimeout(flush, NO_FRAME);
      frame = requestAnimationFrame(flush);
    };

    stream.addEventListener("message", ({ detail: event }) => {
      const { limit, onEvent } = latest.current;
      // Not when it was handled: `onEvent` may have the component rendered, and another stream opened, before that.
      if (event.id) mine.from = { cursor: event.id, replays: false };
      if (mine.coming === NONE) mine.coming = [];
      mine.coming.push(event);
      // What will not be seen need not wait. Now and then: to cut at each event would be slow.
      if (mine.coming.length >= 2 * limit + 16) mine.coming = [...newest(mine.coming, limit)];
      schedule();
      onEvent?.(/** @type {StreamEvent<any>} */ (event));
    });
    stream.addEventListener("status", schedule);
    stream.addEventListener("stream-reset", ({ detail: reset }) => {
      // What was not trimmed goes on from where it was: the stream knows when this was handled.
      mine.from = reset.reason === "trimmed" ? stream : { cursor: reset.cursor, replays: false };
      latest.current.onReset?.(reset);
    });
    stream.addEventListener("stream-closed", ({ detail }) => latest.current.onClosed?.(detail));
    show(stream);

    return () => {
      stream.close();
      // Last: that it is closed is a status, too, and what is shown by now is another stream's, or nothing.
      cancel();
    };
  }, [source, settings, given.signal]);

  const clear = useCallback(() => {
    kept.current.coming = NONE;
    setState((state) => (state.events.length ? { ...state, events: NONE } : state));
  }, []);

  // What belongs to another source is not shown for one frame, either.
  const events = state.source === source ? state.events : NONE;
  const isOf = state.source === source && state.settings === settings;
  return {
    events: useMemo(() => newest(events, limit), [events, limit]),
    status: isOf ? state.status : resting,
    error: isOf ? state.error : null,
    clear,
  };
};
