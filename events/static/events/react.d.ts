/**
 * A React hook that follows channels.
 *
 * @packageDocumentation
 */

import type {
  openStream,
  StreamClosed,
  StreamError,
  StreamEvent,
  StreamOptions,
  StreamReset,
  StreamStatus,
} from "./live-events.js";

/**
 * What `openStream` takes, and more. Options are compared by what is in them, so they may be written inline; functions
 * are never compared: the newest one is called. `signal` is compared as such.
 */
export interface UseEventStreamOptions<Data = unknown> extends StreamOptions {
  /** How many of the newest events `events` keeps: 100 unless given. 0 keeps none, for one that has `onEvent`. */
  limit?: number;
  /** False: there is no stream, and what was shown stays. When it is true again, it goes on from where it stopped. */
  enabled?: boolean;
  /** Called for each event, one by one and at once, also for those that `limit` leaves no room for. */
  onEvent?: (event: StreamEvent<Data>) => void;
  /** Events may be missing: load anew what you show. `clear()` empties `events`, which are kept otherwise. */
  onReset?: (reset: StreamReset) => void;
  /** The server ended the stream for good. */
  onClosed?: (closed: StreamClosed) => void;
}

/** What a component shows. */
export interface EventStreamState<Data = unknown> {
  /** The newest `limit` events, oldest first. The same array until there are others. `event.id` is a good `key`. */
  readonly events: readonly StreamEvent<Data>[];
  /** "closed" also where `enabled` is false; "connecting" where the page is rendered on a server. */
  readonly status: StreamStatus;
  /** Why it is closed or reconnecting, else null. */
  readonly error: StreamError | null;
  /** Empty `events`. The stream goes on. Always the same function. */
  readonly clear: () => void;
}

/**
 * Follow channels while a component is shown: `useEventStream("/events/stream/", { channels: ["news"] })`.
 *
 * The component is rendered at most once a frame, however many events come. With another URL or other channels the list
 * begins empty, and the new stream at `lastEventId`. What else is changed (headers, `enabled`, …) keeps the list, and
 * the next stream goes on where the last one stopped. `lastEventId` and `replay` are for the beginning: changing them
 * alone does nothing. Throws a `TypeError` for options that cannot be.
 */
export function useEventStream<Data = unknown>(
  url: Parameters<typeof openStream>[0],
  options?: UseEventStreamOptions<Data>,
): EventStreamState<Data>;
