/**
 * Streams of Server-Sent Events that lose nothing: `fetch`, a parser as the HTML standard has it, and a cursor.
 *
 * @packageDocumentation
 */

/** One event of a channel. What was published may be anything, unless you say what it is: `StreamEvent<{ title: string }>`. */
export interface StreamEvent<Data = unknown> {
  /** Its cursor, `<epoch>-<position>`: what `lastEventId` goes on from. "" from a server that gives none. */
  readonly id: string;
  /** The channel that it was published to. "" from a server that does not say (see `openStream`). */
  readonly channel: string;
  /** Its type: "message" unless the publisher chose another. */
  readonly event: string;
  /** What was published: text, or what its JSON stands for. */
  readonly data: Data;
}

/**
 * - `connecting`: the first answer is awaited
 * - `open`: events arrive
 * - `reconnecting`: the connection was lost or refused for now; it is tried again by itself, `error` says what is wrong
 * - `paused`: the page is hidden (`pauseWhenHidden`) or in the back-forward cache; it goes on when the page is back
 * - `closed`: for good
 */
export type StreamStatus = "connecting" | "open" | "reconnecting" | "paused" | "closed";

/** `stream-reset`: events of these channels may be missing. Load anew what you show. */
export interface StreamReset {
  readonly channels: string[];
  /** A later server may have others. */
  readonly reason: "trimmed" | "epoch" | "unknown" | (string & {});
  /** The log's newest cursor. */
  readonly cursor: string;
}

/** `stream-closed`: the server ended the stream and asks not to be called again. */
export interface StreamClosed {
  /** A later server may have others. */
  readonly reason: "revoked" | "switched-off" | "disconnected" | (string & {});
}

/** Why there is no stream, or none at the moment. */
export class StreamError extends Error {
  constructor(message: string, status?: number, retryAfter?: number);
  /** The HTTP status of the answer; 0 where there was none: no network, or not a byte for `stallMs`. */
  readonly status: number;
  /** Milliseconds that the server asked to wait (`Retry-After`); 0 where it did not. */
  readonly retryAfter: number;
}

/** The events of an `EventStream`. What they are about is their `detail`. */
export interface EventStreamEventMap<Data = unknown> {
  /** Each event, whatever its type. Its cursor counts as handled when all listeners have run. */
  message: CustomEvent<StreamEvent<Data>>;
  /** `status` has changed, or `error` while it is still `reconnecting`. */
  status: CustomEvent<{ readonly status: StreamStatus; readonly error: StreamError | null }>;
  /** Events may be missing. */
  "stream-reset": CustomEvent<StreamReset>;
  /** The server asks not to be called again. The stream is closed. */
  "stream-closed": CustomEvent<StreamClosed>;
  /** The stream is closed because of this. Those that pass are in `status`. */
  error: CustomEvent<StreamError>;
}

/**
 * An open stream. Iterate over it, or listen to it, or both.
 *
 * An event that nobody takes yet waits: the stream reads on when all listeners have run and every iteration has asked
 * for the next one. So a slow page costs no memory, and nothing is lost between `openStream` and the first listener.
 * Leaving a `for await` loop closes the stream. The iteration ends where the server ends the stream for good (204,
 * `stream-closed`, `close()`), and throws a `StreamError` where it is refused.
 */
