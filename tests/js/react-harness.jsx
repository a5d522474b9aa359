// @ts-check
/**
 * A component for tests of the hook in a browser: `show()` renders it, and what it saw is in `seen`.
 *
 * @import { UseEventStreamOptions, EventStreamState } from "../../events/static/events/react.d.ts"
 * @typedef {UseEventStreamOptions & { url: string, strict?: boolean, tag?: string, switchAt?: string }} Props
 */

import { Component, StrictMode, useEffect, useState, version } from "react";
import { flushSync } from "react-dom";
import { createRoot } from "react-dom/client";
import { useEventStream } from "django-live-events/react";

const seen = {
  /** React's */
  version,
  renders: 0,
  commits: 0,
  /** the tag of the last of them, of which every effect has run */
  tag: "",
  /** @type {string[][]} what `onEvent` was called with: the props' tag, and the data */
  events: [],
  /** @type {unknown[]} */
  resets: [],
  /** @type {unknown[]} */
  closed: [],
  /** @type {string[]} every status that was shown */
  statuses: [],
  /** @type {string[]} the data of each list that was shown under each tag, where it changed */
  lists: [],
  /** @type {string} what an error boundary caught */
  thrown: "",
  /** @type {EventStreamState | null} */
  shown: null,
};

/** @param {Props} props with `switchAt`, the header `X-Turn` is another one as soon as a callback is called with this */
function Follower({ url, strict, tag = "", switchAt, ...options }) {
  const [turn, setTurn] = useState(0);
  /** @param {unknown} text */
  const look = (text) => {
    // Not for ever, whatever is wrong with the hook.
    if (text === switchAt && turn < 5) flushSync(() => setTurn(turn + 1));
  };
  // As components are written: every object, array and function is another one at each render.
  const shown = useEventStream(url, {
    ...options,
    ...(options.channels && { channels: [...options.channels] }),
    ...(options.headers && { headers: { .../** @type {any} */ (options.headers) } }),
    ...(switchAt && { headers: { "X-Turn": String(turn) } }),
    ...(options.backoff && { backoff: { ...options.backoff } }),
    onEvent: (event) => {
      seen.events.push([tag, String(event.data)]);
      look(event.data);
    },
    onReset: (reset) => {
      seen.resets.push(reset);
      look(reset.reason);
    },
    onClosed: (closed) => seen.closed.push(closed),
  });
  seen.renders += 1;
  seen.shown = shown;
  const { events, status, error } = shown;
  if (seen.statuses.at(-1) !== status) seen.statuses.push(status);
  const list = `${tag}: ${events.map((event) => event.data)}`;
  if (seen.lists.at(-1) !== list) seen.lists.push(list);
  useEffect(() => {
    seen.commits += 1;
    seen.tag = tag;
  });
  return (
    <>
      <p id="status">{status}</p>
      <p id="error">{error && `${error.status}: ${error.message}`}</p>
      <ol>
        {events.map((event) => (
          <li key={event.id} data-id={event.id}>
            {String(event.data)}
          </li>
        ))}
      </ol>
    </>
  );
}

/** @extends {Component<{ children: import("react").ReactNode }, { message: string }>} */
class Boundary extends Component {
  state = { message: "" };

  /** @param {Error} error */
  static getDerivedStateFromError(error) {
    return { message: `${error.name}: ${error.message}` };
  }

  render() {
    return this.state.message ? <p id="thrown">{this.state.message}</p> : this.props.children;
  }
}

const place = /** @type {HTMLElement} */ (document.getElementById("root"));
// What a boundary catches is shown; React would also say it in the console, and React 18 does.
const root = createRoot(place, { onCaughtError() {} });
Object.assign(window, {
  seen,
  /** @param {Props | null} props null: nothing any more */
  show(props) {
    const follower = props && (
      <Boundary>
        <Follower {...props} />
      </Boundary>
    );
    // And its effects have run: what comes from now on finds the new props.
    flushSync(() => root.render(props?.strict === false ? follower : <StrictMode>{follower}</StrictMode>));
  },
});
