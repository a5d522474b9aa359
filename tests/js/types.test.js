// @ts-check
/** That `make types` reads every module, and that each exports just what the types beside it say. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { before, describe, it } from "node:test";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));
const modules = `${root}events/static/events`;
/** Inside of the checkout, where node_modules is found. */
const folder = `${root}.cache/js-types`;

/** @param {string[]} args @returns {Promise<{ code: number, output: string }>} */
const tsc = (...args) =>
  new Promise((resolve) => {
    execFile(
      process.execPath,
      [`${root}node_modules/typescript/bin/tsc`, ...args],
      { cwd: root, timeout: 120_000 },
      (error, output, errors) => resolve({ code: error ? Number(error.code ?? 1) : 0, output: output + errors }),
    );
  });

/** A module's types, under the name that the module has; the module itself under another. @param {string} name */
const check = (name) => `
import * as said from "./${name}.js";
import * as written from "./${name}-as-written.js";
// All that is said is there.
export const all: typeof said = written;
// Nothing else is there.
export const nothing: never[] = [] as Exclude<keyof typeof written, keyof typeof said>[];
`;

/**
 * What is compared, as one project.
 * @param {string} project @param {Record<string, [string, string]>} pairs by name: the types, the module
 */
const write = async (project, pairs) => {
  for (const [name, [types, module]] of Object.entries(pairs)) {
    await writeFile(`${folder}/${name}.d.ts`, types);
    await writeFile(`${folder}/${name}-as-written.js`, module);
    await writeFile(`${folder}/${name}-check.ts`, check(name));
  }
  const files = Object.keys(pairs).map((name) => `${name}-check.ts`);
  await writeFile(`${folder}/${project}.json`, JSON.stringify({ extends: "../../tsconfig.json", include: [], files }));
};

describe("types", { timeout: 240_000 }, () => {
  /** @type {string[]} */
  let files = [];
  /** @type {string[]} modules that have types beside them */
  let typed = [];

  before(async () => {
    files = (await readdir(modules)).filter((name) => /\.(js|d\.ts)$/.test(name));
    typed = files.filter((name) => files.includes(name.replace(/\.js$/, ".d.ts"))).map((name) => name.slice(0, -3));
    typed = typed.filter((name) => !name.endsWith(".d"));
    assert.ok(typed.includes("live-events"));
    await rm(folder, { recursive: true, force: true });
    await mkdir(folder, { recursive: true });
  });

  /** @param {string} name @returns {Promise<[string, string]>} */
  const pair = async (name) => [
    await readFile(`${modules}/${name}.d.ts`, "utf8"),
    await readFile(`${modules}/${name}.js`, "utf8"),
  ];

  it("of every module and of its types are read", async () => {
    const { code, output } = await tsc("-p", root, "--listFilesOnly");
    assert.equal(code, 0, output);
    const read = output.split("\n").map((path) => path.trim());
    const missing = files.filter((name) => !read.some((path) => path.endsWith(`/events/static/events/${name}`)));
    assert.deepEqual(missing, []);
  });

  it("are what the modules export, no more and no less", async () => {
    const pairs = await Promise.all(typed.map(async (name) => /** @type {const} */ ([name, await pair(name)])));
    await write("all", Object.fromEntries(pairs));
    const { code, output } = await tsc("-p", `${folder}/all.json`);
    assert.equal(code, 0, output);
  });

  it("that say more, less or something else than the module has are found", async () => {
    const [types, module] = await pair("live-events");
    const faults = {
      more: `${types}\nexport function closeStream(): void;\n`,
      // Without an `export {}`, all that a .d.ts declares is exported.
      less: types.replace("export function createParser", "export {};\ndeclare function createParser"),
      else: types.replace("): (chunk: Uint8Array) => void;", "): (chunk: string) => void;"),
    };
    for (const [how, other] of Object.entries(faults)) assert.notEqual(other, types, how);
    // What they import of each other is right.
    await writeFile(`${folder}/live-events.d.ts`, types);
    await write("faults", Object.fromEntries(Object.entries(faults).map(([how, other]) => [how, [other, module]])));
    const { output } = await tsc("-p", `${folder}/faults.json`);
    for (const error of [
      /^\S*\bmore-check\.ts.*\n?.*closeStream/m,
      /^\S*\bless-check\.ts.*"createParser"/m,
      /^\S*\belse-check\.ts(.*\n +)*.*createParser/m,
    ]) {
      assert.match(output, error);
    }
  });
});
