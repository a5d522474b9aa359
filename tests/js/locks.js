// @ts-check
/**
 * A stand-in for the Web Locks of a browser, which Node 18 to 22 do not have: exclusive locks of one process, with
 * `signal` and `steal`. After https://www.w3.org/TR/web-locks/; what browsers do is shown in tests/test_live_events.py.
 *
 * @typedef {object} Ask
 * @property {() => unknown} run what holds the lock until it is done
 * @property {(value: unknown) => void} resolve
 * @property {(reason: unknown) => void} reject
 */

/** @returns {DOMException} */
const aborted = () => new DOMException("The request was aborted.", "AbortError");

export class Locks {
  /** @type {Map<string, Ask>} */
  #held = new Map();
  /** @type {Map<string, Ask[]>} */
  #queues = new Map();
  /** How often one was taken from its holder. */
  steals = 0;

  /** The names of those that are held. */
  get held() {
    return [...this.#held.keys()];
  }

  /** How many hold a lock, and how many wait for one. */
  get counts() {
    return [this.#held.size, [...this.#queues.values()].flat().length];
  }

  /** @param {string} name @param {LockOptions} options @param {() => unknown} run */
  request(name, { signal, steal = false }, run) {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(aborted());
      const ask = { run, resolve, reject };
      const queue = this.#queues.get(name) ?? [];
      this.#queues.set(name, queue);
      if (steal) {
        this.steals++;
        queue.unshift(ask);
        this.#held.get(name)?.reject(aborted());
        this.#held.delete(name);
      } else {
        queue.push(ask);
        signal?.addEventListener("abort", () => {
          if (!queue.includes(ask)) return;
          queue.splice(queue.indexOf(ask), 1);
          reject(aborted());
        });
      }
      this.#grant(name);
    });
  }

  /** @param {string} name */
  async #grant(name) {
    const next = this.#held.has(name) ? undefined : this.#queues.get(name)?.shift();
    if (!next) return;
    this.#held.set(name, next);
    // Never within the call that asks for it.
    await null;
    try {
      next.resolve(await next.run());
    } catch (error) {
      next.reject(error);
    }
    // Unless it was stolen.
    if (this.#held.get(name) === next) this.#held.delete(name);
    this.#grant(name);
  }
}
