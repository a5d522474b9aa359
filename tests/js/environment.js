// @ts-check
/** What Node 18 lacks and browsers have. scripts/test loads it before each file of tests. */
globalThis.CustomEvent ??= /** @type {any} */ (
  class CustomEvent extends Event {
    /** @param {string} type @param {CustomEventInit} [options] */
    constructor(type, options) {
      super(type, options);
      this.detail = options?.detail ?? null;
    }
  }
);
