// @ts-check
/** How large the module is on its way to a browser. */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { transform } from "esbuild";

/** Bytes that live-events.js may have, minified and gzipped. As it is served, with its comments, it may have more. */
const LIMIT = 6000;
const LIMIT_AS_SERVED = 11_500;

test(`live-events.js is below ${LIMIT} bytes, minified and gzipped`, async () => {
  const source = await readFile(new URL("../../events/static/events/live-events.js", import.meta.url), "utf8");
  const { code } = await transform(source, { minify: true, format: "esm", target: "es2022", legalComments: "none" });
  const served = gzipSync(source, { level: 9 }).length;
  const minified = gzipSync(code, { level: 9 }).length;
  console.log(
    `live-events.js: ${source.length} characters, ${served} bytes gzipped as it is served; ` +
      `${code.length} minified, ${minified} gzipped`,
  );
  assert.ok(minified < LIMIT, `${minified} bytes, minified and gzipped, are too many`);
  assert.ok(served < LIMIT_AS_SERVED, `${served} bytes, gzipped as it is served, are too many`);
});