export class EventStream<Data = unknown> extends EventTarget implements AsyncIterable<StreamEvent<Data>> {
  private constructor(...args: never[]);
  readonly status: StreamStatus;
  /**
   * That of the last event or reset that was handled; at first `lastEventId` or what `persist` kept, and where there is
   * neither, that at which the server let the stream begin, from when it is open.
   */
  readonly cursor: string;
  /**
   * Whether what channels give to a new stream is still to come: true at the begin of a stream without a cursor or with
   * `replay`, false when an event or a reset was handled. Another stream goes on from this one with
   * `{ lastEventId: stream.cursor, replay: stream.replays }`.
   */
  readonly replays: boolean;
  /** Why it is closed or reconnecting; null while all is well, and where the server has ended it. */
  readonly error: StreamError | null;
  /** Close it for good. More than once does no harm. */
  close(): void;
  [Symbol.asyncIterator](): AsyncIterableIterator<StreamEvent<Data>>;
  addEventListener<K extends keyof EventStreamEventMap<Data>>(
    type: K,
    listener: ((this: EventStream<Data>, event: EventStreamEventMap<Data>[K]) => unknown) | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

export interface StreamOptions {
  /** Channels to follow, added to the URL as `channel` parameters. */
  channels?: readonly string[];
  /** The cursor to go on from, such as that of `{% event_cursor %}` in the page. */
  lastEventId?: string;
  /** `lastEventId` is the present of a page, not where a client stopped: what channels give to a new stream comes too. */
  replay?: boolean;
  /** Headers of every request, such as `Authorization`; a function is asked before each. */
  headers?: HeadersInit | (() => HeadersInit | Promise<HeadersInit>);
  /** As `fetch` has it: "same-origin" unless given. Cookies of another origin need "include". */
  credentials?: RequestCredentials;
  /**
   * Keep the cursor in `sessionStorage`, so that a reload goes on where the page was. A cursor that was kept wins over
   * `lastEventId`. True: under a name made of the URL and the channels. A text: under that name.
   */
  persist?: boolean | string;
  /**
   * "tabs": one tab holds the connection for all tabs of this origin that show the same channels to the same user. Each
   * has its own cursor. Where the browser or the server cannot share, the stream has a connection of its own.
   */
  share?: "tabs" | null;
  /** Close the connection while the page is hidden, and go on from the cursor when it is seen again. */
  pauseWhenHidden?: boolean;
  /**
   * Milliseconds without a byte after which a connection is taken for dead. Unless given: three keep-alives as the
   * server has them (`Events-Keepalive`), 10,000 at least, and 45,000 as long as it has not said.
   */
  stallMs?: number;
  /**
   * Milliseconds between two tries: at random up to `min(cap, base * 2 ** n)` after `n` tries without an event, and
   * never less than what the server asks for (`retry:`, `Retry-After`). 1,000 and 30,000 unless given.
   */
  backoff?: { base?: number; cap?: number };
  /** Closes the stream. */
  signal?: AbortSignal;
}

/**
 * Follow channels: `openStream("/events/stream/", { channels: ["news"] })`.
 *
 * `url` is that of a stream of django-live-events; a function is asked before each connect, for a URL with a fresh
 * ticket. One that throws is asked again after a while; one that throws a `StreamError` of status 401 or 403 stops. The
 * stream is asked for with `envelope=1`, which tells the channel of each event; from a server that does not know that,
 * `channel` is "" and `data` is the text as it came. Throws a `TypeError` for options that cannot be.
 */
export function openStream<Data = unknown>(
  url: string | URL | (() => string | URL | Promise<string | URL>),
  options?: StreamOptions,
): EventStream<Data>;

/** A block as the standard has it: before anything is made of its data. */
export interface ParsedEvent {
  /** The type: "message" where the block has none. */
  readonly type: string;
  readonly data: string;
  /** The last event ID, of this block or of one before. */
  readonly lastEventId: string;
  /** Whether this block has an ID of its own. */
  readonly hasId: boolean;
}

/**
 * A parser of event streams: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream.
 *
 * It returns a function to be called with the bytes as they come, cut anywhere. That calls `onEvent` for each event and
 * `onRetry` with the milliseconds of each valid `retry` field. It throws a `StreamError` for an event of more than
 * 16 Mi characters.
 */
export function createParser(
  onEvent: (event: ParsedEvent) => void,
  onRetry?: (milliseconds: number) => void,
): (chunk: Uint8Array) => void;
