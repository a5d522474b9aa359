// @ts-check
/**
 * Builds the demo's React page, and serves it from another port.
 *
 *     scripts/react                 build it
 *     scripts/react --if-needed     where it is missing, or older than what it is made of
 *     scripts/react --quiet         say only what goes wrong, and what takes long
 *     scripts/react --serve 3000 --stream http://127.0.0.1:8000/events/stream/
 *                                   serve it at http://127.0.0.1:3000/, and leave the site's alone: a page of another
 *                                   origin, which the site has to allow (CORS_ORIGINS=http://127.0.0.1:3000 make run)
 */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const SOURCES = join(ROOT, "static/sse_site/react");
const APP = join(ROOT, "events/static/events");
const BUILT = join(ROOT, "static/sse_site/built");
const PROGRAM = join(BUILT, "react-page.js");
/** Milliseconds that npm may take: a site that is about to start waits for it. */
const PATIENCE = 60_000;

/** @param {string} text @returns {never} */
const fail = (text) => {
  console.error(text);
  process.exit(1);
};

const isFresh = () => {
  if (!existsSync(PROGRAM)) return false;
  const files = [
    ...readdirSync(SOURCES).map((name) => join(SOURCES, name)),
    ...["react.js", "live-events.js"].map((name) => join(APP, name)),
    fileURLToPath(import.meta.url),
  ];
  const made = statSync(PROGRAM).mtimeMs;
  return files.every((file) => statSync(file).mtimeMs <= made);
};

const install = async () => {
  const script = spawn(join(ROOT, "scripts/node-packages"), ["The React page"], {
    cwd: ROOT,
    env: { ...process.env, npm_config_fetch_retries: "1" },
    stdio: "inherit",
    // A group of its own: npm has to end with the script that started it.
    detached: true,
  });
  let why = "";
  /** @param {string} reason */
  const end = (reason) => {
    why = reason;
    if (script.pid) process.kill(-script.pid);
  };
  const timer = setTimeout(end, PATIENCE, `: it took more than ${PATIENCE / 1000} s`);
  const interrupt = () => end(": interrupted");
  process.on("SIGINT", interrupt).on("SIGTERM", interrupt);
  const [status] = await once(script, "exit").catch((error) => [end(`: ${error.message}`)]);
  clearTimeout(timer);
  process.off("SIGINT", interrupt).off("SIGTERM", interrupt);
  if (status !== 0) fail(`What the page is built with is not installed${why || "."}`);
};

const build = async () => {
  await install();
  const { build } = await import("esbuild");
  const { outputFiles } = await build({
    absWorkingDir: ROOT,
    entryPoints: [join(SOURCES, "main.jsx")],
    alias: { "django-live-events/react": join(APP, "react.js") },
    bundle: true,
    define: { "process.env.NODE_ENV": '"production"' },
    format: "esm",
    jsx: "automatic",
    legalComments: "eof",
    logLevel: "warning",
    minify: true,
    target: "es2022",
    write: false,
  }).catch(() => fail("The React page was not built. esbuild says why, above."));
  return outputFiles[0].contents;
};

/** @param {Uint8Array} program */
const keep = (program) => {
  mkdirSync(BUILT, { recursive: true });
  // Under its name only when it is complete: two may be building it.
  const made = `${PROGRAM}.${process.pid}`;
  writeFileSync(made, program);
  renameSync(made, PROGRAM);
};

/** @param {number} port @param {URL} stream @param {Uint8Array} program */
const serve = (port, stream, program) => {
  const page = readFileSync(join(SOURCES, "index.html"), "utf8");
  const attribute = stream.href.replaceAll("&", "&amp;").replaceAll('"', "&quot;");
  /** @type {Record<string, [type: string, body: string | Uint8Array]>} */
  const files = {
    "/": ["text/html; charset=utf-8", page.replace("{stream}", () => attribute)],
    "/react-page.js": ["text/javascript; charset=utf-8", program],
    "/page.css": ["text/css; charset=utf-8", readFileSync(join(SOURCES, "page.css"))],
    "/site.css": ["text/css; charset=utf-8", readFileSync(join(ROOT, "static/sse_site/site.css"))],
    "/icon.svg": ["image/svg+xml", readFileSync(join(APP, "icon.svg"))],
  };
  const policy = `default-src 'self'; connect-src ${stream.origin}; base-uri 'none'; frame-ancestors 'none'`;
  const server = createServer(({ url = "/", method }, response) => {
    const [type, body] = files[url.split("?")[0]] ?? ["", ""];
    if (!type || !["GET", "HEAD"].includes(method ?? "")) {
      response.writeHead(type ? 405 : 404, { "Content-Type": "text/plain" }).end();
      return;
    }
    response.writeHead(200, {
      "Content-Type": type,
      "Content-Security-Policy": policy,
      "X-Content-Type-Options": "nosniff",
      "Cache-Control": "no-cache",
    });
    response.end(method === "HEAD" ? "" : body);
  });
  server.on("error", (error) => fail(`Port ${port} cannot be served: ${error.message}`));
  server.listen(port, "127.0.0.1", () => {
    const { port: own } = /** @type {import("node:net").AddressInfo} */ (server.address());
    console.log(`
  React page  http://127.0.0.1:${own}/
  Stream      ${stream.href}

The site has to allow this origin: CORS_ORIGINS=http://127.0.0.1:${own} make run
Ctrl-C stops the page.
`);
  });
};

const read = () => {
  try {
    return parseArgs({
      options: {
        "if-needed": { type: "boolean" },
        quiet: { type: "boolean" },
        serve: { type: "string" },
        stream: { type: "string", default: "http://127.0.0.1:8000/events/stream/" },
      },
    }).values;
  } catch (error) {
    const usage = "usage: scripts/react [--if-needed] [--quiet] [--serve PORT --stream URL]";
    return fail(`${/** @type {Error} */ (error).message}\n${usage}`);
  }
};

const options = read();
if (options.serve !== undefined && !(/^\d+$/.test(options.serve) && Number(options.serve) < 65_536)) {
  fail(`--serve is a port, 0 for any that is free, not "${options.serve}"`);
}
if (!URL.canParse(options.stream ?? "") || !/^https?:/.test(options.stream ?? "")) {
  fail(`--stream is the URL of a stream, as http://127.0.0.1:8000/events/stream/, not "${options.stream}"`);
}
if (options.serve !== undefined) {
  serve(Number(options.serve), new URL(/** @type {string} */ (options.stream)), await build());
} else if (options["if-needed"] && isFresh()) {
  if (!options.quiet) console.log("The React page is up to date.");
} else {
  const program = await build();
  keep(program);
  if (!options.quiet) {
    console.log(`Built static/sse_site/built/react-page.js, ${Math.round(program.length / 1000)} kB.`);
    console.log("A site that is running serves it when it is started again.");
  }
}
