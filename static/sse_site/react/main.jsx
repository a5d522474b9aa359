// @ts-check
/**
 * The page /react/: what one channel brings, in a component. `make react` builds it.
 *
 * @import { StreamEvent, StreamStatus } from "../../../events/static/events/live-events.d.ts"
 */

import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import { useEventStream } from "django-live-events/react";

/** How many messages are shown. */
const LIMIT = 12;

/** @type {Record<StreamStatus, string>} */
const WORDS = {
  connecting: "Connecting…",
  open: "Live",
  reconnecting: "Reconnecting…",
  paused: "Paused",
  closed: "Closed",
};

/** @param {{ event: StreamEvent }} props */
function Message({ event }) {
  return (
    <li className="react-message">
      <span className="react-text">{typeof event.data === "string" ? event.data : JSON.stringify(event.data)}</span>
      <code className="react-cursor">{event.id}</code>
    </li>
  );
}

/** @param {{ url: string, channel: string, cursor: string }} props */
function LiveUpdates({ url, channel, cursor }) {
  const [isOn, setOn] = useState(true);
  const { events, status, error, clear } = useEventStream(url, {
    channels: [channel],
    lastEventId: cursor,
    limit: LIMIT,
    enabled: isOn,
  });
  const state = isOn ? status : "paused";
  return (
    <>
      <h1>Live updates from server</h1>
      <div className="react-bar">
        <p className="react-status" data-status={state}>
          <span className="react-mark" aria-hidden="true" />
          <span role="status">{WORDS[state]}</span>
        </p>
        <p className="react-controls">
          <button className="react-button" type="button" onClick={() => setOn(!isOn)}>
            {isOn ? "Pause" : "Go on"}
          </button>
          <button className="react-button" type="button" onClick={clear}>
            Clear
          </button>
        </p>
      </div>
      {error && (
        <p className="react-error" data-status={state}>
          {error.message}
          {/* Which of the two it is, a browser keeps from the page. */}
          {error.status === 0 && ": the server is out of reach, or does not let pages of this origin read."}
        </p>
      )}
      <ol className="react-messages" aria-label="Messages, newest first">
        {[...events].reverse().map((event) => (
          <Message key={event.id} event={event} />
        ))}
      </ol>
      {events.length === 0 && <p className="react-empty">No message yet.</p>}
    </>
  );
}

const place = document.getElementById("react");
if (!place) throw new Error('The page has no element with id="react".');
const { streamUrl = "/events/stream/", channel = "clock", cursor = "" } = place.dataset;
createRoot(place).render(
  <StrictMode>
    <LiveUpdates url={streamUrl} channel={channel} cursor={cursor} />
  </StrictMode>,
);
