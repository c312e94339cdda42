// Judges messages with the schemas, and the code for them, that the conformance suite carries.
//
//   node schema.mjs SUITE/dist/index.js < messages
//
// Reads JSON lines {revision, answers, message}; prints a JSON array with the list of errors of each.
import { registerHooks } from "node:module";
import { text } from "node:stream/consumers";
import { pathToFileURL } from "node:url";

const suite = pathToFileURL(process.argv[2]).href;
// The suite is one file that exports nothing and ends by reading its command line.
registerHooks({
  load(url, context, next) {
    const loaded = next(url, context);
    if (url !== suite) return loaded;
    const source = String(loaded.source);
    const judge = /=([\w$]+)\(\w+,\w+,\w+\.requestMethod\)/.exec(source);
    const end = /[\w$]+\.parse\(\);export\{\};\s*$/;
    if (!judge || !end.test(source)) throw new Error(`${url} is not built as expected: adapt schema.mjs`);
    // The schemas are made from TypeScript, and where that says `number` in a union they say `integer`: a form's answer
    // may hold 95.5. The suite corrects the like in NumberSchema.
    const corrected = source.replaceAll("[`string`,`integer`,`boolean`]", "[`string`,`number`,`boolean`]");
    return { ...loaded, source: corrected.replace(end, `0;export{${judge[1]} as judge};`) };
  },
});
const { judge } = await import(suite);

const lines = (await text(process.stdin)).split("\n").filter(Boolean).map((line) => JSON.parse(line));
const found = lines.map(({ revision, answers, message }) => judge(revision, message, answers ?? undefined));
process.stdout.write(JSON.stringify(found));
