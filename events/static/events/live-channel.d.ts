/**
 * `<live-channel channels="news alerts" limit="200" share>`: a list that shows events as they come.
 *
 * Importing the module defines the element. What it can hold: the top of live-channel.js.
 *
 * @packageDocumentation
 */

import type { EventStream, StreamError, StreamEvent, StreamReset, StreamStatus } from "./live-events.js";

/** The events of the element. They bubble, and cross the borders of shadow trees. */
export interface LiveChannelEventMap {
  /** Each event that the stream brings, shown or not. */
  "live-event": CustomEvent<StreamEvent>;
  /** The stream's status, or what is wrong, has changed. */
  "live-status": CustomEvent<LiveChannelStatus>;
  /** Events may be missing: load anew what you keep of them. */
  "live-reset": CustomEvent<StreamReset>;
  /** The list was emptied, by its button or by `clear()`. */
  "live-clear": CustomEvent<null>;
}

export interface LiveChannelStatus {
  readonly status: StreamStatus;
  /** Why it is reconnecting or closed; null while all is well, and where the server has ended it. */
  readonly error: StreamError | null;
  /** What the server said when it ended the stream ("revoked", "switched-off", "disconnected", …), else "". */
  readonly reason: string;
}

export class LiveChannel extends HTMLElement {
  static readonly observedAttributes: string[];
  /** The channels that it follows: the attribute `channels` as an array. Setting others opens a new stream. */
  channels: string[];
  /** Its stream; null where no channel is chosen, and while the element is not in a document. */
  readonly stream: EventStream | null;
  /** Whether the list stands still. What comes meanwhile waits: the newest, `limit` of them. */
  paused: boolean;
  /** Takes away all rows, what waits, and the counts. The stream goes on. */
  clear(): void;
  addEventListener<K extends keyof LiveChannelEventMap>(
    type: K,
    listener: (this: LiveChannel, event: LiveChannelEventMap[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener<K extends keyof HTMLElementEventMap>(
    type: K,
    listener: (this: LiveChannel, event: HTMLElementEventMap[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof LiveChannelEventMap>(
    type: K,
    listener: (this: LiveChannel, event: LiveChannelEventMap[K]) => unknown,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener<K extends keyof HTMLElementEventMap>(
    type: K,
    listener: (this: LiveChannel, event: HTMLElementEventMap[K]) => unknown,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject,
    options?: boolean | EventListenerOptions,
  ): void;
}

declare global {
  interface HTMLElementTagNameMap {
    "live-channel": LiveChannel;
  }
  interface HTMLElementEventMap {
    "live-event": CustomEvent<StreamEvent>;
    "live-status": CustomEvent<LiveChannelStatus>;
    "live-reset": CustomEvent<StreamReset>;
    "live-clear": CustomEvent<null>;
  }
}
