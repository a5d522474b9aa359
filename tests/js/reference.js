// @ts-check
/**
 * The parser once more, as simple as it can be: a whole stream at once, one character after the other, each step in the
 * words of https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
 *
 * @import { ParsedEvent } from "../../events/static/events/live-events.js"
 * @param {Uint8Array} bytes
 * @returns {{ events: ParsedEvent[], retries: number[] }}
 */
export function parseWhole(bytes) {
  /** @type {ParsedEvent[]} */
  const events = [];
  /** @type {number[]} */
  const retries = [];

  // "Streams must be decoded using the UTF-8 decode algorithm", which "strips one leading BOM, if any".
  const characters = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes).split("");
  if (characters[0] === "\uFEFF") characters.shift();

  // "a data buffer, an event type buffer, and a last event ID buffer", which "must be initialized to empty strings"
  let dataBuffer = "";
  let eventTypeBuffer = "";
  let lastEventIdBuffer = "";
  // Not the standard's: whether the block has an ID of its own.
  let hasId = false;

  /** @param {string} field @param {string} value */
  const processField = (field, value) => {
    switch (field) {
      case "event": // "Set the event type buffer to the field value."
        eventTypeBuffer = value;
        break;
      case "data": // "Append the field value to the data buffer, then append a single U+000A LINE FEED (LF) character"
        dataBuffer = dataBuffer + value + "\n";
        break;
      case "id": // "If the field value does not contain U+0000 NULL, then set the last event ID buffer"
        if (value.indexOf("\0") === -1) {
          lastEventIdBuffer = value;
          hasId = true;
        }
        break;
      case "retry": // "If the field value consists of only ASCII digits, then interpret the field value as an integer"
        if (value !== "" && value.split("").every((digit) => "0123456789".includes(digit))) retries.push(Number(value));
        break;
      default: // "The field is ignored."
    }
  };

  const dispatch = () => {
    // "If the data buffer is an empty string, set the data buffer and the event type buffer to the empty string and
    // return."
    if (dataBuffer !== "") {
      // "If the data buffer's last character is a U+000A LINE FEED (LF) character, then remove the last character"
      if (dataBuffer.endsWith("\n")) dataBuffer = dataBuffer.substring(0, dataBuffer.length - 1);
      events.push({
        type: eventTypeBuffer === "" ? "message" : eventTypeBuffer,
        data: dataBuffer,
        lastEventId: lastEventIdBuffer,
        hasId,
      });
    }
    dataBuffer = "";
    eventTypeBuffer = "";
    hasId = false;
  };

  /** @param {string} line */
  const processLine = (line) => {
    if (line === "") dispatch();
    else if (line.startsWith(":")) return;
    else if (line.includes(":")) {
      const field = line.substring(0, line.indexOf(":"));
      let value = line.substring(line.indexOf(":") + 1);
      if (value.startsWith(" ")) value = value.substring(1);
      processField(field, value);
    } else processField(line, "");
  };

  // "Lines must be separated by either a CRLF pair, a single LF character, or a single CR character."
  let line = "";
  while (characters.length) {
    const character = characters.shift();
    if (character === "\r") {
      if (characters[0] === "\n") characters.shift();
    } else if (character !== "\n") {
      line += character;
      continue;
    }
    processLine(line);
    line = "";
  }
  // "Once the end of the file is reached, any pending data must be discarded."
  return { events, retries };
}
